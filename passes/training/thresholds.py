"""From which probability on a label counts, chosen for each label on held-out rows; and the scores meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from transformers import EvalPrediction

from data.examples import MultiLabelData
from data.tokenizing import aggregate_windows
from evaluators.multilabel import multilabel_report

USUAL = 0.5  # where nothing says better
SCORES = ("f1_micro", "f1_macro")


def best_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> list[float]:
    """For each label the threshold with the best F1, half-way between two probabilities.

    Lipton et al. 2014 (arXiv:1402.1892): F1 is maximized label by label. A label that no row has gets 0.5.

    Args:
        probabilities: (rows, labels), each in 0..1.
        truth: bool (rows, labels).
    """
    thresholds = []
    for column, wanted in zip(probabilities.astype(np.float64).T, truth.T, strict=True):
        if not wanted.any():
            thresholds.append(USUAL)
            continue
        order = np.argsort(-column, kind="stable")
        values, found = column[order], np.cumsum(wanted[order])
        scores = 2 * found / (np.arange(1, len(values) + 1) + found[-1])  # F1 of taking the first 1, 2, ...
        following = np.append(values[1:], 0.0)
        scores[values == following] = -1.0  # equal probabilities are taken together; one of 0 takes every row
        best = int(scores.argmax())
        thresholds.append(float((values[best] + following[best]) / 2) if scores[best] > 0 else USUAL)
    return thresholds


def documents_of(prediction: tuple[np.ndarray, np.ndarray], windows: Sequence[int]) -> np.ndarray:
    """Logits (documents, labels) of the Trainer's (logits (windows, labels), index (windows,)): the mean of windows."""
    logits, index = prediction
    return aggregate_windows(logits[np.argsort(index)].astype(np.float32), windows)


class MultiLabelScores:
    """The Trainer's compute_metrics for several labels a text: micro and macro F1 at a threshold of 0.5, in 0..1."""

    def __init__(self, data: MultiLabelData, label_names: Sequence[str], windows: Sequence[int]) -> None:
        """`windows`: of each document, >= 1."""
        self.truth, self.label_names = data.label_matrix(label_names), list(label_names)
        self.windows = list(windows)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """NaN for both where a logit is no number or no label is on."""
        logits = documents_of(prediction.predictions, self.windows)
        if not np.isfinite(logits).all():
            return dict.fromkeys(SCORES, math.nan)
        report = multilabel_report(self.truth, logits >= 0, self.label_names)
        return {name: math.nan if report[name] is None else report[name] for name in SCORES}
