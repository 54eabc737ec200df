"""The evaluator that workflows name: scores adapters on the PyTorch model and on the package with the same functions.

Metrics are Olive's own types. Quality (accuracy_score, f1_score, perplexity) belongs to the adapter that the metric is
named after, or to run_kwargs {"adapter": NAME}:

    {"name": "spam", "type": "accuracy", "data_config": "spam_validation",
     "sub_types": [{"name": "accuracy_score", "priority": 1, "goal": {"type": "threshold", "value": 0.9}}]}

Latency (p50, p90 in ms) is that of output tokens of the base, or as run_kwargs {"adapter": NAME, "phase":
"first_token", "prompt_tokens": 32, "new_tokens": 32} say; size_on_disk is that of the whole package.
A goal of type threshold holds for the package; the relative ones (max-degradation, percent-max-degradation,
min-improvement, percent-min-improvement) compare the package with the PyTorch model that has the same adapter.
Everything measured is also written to evaluation.json beside the model: the table that a run ends with.
"""

from __future__ import annotations

from typing import Any

from olive.evaluator.metric_result import MetricResult, SubMetricResult, joint_metric_key
from olive.evaluator.olive_evaluator import OliveEvaluator
from olive.evaluator.registry import Registry

from data.examples import load_data
from evaluators import latency
from evaluators.scoring import latency_rows, quality_columns, size_columns
from runtime.errors import ConfigError, nearest

EVALUATOR_TYPE = "OlivalEvaluator"
# Olive's sub types by metric type and, for quality, by the adapter's task
QUALITY = {"classification": ("accuracy_score", "f1_score"), "generation": ("perplexity",)}
PERCENTILES = tuple(f"p{p}" for p in latency.LEAST_SAMPLES)
PHASES = {"first_token": "ttft", "output_token": "tpot", "classify": "classify"}
LATENCY_OPTIONS = {"prompt_tokens": 32, "new_tokens": 32}


@Registry.register(EVALUATOR_TYPE)
class WorkspaceEvaluator(OliveEvaluator):
    """Evaluates an HfModel with trained adapters, or a package; see the module's docstring."""

    def evaluate(
        self, model: Any, metrics: list[Any], device: Any = None, execution_providers: Any = None
    ) -> MetricResult:
        """Returns Olive's MetricResult: one number for each metric and sub type.

        Raises ConfigError when a metric asks for what the model does not have.
        """
        from evaluators.subjects import open_subjects

        subjects = open_subjects(model)
        if problems := metric_problems(metrics, subjects.tasks):
            raise ConfigError(problems)
        evaluation: dict[str, Any] = {**subjects.description(), "quality": [], "latency": [], "sizes": []}
        results: dict[str, SubMetricResult] = {}
        for metric in metrics:
            if metric.type == "accuracy":
                values = _measure_quality(evaluation, subjects, metric)
            elif metric.type == "latency":
                values = _measure_latency(evaluation, subjects, metric)
            else:
                evaluation["sizes"] = evaluation["sizes"] or size_columns(subjects)
                values = {"bytes": _measured(evaluation["sizes"][-1])}
            for sub in metric.sub_types:
                results[joint_metric_key(metric.name, str(sub.name))] = SubMetricResult(
                    value=values[str(sub.name)], priority=sub.priority, higher_is_better=sub.higher_is_better
                )
        subjects.record(evaluation)
        return MetricResult.model_validate(results)


def _measure_quality(evaluation: dict[str, Any], subjects: Any, metric: Any) -> dict[str, float]:
    adapter = _adapter_of(metric, subjects.tasks)
    columns = quality_columns(subjects, str(adapter), load_data(metric.data_config))
    goals = {_score(sub): (sub, _goal(metric, sub)) for sub in metric.sub_types}
    for name, column in columns.items():
        sub, goal = goals.get(name, (None, None))
        row = {"adapter": adapter, "metric": name, **column}
        row["higher_is_better"] = sub.higher_is_better if sub is not None else name != "perplexity"
        evaluation["quality"].append({**row, "goal": goal})
    return {str(sub.name): _measured(columns[_score(sub)]) for sub in metric.sub_types}


