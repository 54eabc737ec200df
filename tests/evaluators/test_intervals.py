from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from evaluators.classification import REPORT_SCORES, classification_report
from evaluators.intervals import (
    classification_intervals,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_classification_bootstrap,
    proportion_interval,
)
from evaluators.resampling import CHUNK, resampled_counts, resampled_rows
from runtime.errors import DataError

NAMES = ["a", "b", "c"]
EXPECTED = ["a", "a", "b", "b", "c"]
FIRST = ["a", "b", "b", "a", "c"]
SECOND = ["a", "a", "b", "c", "c"]


def every_resample(rows: int) -> list[tuple[tuple[int, ...], float]]:
    """Each multiset of rows that a resample can be, with its probability."""
    counted = Counter(tuple(sorted(drawn)) for drawn in itertools.product(range(rows), repeat=rows))
    return [(drawn, count / rows**rows) for drawn, count in counted.items()]


def reference_scores(expected: list[str], predicted: list[str]) -> dict[str, float]:
    return scores_of_pairs(tuple(sorted(zip(expected, predicted, strict=True))))


@cache
def scores_of_pairs(pairs: tuple[tuple[str, str], ...]) -> dict[str, float]:
    """By scikit-learn alone, over the classes that occur."""
    expected, predicted = ([pair[side] for pair in pairs] for side in (0, 1))
    scores = {"accuracy": float(accuracy_score(expected, predicted))}
    for average in ("macro", "micro", "weighted"):
        options: Any = {"labels": sorted({*expected, *predicted}), "average": average, "zero_division": 0}
        values = precision_recall_fscore_support(expected, predicted, **options)
        scores |= {
            f"{kind}_{average}": float(v) for kind, v in zip(("precision", "recall", "f1"), values, strict=False)
        }
    return scores


def quantile(values: list[float], weights: list[float], share: float) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(reached, share)])


def test_classification_intervals_are_those_of_every_possible_resample() -> None:
    """5 rows have 126 resamples: their scores and probabilities give the interval without drawing anything."""
    resamples = every_resample(len(EXPECTED))
    weights = [weight for _, weight in resamples]
    scores = [reference_scores([EXPECTED[i] for i in drawn], [FIRST[i] for i in drawn]) for drawn, _ in resamples]
    measured = classification_intervals(EXPECTED, FIRST, NAMES, resamples=100_000, confidence=0.9)
    assert list(measured) == list(REPORT_SCORES)
    for name, (low, high) in measured.items():
        values = [round(score[name], 9) for score in scores]
        assert low == pytest.approx(quantile(values, weights, 0.05), abs=0.01), name
        assert high == pytest.approx(quantile(values, weights, 0.95), abs=0.01), name


def test_accuracy_is_binomial() -> None:
    """3 of 4 rows right: P(0 or 1 right) is 0.0508, P(0 right) 0.0039, so the 2.5 % point is one right of four."""
    assert classification_intervals(list("aabb"), list("aaba"), ["a", "b"])["accuracy"] == (0.25, 1.0)


def test_a_paired_bootstrap_is_that_of_every_possible_resample() -> None:
    resamples = every_resample(len(EXPECTED))
    weights = np.array([weight for _, weight in resamples])
    differences: dict[str, list[float]] = {name: [] for name in REPORT_SCORES}
    for drawn, _ in resamples:
        columns = [[column[i] for i in drawn] for column in (EXPECTED, FIRST, SECOND)]
        first, second = (reference_scores(columns[0], column) for column in columns[1:])
        for name in REPORT_SCORES:
            differences[name].append(round(second[name] - first[name], 9))
    measured = paired_classification_bootstrap(EXPECTED, FIRST, SECOND, NAMES, resamples=100_000)
    observed = [reference_scores(EXPECTED, column) for column in (FIRST, SECOND)]
    for name, result in measured.items():
        values = np.array(differences[name])
        not_better = min(weights[values <= 0].sum(), weights[values >= 0].sum())
        assert result["difference"] == pytest.approx(observed[1][name] - observed[0][name])
        assert result["p_value"] == pytest.approx(min(1, 2 * not_better), abs=0.01), name
        assert result["low"] == pytest.approx(quantile(differences[name], list(weights), 0.025), abs=0.01), name
        assert result["high"] == pytest.approx(quantile(differences[name], list(weights), 0.975), abs=0.01), name


