from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, hamming_loss, precision_recall_fscore_support
from torchmetrics.functional.classification import multilabel_f1_score, multilabel_precision, multilabel_recall

from evaluators.multilabel import AVERAGES, multilabel_report
from runtime.errors import DataError

KINDS = ("precision", "recall", "f1")


def random_labels(seed: int, rows: int, labels: int, share: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    draw = np.random.default_rng(seed)
    expected = draw.random((rows, labels)) < share
    predicted = expected ^ (draw.random((rows, labels)) < share / 2)
    return expected, predicted, [f"label {number}" for number in range(labels)]


@pytest.mark.parametrize(("seed", "rows", "labels", "share"), [(0, 50, 3, 0.5), (1, 30, 8, 0.1), (2, 40, 1200, 0.002)])
def test_reports_agree_with_torchmetrics_and_scikit_learn(seed: int, rows: int, labels: int, share: float) -> None:
    """Rows without labels and labels without rows are among these; the latter are no part of a macro average."""
    expected, predicted, names = random_labels(seed, rows, labels, share)
    present = np.flatnonzero((expected | predicted).any(axis=0))
    report = multilabel_report(expected, predicted, names)
    assert report["labels_present"] == len(present)
    assert report["subset_accuracy"] == pytest.approx(accuracy_score(expected, predicted))
    assert report["hamming_loss"] == pytest.approx(hamming_loss(expected, predicted))
    tensors: Any = [torch.from_numpy(array[:, present].astype(int)) for array in (predicted, expected)]
    measures: dict[str, Any] = {
        "precision": multilabel_precision,
        "recall": multilabel_recall,
        "f1": multilabel_f1_score,
    }
    for average in ("micro", "macro", "weighted"):
        options: Any = {"labels": present, "average": average, "zero_division": 0}
        references = precision_recall_fscore_support(expected, predicted, **options)
        for position, (kind, measure) in enumerate(measures.items()):
            value = report[f"{kind}_{average}"]
            assert value == pytest.approx(references[position]), (kind, average)
            assert value == pytest.approx(float(measure(*tensors, len(present), average=average)), abs=1e-6)
    by_label = {kind: measure(*tensors, len(present), average="none").tolist() for kind, measure in measures.items()}
    assert list(report["per_label"]) == names
    for index, name in enumerate(names):
        scores: dict[str, Any] = dict.fromkeys(KINDS)
        if index in present:
            place = present.tolist().index(index)
            scores = {kind: pytest.approx(by_label[kind][place], abs=1e-6) for kind in KINDS}
        assert report["per_label"][name] == {**scores, "support": expected[:, index].sum()}
    # F1 of a row is 0 / 0 only when it is empty and predicted empty, which counts 1 here
    reference = f1_score(expected, predicted, average="samples", zero_division=1)
    assert report["f1_samples"] == pytest.approx(reference)


def test_rows_made_by_hand() -> None:
    """Row 1: a and b expected, a predicted. Row 2: empty and right. Row 3: a predicted for nothing. c is on nowhere."""
    expected, predicted = [[1, 1, 0], [0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    report = multilabel_report(expected, predicted, ["a", "b", "c"])
    assert report["subset_accuracy"] == pytest.approx(1 / 3)
    assert report["hamming_loss"] == pytest.approx(2 / 9)
    assert report["precision_samples"] == pytest.approx((1 + 1 + 0) / 3)
    assert report["recall_samples"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert report["f1_samples"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert report["f1_micro"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert report["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert report["f1_weighted"] == pytest.approx((2 / 3 + 0) / 2)
    assert report["labels_present"] == 2
    assert report["per_label"]["c"] == {"precision": None, "recall": None, "f1": None, "support": 0}


@pytest.mark.parametrize("labels", [1, 3])
def test_rows_without_any_label_have_no_averages(labels: int) -> None:
    nothing = np.zeros((4, labels), bool)
    report = multilabel_report(nothing, nothing, [str(number) for number in range(labels)])
    numbers = {"subset_accuracy": 1.0, "hamming_loss": 0.0, "labels_present": 0}
    numbers |= {f"{kind}_samples": 1.0 for kind in KINDS}
    missing = {f"{kind}_{average}": None for kind in KINDS for average in AVERAGES if average != "samples"}
    assert {key: value for key, value in report.items() if key != "per_label"} == numbers | missing
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("predicted", [[[1], [0], [1]], [[0], [0], [0]], [[1], [1], [1]]])
def test_a_single_label_is_no_pair_of_classes(predicted: list[list[int]]) -> None:
    """The label's own precision, recall and F1, as of the positive class of a binary task."""
    expected = [[1], [1], [0]]
    report = multilabel_report(expected, predicted, ["only"])
    options: Any = {"average": "binary", "zero_division": 0}
    references = precision_recall_fscore_support(np.ravel(expected), np.ravel(predicted), **options)
    for kind, reference in zip(KINDS, references[:3], strict=True):
        for average in ("micro", "macro", "weighted"):
            assert report[f"{kind}_{average}"] == pytest.approx(reference)
        assert report["per_label"]["only"][kind] == pytest.approx(reference)
    assert report["hamming_loss"] == pytest.approx(float(np.mean(np.array(expected) != np.array(predicted))))


@pytest.mark.parametrize(
    ("expected", "predicted", "names", "message"),
    [
        ([], [], ["a"], r"expected must be \(rows, labels\)"),
        ([[]], [[]], [], r"has the shape \(1, 0\)"),
        ([0, 1], [0, 1], ["a", "b"], r"has the shape \(2,\)"),
        ([[1, 0]], [[1]], ["a", "b"], r"predicted must be .* 2 labels, but has the shape \(1, 1\)"),
        ([[1, 0]], [[1, 0], [1, 1]], ["a", "b"], "expected has 1 rows, predicted has 2"),
        ([[1, 0]], [[1, 0.5]], ["a", "b"], "predicted must hold only 0 and 1 .* row 0 has 0.5 for 'b'"),
        ([[1, np.nan]], [[1, 0]], ["a", "b"], "expected must hold only 0 and 1 .* row 0 has nan for 'b'"),
        ([[1, 0]], [[1, 0]], ["a", "a"], "label_names lists twice: a"),
    ],
)
def test_unusable_arrays_are_named(expected: Any, predicted: Any, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        multilabel_report(expected, predicted, names)
