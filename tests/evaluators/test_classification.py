from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from evaluators.classification import (
    MOST_MATRIX_CLASSES,
    REPORT_SCORES,
    SCORES,
    classification_report,
    classification_scores,
)
from runtime.errors import DataError


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    names = [f"class {number}" for number in range(draw.randint(2, 6))]
    expected = [*names, *draw.choices(names, k=40)]
    predicted = [name if draw.random() < 0.6 else draw.choice(names) for name in expected]
    scores = classification_scores(expected, predicted, names)
    assert list(scores) == list(SCORES)
    assert scores["accuracy"] == pytest.approx(accuracy_score(expected, predicted))
    for average in ("macro", "weighted"):
        reference = f1_score(expected, predicted, labels=names, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(reference)


def test_a_class_that_is_never_predicted_counts_with_zero() -> None:
    """a: precision 3/4, recall 1, F1 6/7. b: never predicted, F1 0. c: right, F1 1."""
    scores = classification_scores(["a", "a", "a", "b", "c"], ["a", "a", "a", "a", "c"], ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["f1_macro"] == pytest.approx((6 / 7 + 0 + 1) / 3)
    assert scores["f1_weighted"] == pytest.approx((3 * 6 / 7 + 0 + 1) / 5)


def test_a_class_that_is_predicted_but_absent_counts_with_zero() -> None:
    """a: precision 1, recall 1/2, F1 2/3. b: not expected, F1 0, weight 0. A class in neither list does not count."""
    scores = classification_scores(["a", "a"], ["a", "b"], ["a", "b", "c"])
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["f1_weighted"] == pytest.approx(2 / 3)


def test_perfect_predictions() -> None:
    assert classification_scores(["a", "b"], ["a", "b"], ["a", "b"]) == {score: 1.0 for score in SCORES}


@pytest.mark.parametrize(("expected", "predicted"), [([], []), (["a"], ["a", "b"])])
def test_empty_and_unequal_lists_are_errors(expected: list[str], predicted: list[str]) -> None:
    with pytest.raises(ValueError, match="equally long and not empty"):
        classification_scores(expected, predicted, ["a", "b"])


def random_labels(seed: int, classes: int, rows: int) -> tuple[list[str], list[str], list[str]]:
    """Class names, expected and predicted ones; the last class occurs in neither list."""
    draw = random.Random(seed)
    names = [f"class {number}" for number in range(classes)]
    expected = draw.choices(names[:-1], k=rows)
    predicted = [name if draw.random() < 0.6 else draw.choice(names[:-1]) for name in expected]
    return names, expected, predicted


@pytest.mark.parametrize(("seed", "classes", "rows"), [(0, 3, 50), (1, 7, 40), (2, 60, 30), (3, 300, 500)])
def test_reports_agree_with_torchmetrics_and_scikit_learn(seed: int, classes: int, rows: int) -> None:
    names, expected, predicted = random_labels(seed, classes, rows)
    report = classification_report(expected, predicted, names)
    occurring = [name for name in names if name in {*expected, *predicted}]
    codes: Any = [torch.tensor([names.index(label) for label in labels]) for labels in (predicted, expected)]
    measures: dict[str, Any] = {
        "precision": multiclass_precision,
        "recall": multiclass_recall,
        "f1": multiclass_f1_score,
    }
    assert list(report)[: len(REPORT_SCORES)] == list(REPORT_SCORES)
    assert report["accuracy"] == pytest.approx(accuracy_score(expected, predicted))
    for average in ("macro", "micro", "weighted"):
        options: Any = {"labels": occurring, "average": average, "zero_division": 0}
        references = precision_recall_fscore_support(expected, predicted, **options)
        for position, (kind, measure) in enumerate(measures.items()):
            value = report[f"{kind}_{average}"]
            assert value == pytest.approx(references[position]), (kind, average)
            assert value == pytest.approx(float(measure(*codes, classes, average)), abs=1e-6), (kind, average)
    by_class = {kind: measure(*codes, classes, "none").tolist() for kind, measure in measures.items()}
    for index, name in enumerate(names):
        scores: dict[str, Any] = {kind: pytest.approx(values[index], abs=1e-6) for kind, values in by_class.items()}
        scores = scores if name in occurring else dict.fromkeys(measures)
        assert report["per_class"][name] == {**scores, "support": expected.count(name)}
    matrix = multiclass_confusion_matrix(codes[0], codes[1], classes)
    assert report["confusion_matrix"] == matrix.tolist()
    assert report["confusion_matrix_missing"] is None
    assert {score: report[score] for score in SCORES} == pytest.approx(
        classification_scores(expected, predicted, names)
    )


def test_a_report_made_by_hand() -> None:
    """As in the test of a class that is never predicted; b's precision is 0 / 0, d is in neither list."""
    report = classification_report(["a", "a", "a", "b", "c"], ["a", "a", "a", "a", "c"], ["a", "b", "c", "d"])
    assert report["confusion_matrix"] == [[3, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert report["per_class"]["a"] == {"precision": 0.75, "recall": 1.0, "f1": pytest.approx(6 / 7), "support": 3}
    assert report["per_class"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert report["per_class"]["d"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert report["precision_macro"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert report["recall_weighted"] == report["f1_micro"] == report["accuracy"] == pytest.approx(0.8)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("names", [["só"], ["só", "outra"], ["ham\0", "ham", "0", "日本 ", "日本"]])
def test_one_class_and_names_of_any_kind(names: list[str]) -> None:
    report = classification_report(names[:1] * 3 + names[1:], names[:1] * 3 + names[1:], names)
    assert [report[score] for score in REPORT_SCORES] == [1.0] * len(REPORT_SCORES)
    assert report["per_class"][names[0]]["support"] == 3


def test_a_matrix_of_too_many_classes_is_left_out_with_the_reason() -> None:
    names = [str(number) for number in range(MOST_MATRIX_CLASSES + 1)]
    report = classification_report(names, names[::-1], names)
    assert report["confusion_matrix"] is None
    assert report["confusion_matrix_missing"] == "1001 classes; a matrix is made of up to 1000"
    assert len(report["per_class"]) == 1001


@pytest.mark.parametrize(
    ("expected", "predicted", "names", "message"),
    [
        ([], [], ["a"], "equally long and not empty: 0, 0"),
        (["a"], ["a", "a"], ["a"], "equally long and not empty: 1, 2"),
        (["a"], ["A"], ["a", "b"], "labels that are not in label_names: 'A'; Valid: "),
        (["a"] * 9, [f"z{i}" for i in range(9)], ["a"], "'z0', 'z1', 'z2', 'z3', 'z4', …; Valid: a"),
        (["colour 7"], ["color 7"], [f"colour {i}" for i in range(99)], "Nearest of 99: colour 7"),
        (["a"], ["a"], ["a", "b", "a"], "label_names lists twice: a"),
    ],
)
def test_unusable_labels_are_named(expected: list[str], predicted: list[str], names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_report(expected, predicted, names)
