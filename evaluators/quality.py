"""Every quality score of an adapter on held-out rows, side by side for the models at hand, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.teacher_answers import ANSWER_MARK, label_rights
from evaluators.classification import classification_report
from evaluators.constrained import SUFFIX
from evaluators.intermediate_values import wanted as watched
from evaluators.intervals import (
    LEAST_ROWS,
    classification_intervals,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    proportion_interval,
)
from evaluators.measuring import Measuring
from evaluators.multilabel_quality import chosen_labels, compare, multilabel_scores
from evaluators.perplexity import RowScore
from evaluators.structured import structured_scores
from evaluators.text_overlap import text_scores
from runtime.errors import DataError

AVERAGES = ("macro", "micro", "weighted")
CLASSIFICATION = (
    "accuracy",
    *(f"{score}_{average}" for score in ("f1", "precision", "recall") for average in AVERAGES),
)
LIKELIHOOD = ("perplexity", "bits_per_byte")
OVERLAP = ("exact_match", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l")
STRUCTURED = ("json_valid", "schema_valid", "json_exact", "fields_mean")
LABEL = "label_accuracy"
WRITTEN = (*OVERLAP, *STRUCTURED, LABEL)  # of answers, which need a prompt
GENERATION = (*LIKELIHOOD, *WRITTEN)
LOWER_IS_BETTER = LIKELIHOOD
MOST_FIELDS = 12  # rows of a table for the fields of answers; those of larger ones stand in the details alone


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are written, and what they must keep.

    Attributes:
        max_new_tokens: most tokens of an answer.
        stop: texts that end an answer.
        schema: JSON Schema of the answers, for the structured scores; None checks JSON alone.
        constrained: hold the answers of models that can be held to the schema; only packages can.
        answer_mark: what stands before the label, for label_accuracy; see `data.teacher_answers.label_rights`.
    """

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    constrained: bool = False
    answer_mark: str = ANSWER_MARK


@dataclass
class Quality:
    """Scores of one adapter.

    Attributes:
        scores: {score: {model name: value}}; shares are in 0..1, BLEU and chrF in 0..100, perplexity per token.
        intervals: {score: {model name: (low, high)}}, bootstrap intervals that hold the score with 95 % confidence
            over the choice of rows; not every score has one.
        details: what does not fit into a table: scores of each class, the confusion matrix, fields, comparisons.
        rights: {model name: whether the label of each row is found}, where there is one label a row.
    """

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    rights: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, model: str, scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> None:
        for score, value in scores.items():
            self.scores.setdefault(score, {})[model] = value
        for score, pair in intervals.items():
            self.intervals.setdefault(score, {})[model] = pair


def classification_quality(
    measuring: Measuring, adapter: str, data: ClassificationData, wanted: Sequence[str]
) -> Quality:
    """`wanted` of CLASSIFICATION for each model, with the report of each class and, for two models, their difference.

    Raises:
        DataError: a label that the adapter was not trained on.
    """
    quality, predicted, logits = Quality(), {}, {}
    names = list(measuring.models)
    for name in reversed(names) if watched() else names:  # who watches may stop the run before the others are measured
        data.check_labels(measuring.models[name].labels(adapter))  # names a label that the adapter was not trained on
        logits[name] = measuring.class_logits(name, adapter, data)
    if isinstance(data, MultiLabelData):
        return _multilabel_quality(measuring, adapter, data, wanted, logits)
    for name in names:
        labels = measuring.models[name].labels(adapter)
        predicted[name] = [labels[i] for i in logits[name].argmax(axis=-1)]
        quality.rights[name] = [guess == label for guess, label in zip(predicted[name], data.labels, strict=True)]
        report = classification_report(data.labels, predicted[name], labels)
        intervals = classification_intervals(data.labels, predicted[name], labels) if len(data) >= LEAST_ROWS else {}
        quality.add(name, {s: report[s] for s in wanted}, {s: p for s, p in intervals.items() if s in wanted})
        quality.details[name] = {"labels": labels, **{k: report[k] for k in ("per_class", "confusion_matrix")}}
    if len(predicted) == 2:
        (first, before), (second, after) = predicted.items()
        compared = {"of": f"{second} against {first}", "mcnemar": mcnemar(data.labels, before, after)}
        quality.details["comparison"] = compared
    return quality


