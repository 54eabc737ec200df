"""What a workflow may say of metrics, and everything that is wrong with what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.json_schema import read_schema
from evaluators import latency
from evaluators.case_quality import SCORES as CASE_SCORES
from evaluators.cases import read_cases
from evaluators.constrained import answer_tokens
from evaluators.quality import CLASSIFICATION, GENERATION, LABEL, LOWER_IS_BETTER, STRUCTURED
from runtime.errors import DataError, OlivalError, nearest

# Olive's sub types of the type "accuracy" by the adapter's task, and the rows that they bring into the table
QUALITY = {"classification": ("accuracy_score", "f1_score"), "generation": ("perplexity",)}
ROWS = {"classification": ("accuracy", "f1_macro", "f1_weighted"), "generation": ("perplexity",)}
LOWER = (*LOWER_IS_BETTER, "flip_rate")
CASES_OF_ALL = CASE_SCORES["classification"]
# sub types of the type "custom"
SCORES = {
    "classification": (*CLASSIFICATION, *CASE_SCORES["classification"]),
    "generation": (*GENERATION, *CASE_SCORES["generation"]),
}
# what metric_options say of a "custom" metric, beside the adapter: tokens; texts that end an answer; file of a JSON
# Schema; whether answers are held to it; file of cases; what stands before a written label
ANSWERING = ("max_new_tokens", "stop", "schema", "constrained", "cases", "answer_mark")
PERCENTILES = tuple(f"p{p}" for p in latency.TABLE_PERCENTILES)
PHASES = {"first_token": "ttft", "output_token": "tpot", "classify": "classify"}
LATENCY_OPTIONS = {"prompt_tokens": 32, "new_tokens": 32}


def check_metrics(evaluator: Any, tasks: dict[str, str]) -> list[str]:
    """What is wrong with an evaluator's metrics for adapters of these tasks; moves relative goals out of Olive's sight.

    Olive resolves relative goals against the input model, which has no adapter and no head to measure.
    """
    from olive.evaluator.metric_result import joint_metric_key

    options = dict(evaluator.type_args or {})
    goals = dict(options.get("relative_goals") or {})
    for metric in evaluator.metrics:
        for sub in metric.sub_types:
            if sub.goal is not None and sub.goal.type != "threshold":
                goals[joint_metric_key(metric.name, str(sub.name))] = sub.goal.model_dump()
                sub.goal = None
    evaluator.type_args = {**options, **({"relative_goals": goals} if goals else {})}
    unknown = set(options) - {"metric_options", "relative_goals"}
    problems = [
        f"evaluator.{key}: unknown option; {nearest(key, ['metric_options', 'metrics'])}" for key in sorted(unknown)
    ]
    return problems + metric_problems(evaluator.metrics, tasks, options.get("metric_options") or {})


def metric_problems(metrics: list[Any], tasks: dict[str, str], metric_options: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with metrics for adapters of these tasks: {adapter name: "classification" | "generation"}."""
    names = [metric.name for metric in metrics]
    problems = [
        f"evaluator.metric_options: there is no metric '{name}'; {nearest(name, names)}"
        for name in metric_options
        if name not in names
    ]
    for metric in metrics:
        where, options = f"evaluator.metrics.{metric.name}", metric_options.get(metric.name, {})
        choices = ["adapter", *(ANSWERING if metric.type == "custom" else ("phase", *LATENCY_OPTIONS))]
        for key in sorted(set(options) - set(choices)):
            problems.append(f"evaluator.metric_options.{metric.name}.{key}: unknown option; {nearest(key, choices)}")
        for key, value in options.items():
            if key in LATENCY_OPTIONS and not (isinstance(value, int) and value > 1):  # one token has no time per token
                problems.append(f"evaluator.metric_options.{metric.name}.{key}: must be 2 or more, but got {value!r}")
        adapter = metric_adapter(metric, tasks, metric_options)
        if adapter is not None and adapter not in tasks:
            problems.append(f"{where}: there is no adapter '{adapter}'; {nearest(adapter, tasks)}")
        elif metric.type in ("accuracy", "custom") and adapter is None:
            problems.append(f"{where}: '{metric.name}' is no adapter of this workflow; {nearest(metric.name, tasks)}")
        elif metric.type == "accuracy":
            problems += _wrong_sub_types(where, metric, QUALITY[tasks[str(adapter)]]) + _quality_problems(where, metric)
        elif metric.type == "custom":
            problems += _wrong_sub_types(where, metric, SCORES[tasks[str(adapter)]]) + _quality_problems(where, metric)
            problems += _answer_problems(f"evaluator.metric_options.{metric.name}", metric, options)
        elif metric.type == "latency":
            phase = metric_phase(adapter, tasks, options)
            phases = [p for p in PHASES if (p == "classify") == (tasks.get(str(adapter)) == "classification")]
            if phase not in phases:
                problems.append(f"{where}: phase '{phase}' does not fit here; {nearest(phase, phases)}")
            problems += _wrong_sub_types(where, metric, PERCENTILES)
            least = max(latency.LEAST_SAMPLES[p] for p in latency.TABLE_PERCENTILES)
            if few := [n for sub in metric.sub_types if (n := sub.metric_config.repeat_test_num) < least]:
                problems.append(
                    f"{where}.sub_types.metric_config.repeat_test_num: p90 needs {least} or more, but got {few[0]}"
                )
        elif metric.type != "size_on_disk":
            problems.append(
                f"{where}.type: '{metric.type}' is not measured; Valid: accuracy, custom, latency, size_on_disk"
            )
    return problems


