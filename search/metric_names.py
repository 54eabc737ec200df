"""Which metrics a workflow measures, and where its evaluation.json has them.

Names: `ADAPTER-METRIC` for quality (spam-accuracy, blurbs-perplexity) and for an adapter's latency
(spam-classify_p50_ms), `ttft_p50_ms`, `tpot_p50_ms`, `tokens_per_second` for the base's, `size_on_disk` in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SIZE = "size_on_disk"
# what a training tells of its validation rows while it runs
VALIDATION = {"classification": ("accuracy", "f1_macro", "loss"), "generation": ("perplexity", "loss")}
_CLASSIFY = ("classify_p50_ms", "classify_p90_ms")
_GENERATE = ("ttft_p50_ms", "ttft_p90_ms", "tpot_p50_ms", "tpot_p90_ms", "tokens_per_second")


def is_latency(metric: str) -> bool:
    """A time in ms."""
    return metric.endswith("_ms")


def is_quality(metric: str) -> bool:
    """Neither time, nor speed, nor size."""
    return not is_latency(metric) and metric != SIZE and not metric.endswith("tokens_per_second")


def direction(metric: str) -> str:
    """minimize or maximize."""
    from evaluators.metric_check import LOWER

    return "minimize" if metric.rpartition("-")[2] in (*LOWER, SIZE) or is_latency(metric) else "maximize"


def tasks(workflow: dict[str, Any]) -> dict[str, str]:
    """{adapter: "classification" | "generation"} of the passes that train adapters."""
    kinds = {"classificationhead": "classification", "adapterfinetune": "generation"}
    found = {}
    for steps in (workflow.get("passes") or {}).values():
        for step in steps if isinstance(steps, list) else [steps]:
            kind = kinds.get(str(step.get("type", "")).lower())
            if kind and isinstance(step.get("adapter_name"), str):
                found[step["adapter_name"]] = kind
    return found


def workflow_metrics(workflow: dict[str, Any]) -> list[str]:
    """Every metric that a run of the workflow writes into evaluation.json."""
    adapters = tasks(workflow)
    evaluator = workflow.get("evaluator")
    if isinstance(evaluator, str):
        evaluator = (workflow.get("evaluators") or {}).get(evaluator)
    names: dict[str, None] = {}
    options = (evaluator or {}).get("metric_options") or {}
    for metric in (evaluator or {}).get("metrics") or []:
        names |= dict.fromkeys(_names(metric, adapters, options.get(metric["name"], {})))
    return list(names)


def _names(metric: dict[str, Any], adapters: dict[str, str], options: dict[str, Any]) -> Iterator[str]:
    from evaluators.metric_check import ROWS

    adapter = options.get("adapter", metric["name"])
    if metric["type"] == "accuracy" and adapter in adapters:
        yield from (f"{adapter}-{name}" for name in ROWS[adapters[adapter]])
    elif metric["type"] == "custom":
        yield from (f"{adapter}-{sub['name']}" for sub in metric.get("sub_types") or [])
    elif metric["type"] == "size_on_disk":
        yield SIZE
    elif metric["type"] == "latency":
        yield from _GENERATE
        for name, task in adapters.items():
            yield from (f"{name}-{kind}" for kind in (_CLASSIFY if task == "classification" else _GENERATE))


def measured(evaluation: dict[str, Any]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """(values, 95 % intervals) by metric, of the package, or of the PyTorch model where there is none.

    Rows marked "not_measured" (the provider is absent here) are left out.
    """
    values, intervals = {}, {}
    for row in [*evaluation["quality"], *evaluation["latency"]]:
        if row.get("not_measured"):
            continue
        name = row["metric"] if row["adapter"] is None else f"{row['adapter']}-{row['metric']}"
        column = "package" if row.get("package") is not None else "pytorch"
        if row.get(column) is None:
            continue
        values[name] = float(row[column])
        low, high = row.get("interval") or (row.get("low"), row.get("high"))
        if low is not None and high is not None:
            intervals[name] = (float(low), float(high))
    for row in evaluation["sizes"]:
        if row["part"] == "total" and (size := row.get("package") or row.get("pytorch")) is not None:
            values[SIZE] = float(size)
    return values, intervals
