"""Scores of predicted labels: accuracy, precision, recall, F1 and the confusion matrix (by scikit-learn)."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.errors import DataError

SCORES = ("accuracy", "f1_macro", "f1_weighted")  # each in 0..1, higher is better
KINDS = ("precision", "recall", "f1")
AVERAGES = ("macro", "micro", "weighted")
REPORT_SCORES = ("accuracy", *(f"{kind}_{average}" for kind in KINDS for average in AVERAGES))
# A report goes into a JSON file: a thousand classes are a million cells, and no one reads more.
MOST_MATRIX_CLASSES = 1000
LISTED = 5  # labels that an error lists; there may be thousands


def classification_scores(
    expected: Sequence[str], predicted: Sequence[str], label_names: Sequence[str]
) -> dict[str, float]:
    """Accuracy, macro F1 and weighted F1 of two equally long label lists.

    A class that is never predicted counts with F1 0, as does one that is predicted but absent from `expected`.
    Raises ValueError for empty or unequal lists.

    >>> classification_scores(["ham", "spam"], ["ham", "ham"], ["ham", "spam"])["accuracy"]
    0.5
    """
    from sklearn.metrics import accuracy_score, f1_score

    if not expected or len(expected) != len(predicted):
        raise ValueError(
            f"expected and predicted must be equally long and not empty: {len(expected)}, {len(predicted)}"
        )
    present = [name for name in label_names if name in set(expected) | set(predicted)]
    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "f1_macro": float(f1_score(expected, predicted, labels=present, average="macro", zero_division=0)),
        "f1_weighted": float(f1_score(expected, predicted, labels=present, average="weighted", zero_division=0)),
    }


def classification_report(
    expected: Sequence[str], predicted: Sequence[str], label_names: Sequence[str]
) -> dict[str, Any]:
    """All scores of two equally long label lists, each in 0..1.

    Returns {"accuracy", "precision_macro", "precision_micro", "precision_weighted", the same for recall and f1,
    "per_class": {label: {"precision", "recall", "f1", "support"}}, "confusion_matrix": rows (expected) of counts by
    column (predicted), both in the order of `label_names`, "confusion_matrix_missing": why that is None, else None}.

    Macro averages run over the classes that occur in either list, as in `classification_scores`; there, a score that
    would be 0 / 0 is 0. A class that occurs in neither has a support of 0 and no scores (None). With one label a row,
    micro precision, recall and F1 all equal accuracy.
    Raises DataError for empty or unequal lists and for labels that are not in `label_names`.
    """
    rows, columns = label_codes((expected, predicted), label_names)
    classes = len(label_names)
    present = np.union1d(rows, columns)
    report: dict[str, Any] = {"accuracy": float((rows == columns).mean())}
    report |= averaged_scores(rows, columns, present, AVERAGES)
    report["per_class"] = class_scores(rows, columns, present, label_names)
    fits = classes <= MOST_MATRIX_CLASSES
    report["confusion_matrix"] = None
    if fits:
        counts = np.bincount(rows * classes + columns, minlength=classes**2)
        report["confusion_matrix"] = counts.reshape(classes, classes).tolist()
    too_many = f"{classes} classes; a matrix is made of up to {MOST_MATRIX_CLASSES}"
    report["confusion_matrix_missing"] = None if fits else too_many
    return report


def averaged_scores(expected: Any, predicted: Any, present: np.ndarray, averages: Sequence[str]) -> dict[str, float]:
    """{"precision_macro": ..., ...} over the classes `present`, each in 0..1.

    Both inputs are class indices (rows,) or, for rows of several labels, sparse indicators (rows, labels).
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores: dict[str, float] = {}
    for average in averages:
        options = {"labels": present, "average": average, "zero_division": 0}
        values = precision_recall_fscore_support(expected, predicted, **options)
        scores |= {f"{kind}_{average}": float(value) for kind, value in zip(KINDS, values[:3], strict=True)}
    return {f"{kind}_{average}": scores[f"{kind}_{average}"] for kind in KINDS for average in averages}


def class_scores(
    expected: Any, predicted: Any, present: np.ndarray, label_names: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """{label: {"precision", "recall", "f1", "support"}} of such inputs; classes not `present` have no scores."""
    from sklearn.metrics import precision_recall_fscore_support

    table: dict[str, dict[str, float | int | None]]
    table = {name: {**dict.fromkeys(KINDS), "support": 0} for name in label_names}
    columns = precision_recall_fscore_support(expected, predicted, labels=present, average=None, zero_division=0)
    for index, *scores, support in zip(present.tolist(), *(column.tolist() for column in columns), strict=True):
        table[label_names[index]] = {**dict(zip(KINDS, scores, strict=True)), "support": support}
    return table


def label_codes(columns: Sequence[Sequence[str]], label_names: Sequence[str]) -> list[np.ndarray]:
    """Each column of labels as int64 (rows,) indices into `label_names`.

    Raises DataError when the columns are empty or not equally long, a name is listed twice, or a label is not listed.
    """
    lengths = [len(column) for column in columns]
    if not all(lengths) or len(set(lengths)) != 1:
        raise DataError(f"lists of labels must be equally long and not empty: {', '.join(map(str, lengths))}")
    check_names(label_names)
    index = {name: position for position, name in enumerate(label_names)}
    unknown = sorted({str(label) for column in columns for label in set(column) if label not in index})
    if unknown:
        listed = ", ".join(map(repr, unknown[:LISTED])) + (", …" if len(unknown) > LISTED else "")
        near = difflib.get_close_matches(unknown[0], list(map(str, label_names)), n=LISTED, cutoff=0)
        valid = "Valid" if len(near) == len(label_names) else f"Nearest of {len(label_names)}"
        raise DataError(f"labels that are not in label_names: {listed}; {valid}: {', '.join(near)}")
    return [np.array([index[label] for label in column], dtype=np.int64) for column in columns]


def check_names(label_names: Sequence[str]) -> None:
    """Raises DataError when a name is listed twice."""
    if twice := sorted(str(name) for name, count in Counter(label_names).items() if count > 1):
        raise DataError(f"label_names lists twice: {', '.join(twice)}")