def _multilabel_quality(
    measuring: Measuring, adapter: str, data: MultiLabelData, wanted: Sequence[str], logits: Mapping[str, np.ndarray]
) -> Quality:
    """The same of texts with several labels, which reach their thresholds."""
    quality, guesses = Quality(), {}
    for name, model in measuring.models.items():
        labels = model.labels(adapter)
        truth, guesses[name] = data.label_matrix(labels), chosen_labels(model, adapter, logits[name])
        scores, intervals, quality.details[name] = multilabel_scores(truth, guesses[name], labels, wanted)
        quality.add(name, scores, intervals)
    if len(guesses) == 2:
        quality.details["comparison"] = compare(guesses, truth)
    return quality


def generation_quality(
    measuring: Measuring,
    adapter: str,
    data: GenerationData,
    wanted: Sequence[str],
    options: AnswerOptions,
    base: str | None = None,
) -> Quality:
    """`wanted` of GENERATION for each model; `base` names the one that is also measured without the adapter.

    With fields_mean come rows such as `$.mood`, the accuracy of each field (see `structured_scores`). Scores of answers
    under a constraint have `constrained.SUFFIX` in their names; the base then answers in a model that can be held so.
    """
    quality = Quality()
    columns: list[tuple[str, str, str | None]] = [(name, name, adapter) for name in measuring.models]
    if base is not None:
        columns.insert(0, ("base", base, None))
    if set(wanted) & set(LIKELIHOOD):
        rows: dict[str, Sequence[RowScore]] = {}
        for column, name, which in columns:
            rows[column] = measuring.likelihood(name, which, data)
            scores, intervals = likelihood_scores(rows[column])
            chosen = {s: value for s, value in scores.items() if s in wanted}
            quality.add(column, chosen, {s: pair for s, pair in intervals.items() if s in wanted})
        if len(measuring.models) == 2:
            first, second = measuring.models
            quality.details["comparison"] = {"of": f"{second} against {first}"}
            (before, tokens), (after, _) = _columns(rows[first]), _columns(rows[second])
            if len(tokens) >= LEAST_ROWS:
                quality.details["comparison"]["nats_per_token"] = paired_bootstrap(before, after, tokens)
    written = [score for score in WRITTEN if score in wanted]
    if not written:
        return quality
    if empty := [row + 1 for row, prompt in enumerate(data.prompts) if not prompt]:
        raise DataError(f"{data.source}: row {empty[0]} has no prompt, so there is no answer to score")
    for column, name, which in columns:
        if column == "base" and options.constrained:
            name = next((other for other, model in measuring.models.items() if model.constrains), name)
        held = options.schema if options.constrained and measuring.models[name].constrains else None
        answers = measuring.answers(name, which, data, options.max_new_tokens, options.stop, held)
        shown, scores = list(written), dict(text_scores(data.responses, answers)) if set(written) & set(OVERLAP) else {}
        if set(written) & set(STRUCTURED):
            structured = structured_scores(data.responses, answers, options.schema)
            scores |= {"json_exact": structured["exact"]}
            scores |= {key: structured[key] for key in ("json_valid", "schema_valid", "fields_mean")}
            patterns = structured["field_patterns"].items()
            fields = {f"{'$' if pattern[0] in '[$' else '$.'}{pattern}": value for pattern, value in patterns}
            if "fields_mean" in wanted and 1 < len(fields) <= MOST_FIELDS:
                scores |= fields
                shown += fields
            facts = {key: structured[key] for key in ("field_patterns", "fields", "problems")}
            quality.details.setdefault("structured", {})[column] = facts
        suffix = SUFFIX if options.constrained else ""
        if LABEL in wanted:
            rights = quality.rights[column] = label_rights(data.responses, answers, options.answer_mark)
            scores |= {LABEL: sum(rights) / len(rights)}
            interval = proportion_interval(sum(rights), len(rights))
            quality.intervals.setdefault(LABEL + suffix, {})[column] = interval
        quality.add(column, {s + suffix: scores[s] for s in shown}, {})
        quality.details.setdefault("answers", {})[column] = answers
    return quality


def likelihood_scores(
    rows: Sequence[RowScore],
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Token-weighted perplexity (exp of the mean negative log-likelihood) and bits per byte, and their intervals."""
    nats, tokens = _columns(rows)
    text_bytes = sum(row.text_bytes for row in rows)
    scores = {"perplexity": math.exp(nats.sum() / tokens.sum())}
    if text_bytes:
        scores["bits_per_byte"] = float(nats.sum()) / math.log(2) / text_bytes
    if len(nats) < LEAST_ROWS:
        return scores, {}
    low, high = mean_interval(nats, tokens)
    return scores, {"perplexity": (math.exp(low), math.exp(high))}


def _columns(rows: Sequence[RowScore]) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens, (rows,), of the rows that have a token to predict."""
    counted = [row for row in rows if row.tokens]
    return np.array([row.negative_log_likelihood for row in counted]), np.array([row.tokens for row in counted])