def test_means_ratios_and_differences_agree_with_scipy() -> None:
    draw = np.random.default_rng(3)
    counts = draw.integers(1, 40, size=150).astype(float)
    first = counts * draw.gamma(2, 1, size=150)
    second = first * draw.normal(1.05, 0.3, size=150)

    def ratio(values: np.ndarray, units: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(values.sum(axis=axis) / units.sum(axis=axis))

    def reference(statistic: Any, *columns: np.ndarray) -> tuple[float, float]:
        options: dict[str, Any] = {"method": "percentile", "n_resamples": 20_000, "paired": True, "rng": 5}
        interval = scipy.stats.bootstrap(columns, statistic, **options).confidence_interval
        return float(interval.low), float(interval.high)

    near = 0.02 * float(np.std(first / counts))  # about three times what 20,000 resamples leave open
    assert mean_interval(first) == pytest.approx(reference(np.mean, first), rel=0.01)
    assert mean_interval(first, counts) == pytest.approx(reference(ratio, first, counts), abs=near)
    for units in (None, counts):
        result = paired_bootstrap(first, second, units)
        divisor = np.ones(150) if units is None else units
        scale = near if units is not None else near * float(counts.mean())
        assert result["difference"] == pytest.approx(float(ratio(second, divisor) - ratio(first, divisor)))
        assert (result["low"], result["high"]) == pytest.approx(reference(ratio, second - first, divisor), abs=scale)


def test_p_values_at_both_ends() -> None:
    same = paired_bootstrap([1, 2, 3], [1, 2, 3])
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    always_better = paired_bootstrap([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], resamples=999)
    assert always_better == {"difference": 0.5, "low": 0.5, "high": 0.5, "p_value": 2 / 1000}
    assert paired_bootstrap([1.5, 2.5, 3.5], [1.0, 2.0, 3.0], resamples=999)["p_value"] == 2 / 1000
    for result in paired_classification_bootstrap(EXPECTED, FIRST, FIRST, NAMES).values():
        assert result == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    """200 test sets of 200 rows, from classifiers that are right with probability 0.8."""
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        right = draw.random(200) < 0.8
        low, high = classification_intervals(["x"] * 200, np.where(right, "x", "y").tolist(), ["x", "y"], 1000, seed)[
            "accuracy"
        ]
        held += low <= 0.8 <= high
    assert 0.91 * 200 <= held <= 0.985 * 200


@pytest.mark.parametrize("classes", [2, 40, 400])
def test_the_score_itself_lies_within(classes: int) -> None:
    draw = np.random.default_rng(classes)
    names = [f"class {number}" for number in range(classes)]
    expected = draw.choice(names, size=500)
    predicted = np.where(draw.random(500) < 0.7, expected, draw.choice(names, size=500))
    report = classification_report(expected.tolist(), predicted.tolist(), names)
    intervals = classification_intervals(expected.tolist(), predicted.tolist(), names, resamples=500)
    # macro averages of rare classes are biased in resamples, where many of the classes do not occur
    scores = [score for score in REPORT_SCORES if classes < 400 or not score.endswith("macro")]
    assert all(intervals[score][0] <= report[score] <= intervals[score][1] for score in scores)
    assert intervals == classification_intervals(expected.tolist(), predicted.tolist(), names, resamples=500)
    assert intervals != classification_intervals(expected.tolist(), predicted.tolist(), names, resamples=500, seed=1)


def test_mcnemar_made_by_hand() -> None:
    """Only the first is right in 1 row, only the second in 9: 2 * (C(10, 0) + C(10, 1)) / 2**10."""
    expected = ["y"] * 14
    first, second = ["y"] * 3 + ["n"] * 11, ["y"] * 2 + ["n"] + ["y"] * 9 + ["n"] * 2
    assert mcnemar(expected, first, second) == {"only_first": 1, "only_second": 9, "p_value": pytest.approx(22 / 1024)}
    assert mcnemar(expected, first, first) == {"only_first": 0, "only_second": 0, "p_value": 1.0}
    assert mcnemar(["a", "b"], ["a", "b"], ["b", "b"])["p_value"] == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (8, 10), (10, 10), (1, 1), (950, 1000)])
def test_proportions_follow_the_formula_of_wilson(successes: int, trials: int) -> None:
    z, share = scipy.stats.norm.ppf(0.975), successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    assert proportion_interval(successes, trials) == pytest.approx((middle - half, middle + half), abs=1e-9)


