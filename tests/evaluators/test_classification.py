from __future__ import annotations

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score

from evaluators.classification import SCORES, classification_scores


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