def _quality_problems(where: str, metric: Any) -> list[str]:
    problems = []
    for sub in metric.sub_types:
        higher = sub.name not in LOWER
        if metric.type == "custom" and sub.goal is None and sub.priority == -1:
            sub.higher_is_better = higher  # Olive's default, false; without goal and priority it decides nothing
        if sub.higher_is_better != higher:  # goals need it right
            problems.append(f"{where}.sub_types.{sub.name}.higher_is_better: must be {str(higher).lower()}")
    if metric.data_config is None and any(score_of(sub) not in CASES_OF_ALL for sub in metric.sub_types):
        problems.append(f"{where}.data_config: is required, it names the rows to score")
    return problems


def _answer_problems(where: str, metric: Any, options: dict[str, Any]) -> list[str]:
    """What is wrong with how a metric of type "custom" has answers written."""
    problems = []
    tokens, stop = options.get("max_new_tokens", 1), options.get("stop", [])
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        problems.append(f"{where}.max_new_tokens: must be a whole number from 1, but got {tokens!r}")
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        problems.append(f"{where}.stop: must be a list of texts, but got {stop!r}")
    if "answer_mark" in options:
        mark = options["answer_mark"]
        if not isinstance(mark, str) or not mark.strip():
            problems.append(f"{where}.answer_mark: must be text, but got {mark!r}")
        if not any(sub.name == LABEL for sub in metric.sub_types):
            problems.append(f"{where}.answer_mark: none of the metric's scores uses it; that is {LABEL}")
    if "cases" in options:
        if not any(sub.name in CASES_OF_ALL for sub in metric.sub_types):
            problems.append(f"{where}.cases: none of the metric's scores uses it; those are {', '.join(CASES_OF_ALL)}")
        try:
            read_cases(Path(str(options["cases"])))
        except OlivalError as error:
            problems.append(f"{where}.cases: {error}")
    structured = [str(sub.name) for sub in metric.sub_types if sub.name in STRUCTURED]
    constrained = options.get("constrained", False)
    if not isinstance(constrained, bool):
        problems.append(f"{where}.constrained: must be true or false, but got {constrained!r}")
    if "schema" in options:
        if not structured and constrained is not True:
            problems.append(f"{where}.schema: none of the metric's scores uses it; those are {', '.join(STRUCTURED)}")
        try:
            schema = read_schema(Path(str(options["schema"])))
        except DataError as error:
            return [*problems, f"{where}.schema: {error}"]
        try:
            if constrained is True and isinstance(tokens, int):
                answer_tokens(schema, options.get("max_new_tokens"))
        except DataError as error:
            problems.append(f"{where}.constrained: {error}")
    elif "schema_valid" in structured or constrained is True:
        user = "schema_valid" if "schema_valid" in structured else "constrained"
        problems.append(f"{where}.schema: {user} needs it, the file of a JSON Schema")
    return problems


def _wrong_sub_types(where: str, metric: Any, valid: tuple[str, ...]) -> list[str]:
    names = [str(sub.name) for sub in metric.sub_types]
    return [f"{where}.sub_types: '{n}' does not fit here; {nearest(n, valid)}" for n in names if n not in valid]


def metric_adapter(metric: Any, tasks: dict[str, str], metric_options: dict[str, dict[str, Any]]) -> str | None:
    """The adapter that a metric measures: the one its options name, or the one it is named after; None is the base."""
    named: str | None = metric_options.get(metric.name, {}).get("adapter")
    return named if named is not None else metric.name if metric.name in tasks else None


def metric_phase(adapter: str | None, tasks: dict[str, str], options: dict[str, Any]) -> str:
    classifies = tasks.get(str(adapter)) == "classification"
    return str(options.get("phase", "classify" if classifies else "output_token"))


def score_of(sub: Any) -> str:
    """The score that a sub type of Olive's means; f1_score is macro unless its metric_config.average is weighted."""
    if sub.name == "f1_score":
        return "f1_weighted" if getattr(sub.metric_config, "average", None) == "weighted" else "f1_macro"
    return {"accuracy_score": "accuracy"}.get(str(sub.name), str(sub.name))
