"""Scores on the held-out rows while an adapter is trained: for training.json, and for who watches the run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.tokenizing import aggregate_windows
from evaluators.classification import classification_scores
from evaluators.intermediate_values import report, wanted

SCORES = ("accuracy", "f1_macro")
PROGRESS_SECONDS = 2  # between two reports of steps: enough for an eye


class DocumentScores:
    """The Trainer's compute_metrics of a classifier: {"accuracy", "f1_macro"} of documents, each in 0..1.

    The logits of a document's overlapping windows are averaged, as `evaluators.measuring` does it, so these are the
    scores that the evaluation finds for the same weights. NaN for both where a logit is no number.
    """

    def __init__(self, labels: Sequence[str], label_names: Sequence[str], windows: Sequence[int]) -> None:
        """`labels`: of each document; `label_names`: in the order of the logits; `windows`: of each document, >= 1."""
        self.labels, self.label_names, self.windows = list(labels), list(label_names), list(windows)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Takes (logits (windows, classes), index (windows,)): the Trainer goes through the rows in its own order."""
        logits, index = prediction.predictions
        documents = aggregate_windows(logits[np.argsort(index)].astype(np.float32), self.windows)
        if not np.isfinite(documents).all():
            return dict.fromkeys(SCORES, math.nan)
        chosen = [self.label_names[i] for i in documents.argmax(axis=1)]
        scores = classification_scores(self.labels, chosen, self.label_names)
        return {name: scores[name] for name in SCORES}


class ReportValidation(TrainerCallback):
    """Reports each validation and, now and then, the steps done; gives a generation adapter its perplexity.

    That is exp(validation loss), which weighs the Trainer's batches alike; the evaluation weighs tokens alike.
    """

    def __init__(self, adapter_name: str, writes: bool) -> None:
        """`writes`: the adapter generates text."""
        self.adapter_name, self.writes = adapter_name, writes
        self.validations = 0
        self._reported = -math.inf  # seconds of the monotonic clock

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if wanted() and time.monotonic() - self._reported >= PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self._report({"progress": [state.global_step, state.max_steps]})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self.validations += 1
        if self.writes and "eval_loss" in metrics:
            metrics["eval_perplexity"] = state.log_history[-1]["eval_perplexity"] = perplexity(metrics["eval_loss"])
        found = {
            name: metrics.get(f"eval_{name}")
            for name in ("loss", *(("perplexity",) if self.writes else (*SCORES, "f1_micro")))
        }
        numbers = {name: value if math.isfinite(value) else None for name, value in found.items() if value is not None}
        self._report({"step": self.validations, "values": numbers})

    def _report(self, line: dict[str, Any]) -> None:
        report({"stage": "training", "adapter": self.adapter_name, **line})


def perplexity(loss: float) -> float:
    """exp of a mean negative log-likelihood in nats; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