@pytest.mark.parametrize("rows", [2, 3, 7, 100, 65_535, 65_536, 65_537, 100_000])
def test_every_row_is_drawn_with_the_same_probability(rows: int) -> None:
    """Counts of drawn rows (in up to 50 groups) pass a chi-squared test; a resample has as many rows as there are."""
    resamples = max(3, 20_000 // rows)
    chunks = list(resampled_rows(rows, resamples, np.random.default_rng(0)))
    assert {chunk.shape[1] for chunk in chunks} == {rows}
    drawn = np.concatenate(chunks)
    assert len(drawn) == resamples and int(drawn.max()) < rows
    groups = min(rows, 50)
    counts = np.bincount(drawn.ravel().astype(np.int64) * groups // rows, minlength=groups)
    sizes = np.bincount(np.arange(rows) * groups // rows, minlength=groups)
    assert scipy.stats.chisquare(counts, sizes / rows * drawn.size).pvalue > 0.001


@pytest.mark.parametrize("counts", [[5], [1, 1, 1], [30, 50], [200, 1, 3, 40, 2, 9, 10]])
def test_counts_of_cells_are_multinomial(counts: list[int]) -> None:
    """Means, variances and covariances, frequent and rare cells together."""
    cells = np.array(counts)
    rows, shares = cells.sum(), cells / cells.sum()
    drawn = np.concatenate(list(resampled_counts(cells, 40_000, np.random.default_rng(0))))
    assert drawn.shape == (40_000, len(cells)) and (drawn.sum(axis=1) == rows).all()
    covariance = rows * (np.diag(shares) - np.outer(shares, shares))
    error = np.sqrt(np.diag(covariance) / 40_000)
    assert (np.abs(drawn.mean(axis=0) - cells) <= 4 * error).all()
    np.testing.assert_allclose(
        np.cov(drawn.T).reshape(covariance.shape), covariance, atol=0.03 * covariance.max() + 1e-9
    )


def test_resamples_longer_than_a_chunk_come_one_by_one() -> None:
    chunks = list(resampled_rows(CHUNK + 1, 2, np.random.default_rng(0)))
    assert [chunk.shape for chunk in chunks] == [(1, CHUNK + 1)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification_intervals([], [], ["a"]), "equally long and not empty: 0, 0"),
        (lambda: classification_intervals(["a"], ["a"], ["a"]), "needs 2 rows or more, but got 1"),
        (lambda: classification_intervals(["a", "a"], ["a"], ["a"]), "equally long and not empty: 2, 1"),
        (lambda: classification_intervals(["a", "a"], ["a", "z"], ["a"]), "not in label_names: 'z'"),
        (lambda: classification_intervals(["a"] * 2, ["a"] * 2, ["a"], 0), "resamples >= 1 .* got resamples=0"),
        (lambda: classification_intervals(["a"] * 2, ["a"] * 2, ["a"], confidence=95), "confidence=95"),
        (lambda: paired_classification_bootstrap(["a"], ["a"], [], ["a"]), "equally long and not empty: 1, 1, 0"),
        (lambda: mean_interval([]), "needs 2 rows or more, but got 0"),
        (lambda: mean_interval([1.0, math.nan]), r"values\[1\] must be a finite number, but got nan"),
        (lambda: mean_interval([1.0, 2.0], [1]), r"equally long lists, .* values \(2,\), counts \(1,\)"),
        (lambda: mean_interval([1.0, 2.0], [1, 0]), r"counts\[1\] must be above 0: leave out .* but got 0.0"),
        (lambda: mean_interval(np.ones((2, 1))), r"values \(2, 1\)"),
        (lambda: paired_bootstrap([1, 2], [1, math.inf]), r"second\[1\] must be a finite number, but got inf"),
        (lambda: paired_bootstrap([1, 2], [1, 2, 3]), r"first \(2,\), second \(3,\)"),
        (lambda: proportion_interval(3, 2), "successes <= trials .* got 3 of 2"),
        (lambda: proportion_interval(0, 0), "got 0 of 0"),
        (lambda: mcnemar([], [], []), "equally long and not empty: 0, 0, 0"),
        (lambda: mcnemar(["a"], ["a"], []), "equally long and not empty: 1, 1, 0"),
    ],
)
def test_unusable_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_data_cause_is_an_error_of_the_workspace() -> None:
    with pytest.raises(DataError):
        mean_interval([1.0, math.nan])
