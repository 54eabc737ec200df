"""Scores of rows that carry any number of labels, each on or off (by scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluators.classification import KINDS, averaged_scores, check_names, class_scores
from runtime.errors import DataError

AVERAGES = ("micro", "macro", "weighted", "samples")


def multilabel_report(expected: Any, predicted: Any, label_names: Sequence[str]) -> dict[str, Any]:
    """All scores of two bool (or 0 and 1) arrays (rows, labels).

    Returns {"subset_accuracy" (share of rows with every label right), "hamming_loss" (share of wrong cells, lower is
    better), "precision_micro", "_macro", "_weighted", "_samples" and the same for recall and f1, all in 0..1,
    "labels_present", "per_label": {label: {"precision", "recall", "f1", "support"}}}.

    Macro averages run over the labels that are expected or predicted in some row ("labels_present" of them), as for
    classes in `evaluators.classification`; there, a score that would be 0 / 0 is 0. A label that is on nowhere has a
    support of 0 and no scores (None). When that is every label, only subset_accuracy, hamming_loss and the samples
    averages are numbers. Samples averages are means over rows; a row without labels that is predicted without labels
    is right and counts 1.
    Raises DataError for arrays that are empty, of other shapes, or hold anything but 0 and 1 (probabilities).
    """
    from scipy.sparse import csr_array

    check_names(label_names)
    truth, guess = _indicators("expected", expected, label_names), _indicators("predicted", predicted, label_names)
    if truth.shape != guess.shape:
        raise DataError(f"expected has {truth.shape[0]} rows, predicted has {guess.shape[0]}")
    report: dict[str, Any] = {
        "subset_accuracy": float((truth == guess).all(axis=1).mean()),
        "hamming_loss": float((truth != guess).mean()),
    }
    present = np.flatnonzero((truth | guess).any(axis=0))
    if truth.shape[1] == 1:
        # scikit-learn would read one column as the classes 0 and 1; another label that is never on changes no score
        truth, guess = (np.hstack([column, np.zeros_like(column)]) for column in (truth, guess))
    if len(present):
        sparse = csr_array(truth.astype(np.int64)), csr_array(guess.astype(np.int64))  # labels are rare when many
        report |= averaged_scores(*sparse, present, AVERAGES)
        per_label = class_scores(*sparse, present, label_names)
    else:
        report |= {f"{kind}_{average}": 0.0 if average == "samples" else None for kind in KINDS for average in AVERAGES}
        per_label = {name: {**dict.fromkeys(KINDS), "support": 0} for name in label_names}
    empty_and_right = float((~(truth | guess).any(axis=1)).mean())  # scikit-learn counts these rows with 0
    report |= {f"{kind}_samples": report[f"{kind}_samples"] + empty_and_right for kind in KINDS}
    return {**report, "labels_present": len(present), "per_label": per_label}


def _indicators(which: str, given: Any, label_names: Sequence[str]) -> np.ndarray:
    """The array as bool (rows, labels), checked."""
    array = np.asarray(given)
    if array.ndim != 2 or 0 in array.shape or array.shape[1] != len(label_names):
        raise DataError(
            f"{which} must be (rows, labels) with at least one row and {len(label_names)} labels, "
            f"but has the shape {array.shape}"
        )
    wrong = np.argwhere((array != 0) & (array != 1))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{which} must hold only 0 and 1 (or bools), but row {row} has {array[row, column]} "
            f"for '{label_names[column]}'"
        )
    return array.astype(bool)
