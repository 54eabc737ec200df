"""The evaluator that workflows name: scores adapters on the PyTorch model and on the package with the same functions.

Metrics are Olive's own types. Quality (accuracy_score, f1_score, perplexity) belongs to the adapter that the metric is
named after:

    {"name": "spam", "type": "accuracy", "data_config": "spam_validation",
     "sub_types": [{"name": "accuracy_score", "priority": 1, "goal": {"type": "threshold", "value": 0.9}}]}

Every other score of evaluators/quality.py comes by Olive's type "custom", and bias and robustness cases as "pass_rate"
or "flip_rate" (classification), where the evaluator's "metric_options" say how (see `metric_check.ANSWERING`):

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

from functools import partial
from pathlib import Path
from typing import Any

from olive.evaluator.metric_result import MetricResult, SubMetricResult, joint_metric_key
from olive.evaluator.olive_evaluator import OliveEvaluator
from olive.evaluator.registry import Registry

from data.examples import read_data
from data.json_schema import read_schema
from data.teacher_answers import ANSWER_MARK
from data.teaching import Unanswered
from evaluators.case_quality import CASES
from evaluators.constrained import SUFFIX, answer_tokens
from evaluators.continual import read_reports
from evaluators.distillation import add_student, teacher_rights
from evaluators.finished_parts import FinishedParts
from evaluators.metric_check import (
    CASES_OF_ALL,
    LATENCY_OPTIONS,
    LOWER,
    PHASES,
    ROWS,
    metric_adapter,
    metric_phase,
    metric_problems,
    score_of,
)
from evaluators.quality import AnswerOptions
from evaluators.scoring import adapter_cases, adapter_quality, latency_rows, quality_rows, size_columns
from runtime.errors import ConfigError

EVALUATOR_TYPE = "OlivalEvaluator"


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
            "continual": read_reports(subjects.folders),
            "distillation": [],
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
        sub_types = {score_of(sub): sub for sub in metric.sub_types}
        wanted = ROWS[subjects.tasks[adapter]] if metric.type == "accuracy" else list(sub_types)
        read = read_data(metric.data_config) if metric.data_config is not None else None
        taught = read if isinstance(read, Unanswered) else None
        data: Any = taught.truth if taught is not None else read
        chosen = self.metric_options.get(metric.name, {})
        options = answer_options({**({"answer_mark": taught.reading.mark} if taught is not None else {}), **chosen})
        details: dict[str, Any] = {"adapter": adapter}
        evaluation["details"][metric.name] = details
        rows = []
        if scores := [score for score in wanted if score not in CASES_OF_ALL]:
            quality = adapter_quality(subjects, adapter, data, scores, options, parts)
            rows += quality_rows(adapter, quality)
            details |= quality.details
            if taught is not None:
                ask = partial(teacher_rights, taught, subjects)
                add_student(evaluation["distillation"], taught, adapter, quality.rights, ask)
        if scores := [score for score in wanted if score in CASES_OF_ALL]:
            file = Path(self.metric_options.get(metric.name, {}).get("cases", CASES))
            quality = adapter_cases(subjects, adapter, file, data, options.max_new_tokens, parts)
            rows += [row for row in quality_rows(adapter, quality) if row["metric"] in scores]
            details["cases"] = quality.details
        measured = {}
        for row in rows:
            name = row["metric"].removesuffix(SUFFIX)
            row |= {"higher_is_better": name not in LOWER, "goal": None}
            title = (row["adapter"], row["metric"])
            if any(title == (other["adapter"], other["metric"]) for other in evaluation["quality"]):
                row["metric"] += f" ({metric.name})"  # the same score on other rows
            if name in sub_types:
                row |= self._goal(metric, sub_types[name])
            evaluation["quality"].append(row)
            measured[name] = _measured(row)
        return {str(sub.name): measured[score_of(sub)] for sub in metric.sub_types}

    def _measure_latency(self, evaluation: dict[str, Any], subjects: Any, metric: Any) -> dict[str, float]:
        options, config = self.metric_options.get(metric.name, {}), metric.sub_types[0].metric_config
        if not evaluation["latency"]:
            measuring = {name: options.get(name, default) for name, default in LATENCY_OPTIONS.items()}
            measuring |= {"repeats": config.repeat_test_num, "warmup": config.warmup_num}
            evaluation |= {"latency": latency_rows(subjects, **measuring), "latency_options": measuring}
        adapter = metric_adapter(metric, subjects.tasks, self.metric_options)
        kind = PHASES[metric_phase(adapter, subjects.tasks, options)]
        rows = {row["metric"]: row for row in evaluation["latency"] if row["adapter"] == adapter}
        for sub in metric.sub_types:
            rows[f"{kind}_{sub.name}_ms"] |= self._goal(metric, sub)
        return {str(sub.name): _measured(rows[f"{kind}_{sub.name}_ms"]) for sub in metric.sub_types}

    def _goal(self, metric: Any, sub: Any) -> dict[str, Any]:
        """What a row says of its goal: threshold ones come by Olive, relative ones by check_metrics."""
        relative = self.relative_goals.get(joint_metric_key(metric.name, str(sub.name)))
        goal = sub.goal.model_dump() if sub.goal is not None else relative
        return {"higher_is_better": sub.higher_is_better, "goal": goal}


def answer_options(options: dict[str, Any]) -> AnswerOptions:
    """A metric's options, checked before, as how to write answers."""
    schema = read_schema(Path(options["schema"])) if "schema" in options else None
    constrained = bool(options.get("constrained"))
    most = options.get("max_new_tokens", AnswerOptions.max_new_tokens)
    if constrained:
        most = answer_tokens(schema, options.get("max_new_tokens"))
    mark = options.get("answer_mark", ANSWER_MARK)
    return AnswerOptions(most, tuple(options.get("stop", ())), schema, constrained, mark)


def _measured(column: dict[str, Any]) -> Any:
    return column["package"] if column.get("package") is not None else column["pytorch"]
