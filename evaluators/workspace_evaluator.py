"""The evaluator that workflows name: scores adapters on the PyTorch model and on the package with the same functions.

Metrics are Olive's own types. Quality (accuracy_score, f1_score, perplexity) belongs to the adapter that the metric is
named after:

    {"name": "spam", "type": "accuracy", "data_config": "spam_validation",
     "sub_types": [{"name": "accuracy_score", "priority": 1, "goal": {"type": "threshold", "value": 0.9}}]}

Every other score of evaluators/quality.py comes by Olive's type "custom", and bias and robustness cases as "pass_rate"
(generation) or "flip_rate" (classification), where the evaluator's "metric_options" say how (see ANSWERING):

    {"name": "blurbs_text", "type": "custom", "data_config": "blurbs_validation",
     "sub_types": [{"name": "rouge_l", "priority": 3, "higher_is_better": true}, {"name": "chrf"}]}
    "metric_options": {"blurbs_text": {"adapter": "blurbs", "max_new_tokens": 64}}

Latency (p50, p90 in ms) is that of output tokens of the base; size_on_disk is that of the whole package. The
evaluator's own "metric_options" change that for a metric: {"latency": {"adapter": NAME, "phase": "first_token",
"prompt_tokens": 64, "new_tokens": 32}} (Olive drops a metric's user_config on its way to the evaluator).
A goal of type threshold holds for the package; the relative ones (max-degradation, percent-max-degradation,
min-improvement, percent-min-improvement) compare the package with the PyTorch model that has the same adapter.
On a machine that lacks the package's provider its quality and latency are not measured, and their goals do not count.
Everything measured is also written to evaluation.json beside the model: the table that a run ends with. Finished parts
of a run that was killed are kept in the cache, and the next run goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.evaluator.metric_result import MetricResult, SubMetricResult, joint_metric_key
from olive.evaluator.olive_evaluator import OliveEvaluator
from olive.evaluator.registry import Registry

from data.examples import load_data
from evaluators import latency
from evaluators.case_quality import CASES
from evaluators.case_quality import SCORES as CASE_SCORES
from evaluators.cases import read_cases
from evaluators.finished_parts import FinishedParts
from evaluators.quality import CLASSIFICATION, GENERATION, LOWER_IS_BETTER, STRUCTURED, AnswerOptions
from evaluators.scoring import adapter_cases, adapter_quality, latency_rows, quality_rows, size_columns
from evaluators.structured import read_schema
from runtime.errors import ConfigError, DataError, OlivalError, nearest

EVALUATOR_TYPE = "OlivalEvaluator"
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
# Schema; file of cases
ANSWERING = ("max_new_tokens", "stop", "schema", "cases")
PERCENTILES = tuple(f"p{p}" for p in latency.TABLE_PERCENTILES)
PHASES = {"first_token": "ttft", "output_token": "tpot", "classify": "classify"}
LATENCY_OPTIONS = {"prompt_tokens": 32, "new_tokens": 32}


@Registry.register(EVALUATOR_TYPE)
class WorkspaceEvaluator(OliveEvaluator):
    """Evaluates an HfModel with trained adapters, or a package; see the module's docstring."""

    def __init__(
        self,
        metric_options: dict[str, dict[str, Any]] | None = None,
        relative_goals: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.metric_options = metric_options or {}
        self.relative_goals = relative_goals or {}  # filled in by check_metrics: {metric-sub type: goal}

    def evaluate(
        self, model: Any, metrics: list[Any], device: Any = None, execution_providers: Any = None
    ) -> MetricResult:
        """Returns Olive's MetricResult: one number for each metric and sub type.

        Raises ConfigError when a metric asks for what the model does not have.
        """
        from evaluators.subjects import evaluation_file, open_subjects

        subjects = open_subjects(model)
        if problems := metric_problems(metrics, subjects.tasks, self.metric_options):
            raise ConfigError(problems)
        evaluation: dict[str, Any] = {
            **subjects.description(),
            "quality": [],
            "latency": [],
            "sizes": [],
            "details": {},
        }
        results: dict[str, SubMetricResult] = {}
        parts = FinishedParts(evaluation_file().with_name("evaluation-parts"))
        for metric in metrics:
            if metric.type in ("accuracy", "custom"):
                values = self._measure_quality(evaluation, subjects, metric, parts)
            elif metric.type == "latency":
                values = self._measure_latency(evaluation, subjects, metric)
            else:
                evaluation["sizes"] = evaluation["sizes"] or size_columns(subjects)
                evaluation["sizes"][-1] |= self._goal(metric, metric.sub_types[0])
                values = {"bytes": _measured(evaluation["sizes"][-1])}
            for sub in metric.sub_types:
                results[joint_metric_key(metric.name, str(sub.name))] = SubMetricResult(
                    value=values[str(sub.name)], priority=sub.priority, higher_is_better=sub.higher_is_better
                )
        if subjects.not_executed:
            for row in [*evaluation["quality"], *evaluation["latency"]]:
                row["not_measured"] = True
        subjects.record(evaluation)
        parts.clear()
        return MetricResult.model_validate(results)

    def _measure_quality(
        self, evaluation: dict[str, Any], subjects: Any, metric: Any, parts: FinishedParts
    ) -> dict[str, float]:
        adapter = str(metric_adapter(metric, subjects.tasks, self.metric_options))
        sub_types = {_score(sub): sub for sub in metric.sub_types}
        wanted = ROWS[subjects.tasks[adapter]] if metric.type == "accuracy" else list(sub_types)
        options = answer_options(self.metric_options.get(metric.name, {}))
        data = load_data(metric.data_config) if metric.data_config is not None else None
        details: dict[str, Any] = {"adapter": adapter}
        evaluation["details"][metric.name] = details
        rows = []
        if scores := [score for score in wanted if score not in CASES_OF_ALL]:
            quality = adapter_quality(subjects, adapter, data, scores, options, parts)
            rows += quality_rows(adapter, quality)
            details |= quality.details
        if scores := [score for score in wanted if score in CASES_OF_ALL]:
            file = Path(self.metric_options.get(metric.name, {}).get("cases", CASES))
            quality = adapter_cases(subjects, adapter, file, data, options.max_new_tokens, parts)
            rows += [row for row in quality_rows(adapter, quality) if row["metric"] in scores]
            details["cases"] = quality.details
        measured = {}
        for row in rows:
            name = row["metric"]
            row |= {"higher_is_better": name not in LOWER, "goal": None}
            if name in sub_types:
                row |= self._goal(metric, sub_types[name])
            evaluation["quality"].append(row)
            measured[name] = _measured(row)
        return {str(sub.name): measured[_score(sub)] for sub in metric.sub_types}

    def _measure_latency(self, evaluation: dict[str, Any], subjects: Any, metric: Any) -> dict[str, float]:
        options, config = self.metric_options.get(metric.name, {}), metric.sub_types[0].metric_config
        if not evaluation["latency"]:
            measuring = {name: options.get(name, default) for name, default in LATENCY_OPTIONS.items()}
            measuring |= {"repeats": config.repeat_test_num, "warmup": config.warmup_num}
            evaluation |= {"latency": latency_rows(subjects, **measuring), "latency_options": measuring}
        adapter = metric_adapter(metric, subjects.tasks, self.metric_options)
        kind = PHASES[_phase(adapter, subjects.tasks, options)]
        rows = {row["metric"]: row for row in evaluation["latency"] if row["adapter"] == adapter}
        for sub in metric.sub_types:
            rows[f"{kind}_{sub.name}_ms"] |= self._goal(metric, sub)
        return {str(sub.name): _measured(rows[f"{kind}_{sub.name}_ms"]) for sub in metric.sub_types}

    def _goal(self, metric: Any, sub: Any) -> dict[str, Any]:
        """What a row says of its goal: threshold ones come by Olive, relative ones by check_metrics."""
        relative = self.relative_goals.get(joint_metric_key(metric.name, str(sub.name)))
        goal = sub.goal.model_dump() if sub.goal is not None else relative
        return {"higher_is_better": sub.higher_is_better, "goal": goal}


def check_metrics(evaluator: Any, tasks: dict[str, str]) -> list[str]:
    """What is wrong with an evaluator's metrics for adapters of these tasks; moves relative goals out of Olive's sight.

    Olive resolves relative goals against the input model, which has no adapter and no head to measure.
    """
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
            phase = _phase(adapter, tasks, options)
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
    if metric.data_config is None and any(_score(sub) not in CASES_OF_ALL for sub in metric.sub_types):
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
    if "cases" in options:
        if not any(sub.name in CASES_OF_ALL for sub in metric.sub_types):
            problems.append(f"{where}.cases: none of the metric's scores uses it; those are {', '.join(CASES_OF_ALL)}")
        try:
            read_cases(Path(str(options["cases"])))
        except OlivalError as error:
            problems.append(f"{where}.cases: {error}")
    structured = [str(sub.name) for sub in metric.sub_types if sub.name in STRUCTURED]
    if "schema" in options:
        try:
            read_schema(Path(str(options["schema"])))
        except DataError as error:
            problems.append(f"{where}.schema: {error}")
        if not structured:
            problems.append(f"{where}.schema: none of the metric's scores uses it; those are {', '.join(STRUCTURED)}")
    elif "schema_valid" in structured:
        problems.append(f"{where}.schema: schema_valid needs it, the file of a JSON Schema")
    return problems


def answer_options(options: dict[str, Any]) -> AnswerOptions:
    """A metric's options, checked before, as how to write answers."""
    schema = read_schema(Path(options["schema"])) if "schema" in options else None
    most = options.get("max_new_tokens", AnswerOptions.max_new_tokens)
    return AnswerOptions(most, tuple(options.get("stop", ())), schema)


def _wrong_sub_types(where: str, metric: Any, valid: tuple[str, ...]) -> list[str]:
    names = [str(sub.name) for sub in metric.sub_types]
    return [f"{where}.sub_types: '{n}' does not fit here; {nearest(n, valid)}" for n in names if n not in valid]


def metric_adapter(metric: Any, tasks: dict[str, str], metric_options: dict[str, dict[str, Any]]) -> str | None:
    """The adapter that a metric measures: the one its options name, or the one it is named after; None is the base."""
    named: str | None = metric_options.get(metric.name, {}).get("adapter")
    return named if named is not None else metric.name if metric.name in tasks else None


def _phase(adapter: str | None, tasks: dict[str, str], options: dict[str, Any]) -> str:
    classifies = tasks.get(str(adapter)) == "classification"
    return str(options.get("phase", "classify" if classifies else "output_token"))


def _score(sub: Any) -> str:
    """The score that a sub type of Olive's means; f1_score is macro unless its metric_config.average is weighted."""
    if sub.name == "f1_score":
        return "f1_weighted" if getattr(sub.metric_config, "average", None) == "weighted" else "f1_macro"
    return {"accuracy_score": "accuracy"}.get(str(sub.name), str(sub.name))


def _measured(column: dict[str, Any]) -> Any:
    return column["package"] if column.get("package") is not None else column["pytorch"]
