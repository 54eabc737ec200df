"""Scores of an adapter whose texts carry any number of labels, side by side for the models at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluators.intervals import LEAST_ROWS, mcnemar, mean_interval
from evaluators.multilabel import multilabel_report
from runtime.classification import reached
from runtime.errors import DataError


def chosen_labels(model: Any, adapter: str, logits: np.ndarray) -> np.ndarray:
    """bool (rows, labels): which probabilities reach their thresholds.

    Raises DataError when the adapter was trained for one label a text.
    """
    if (thresholds := model.thresholds(adapter)) is None:
        raise DataError(f"adapter '{adapter}' gives one label a text, but the data have several")
    return reached(logits, thresholds)


def multilabel_scores(
    truth: np.ndarray, guess: np.ndarray, labels: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Any]]:
    """(scores, 95 % intervals, details) of two bool arrays (rows, labels).

    The names are those of one label a text: accuracy is the share of rows with every label right, as scikit-learn has
    it; precision, recall and F1 are micro, macro or weighted over labels. Accuracy alone has an interval.
    Raises DataError when not a label is expected or predicted in any row.
    """
    report = multilabel_report(truth, guess, labels)
    report["accuracy"] = report["subset_accuracy"]
    if not report["labels_present"]:
        raise DataError("no row has a label, expected or predicted, so there is nothing to score")
    intervals: dict[str, tuple[float, float]] = {}
    if len(truth) >= LEAST_ROWS:
        intervals["accuracy"] = mean_interval((truth == guess).all(axis=1).astype(float))
    details = {key: report[key] for key in ("hamming_loss", "labels_present", "f1_samples", "per_label")}
    chosen = {key: pair for key, pair in intervals.items() if key in wanted}
    return {key: report[key] for key in wanted}, chosen, {"labels": list(labels), **details}


def compare(guesses: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, Any]:
    """McNemar's test of two models by name: which rows each has wholly right."""
    (first, before), (second, after) = guesses.items()
    rows = [[tuple(row) for row in matrix.tolist()] for matrix in (truth, before, after)]
    return {"of": f"{second} against {first}", "mcnemar": mcnemar(*rows)}
