"""Scores of predicted labels: accuracy, macro and weighted F1 (by scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence

SCORES = ("accuracy", "f1_macro", "f1_weighted")  # each in 0..1, higher is better


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