def _measure_latency(evaluation: dict[str, Any], subjects: Any, metric: Any) -> dict[str, float]:
    options, config = _options(metric), metric.sub_types[0].metric_config
    if not evaluation["latency"]:
        measuring = {**LATENCY_OPTIONS, **{k: v for k, v in options.items() if k in LATENCY_OPTIONS}}
        measuring |= {"repeats": config.repeat_test_num, "warmup": config.warmup_num}
        evaluation |= {"latency": latency_rows(subjects, **measuring), "latency_options": measuring}
    kind = PHASES[_phase(metric, subjects.tasks)]
    rows = {row["metric"]: row for row in evaluation["latency"] if row["adapter"] == options.get("adapter")}
    return {str(sub.name): _measured(rows[f"{kind}_{sub.name}_ms"]) for sub in metric.sub_types}


def check_metrics(evaluator: Any, tasks: dict[str, str]) -> list[str]:
    """What is wrong with an evaluator's metrics for adapters of these tasks; moves relative goals out of Olive's sight.

    Olive resolves relative goals against the input model, which has no adapter and no head to measure.
    """
    for metric in evaluator.metrics:
        for sub in metric.sub_types:
            if sub.goal is not None and sub.goal.type != "threshold":
                goals = {**_options(metric).get("goals", {}), str(sub.name): sub.goal.model_dump()}
                metric.user_config.run_kwargs = {**_options(metric), "goals": goals}
                sub.goal = None
    return metric_problems(evaluator.metrics, tasks)


def metric_problems(metrics: list[Any], tasks: dict[str, str]) -> list[str]:
    """What is wrong with metrics for adapters of these tasks: {adapter name: "classification" | "generation"}."""
    problems = []
    for metric in metrics:
        where = f"evaluator.metrics.{metric.name}"
        adapter = _adapter_of(metric, tasks)
        if adapter is not None and adapter not in tasks:
            problems.append(f"{where}.run_kwargs.adapter: there is no adapter '{adapter}'; {nearest(adapter, tasks)}")
        elif metric.type == "accuracy" and adapter is None:
            problems.append(f"{where}: '{metric.name}' is no adapter of this workflow; {nearest(metric.name, tasks)}")
        elif metric.type == "accuracy":
            problems += _wrong_sub_types(where, metric, QUALITY[tasks[str(adapter)]])
            if metric.data_config is None:
                problems.append(f"{where}.data_config: is required, it names the rows to score")
        elif metric.type == "latency":
            phase = _phase(metric, tasks)
            phases = [p for p in PHASES if (p == "classify") == (tasks.get(str(adapter)) == "classification")]
            if phase not in phases:
                problems.append(f"{where}.run_kwargs.phase: '{phase}' does not fit here; {nearest(phase, phases)}")
            problems += _wrong_sub_types(where, metric, PERCENTILES)
            least = max(latency.LEAST_SAMPLES.values())
            if any(sub.metric_config.repeat_test_num < least for sub in metric.sub_types):
                problems.append(f"{where}.sub_types.metric_config.repeat_test_num: p90 needs {least} or more")
        elif metric.type != "size_on_disk":
            problems.append(f"{where}.type: '{metric.type}' is not measured; Valid: accuracy, latency, size_on_disk")
    return problems


def _wrong_sub_types(where: str, metric: Any, valid: tuple[str, ...]) -> list[str]:
    names = [str(sub.name) for sub in metric.sub_types]
    return [f"{where}.sub_types: '{n}' does not fit here; {nearest(n, valid)}" for n in names if n not in valid]


def _options(metric: Any) -> dict[str, Any]:
    return dict(getattr(metric.user_config, "run_kwargs", None) or {})


def _adapter_of(metric: Any, tasks: dict[str, str]) -> str | None:
    named = _options(metric).get("adapter")
    return named if named is not None else metric.name if metric.name in tasks else None


def _phase(metric: Any, tasks: dict[str, str]) -> str:
    classifies = tasks.get(str(_adapter_of(metric, tasks))) == "classification"
    return str(_options(metric).get("phase", "classify" if classifies else "output_token"))


def _score(sub: Any) -> str:
    """The score that a sub type of Olive's means; f1_score is macro unless its metric_config.average is weighted."""
    if sub.name == "f1_score":
        return "f1_weighted" if getattr(sub.metric_config, "average", None) == "weighted" else "f1_macro"
    return {"accuracy_score": "accuracy"}.get(str(sub.name), str(sub.name))


def _goal(metric: Any, sub: Any) -> dict[str, Any] | None:
    return sub.goal.model_dump() if sub.goal is not None else _options(metric).get("goals", {}).get(str(sub.name))


def _measured(column: dict[str, Any]) -> Any:
    return column["package"] if column.get("package") is not None else column["pytorch"]
