"""How far a score would move on other rows: confidence intervals, and tests of a difference between two models.

Bootstrap intervals are percentile intervals (Efron 1979, "Bootstrap methods: another look at the jackknife"): rows of
the test set are drawn with replacement, as many as there are, and the interval holds the middle 95 % of the resamples'
scores. They cover the choice of the test rows, and nothing else: not another training seed, not other data. When
every row is right, all resamples are, and the interval has no width: then `proportion_interval` says more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluators.classification import REPORT_SCORES, label_codes
from evaluators.resampling import resampled_counts, resampled_rows
from runtime.errors import DataError

LEAST_ROWS = 2  # one row has nothing to vary: its interval would have no width
Interval = tuple[float, float]


def classification_intervals(
    expected: Sequence[str],
    predicted: Sequence[str],
    label_names: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """{score: (low, high)} for accuracy and macro, micro and weighted precision, recall and F1.

    Each resample is scored as `evaluators.classification.classification_report` would score it: macro averages run over
    the classes that occur in the resample.
    Raises DataError for fewer than 2 rows, unequal lists, or labels that are not in `label_names`.
    """
    _check_options(resamples, confidence)
    truth, guess = label_codes((expected, predicted), label_names)
    samples = _score_samples(truth, [guess], resamples, seed)[0]
    return {score: _interval(values, confidence) for score, values in samples.items()}


def paired_classification_bootstrap(
    expected: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    label_names: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, dict[str, float]]:
    """{score: {"difference", "low", "high", "p_value"}} of two models on the same rows, as `paired_bootstrap` says."""
    _check_options(resamples, confidence)
    truth, one, two = label_codes((expected, first, second), label_names)
    observed = [_cell_scorer(truth, guess)(np.ones((1, len(truth)), np.int64)) for guess in (one, two)]
    samples = _score_samples(truth, [one, two], resamples, seed)
    return {
        score: _comparison(float(observed[1][score][0] - observed[0][score][0]), samples[1][score] - values, confidence)
        for score, values in samples[0].items()
    }


def mean_interval(
    values: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The interval of sum(values) / sum(counts), both (rows,); without counts that of the mean.

    Perplexity: values are negative log-likelihoods summed over each row's tokens, counts its tokens, and exp of both
    ends is the interval of the perplexity (percentiles follow a monotone function).
    Raises DataError for fewer than 2 rows, unequal lists, values that are no finite numbers, or counts not above 0.
    """
    _check_options(resamples, confidence)
    (sums,), units = _row_values(counts, values=values)
    return _interval(_ratio_samples(sums, units, resamples, seed), confidence)


def paired_bootstrap(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Compares two models' values of the same rows: {"difference", "low", "high", "p_value"}.

    The difference is second minus first, of sum(values) / sum(counts) as in `mean_interval`; low and high are its
    percentile interval over resamples of rows that both models share (Koehn 2004, "Statistical significance tests for
    machine translation evaluation"). Koehn asks in which share of the resamples the better model is not better. The
    p-value is two-sided: twice that share, ties counted against the difference, and one resample added so that it is
    never 0 (Davison and Hinkley 1997, chapter 4). It is below 0.05 about where the 95 % interval leaves 0 out.
    With log-likelihoods and token counts, exp of the difference and of its interval is the ratio of two perplexities.
    Raises DataError as `mean_interval` does.
    """
    _check_options(resamples, confidence)
    (one, two), units = _row_values(counts, first=first, second=second)
    change = two - one
    difference = change.sum() / (len(change) if units is None else units.sum())
    return _comparison(float(difference), _ratio_samples(change, units, resamples, seed), confidence)


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of successes / trials (Wilson 1927), which also fits few trials, none and all right."""
    from scipy.stats import binomtest

    _check_options(1, confidence)
    if not 0 <= successes <= trials or trials < 1:
        raise DataError(f"0 <= successes <= trials and trials >= 1 must hold, but got {successes} of {trials}")
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(expected: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> dict[str, float | int]:
    """Exact McNemar test (1947) of two models' predictions for the same rows.

    Returns {"only_first": rows that only the first model gets right, "only_second", "p_value": two-sided}: were both
    equally good, only_first would be binomial with probability 1/2. 1 when the models never differ in being right.
    Raises DataError for empty or unequal lists.
    """
    from scipy.stats import binomtest

    if not len(expected) or not len(expected) == len(first) == len(second):
        lengths = f"{len(expected)}, {len(first)}, {len(second)}"
        raise DataError(f"expected, first and second must be equally long and not empty: {lengths}")
    right = [(bool(a == truth), bool(b == truth)) for truth, a, b in zip(expected, first, second, strict=True)]
    only_first, only_second = right.count((True, False)), right.count((False, True))
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p_value": p_value}


def _score_samples(
    truth: np.ndarray, guesses: list[np.ndarray], resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """For each model's guesses {score: float64 (resamples,)}; the resamples are the same for all of them.

    Rows that agree in every column are one cell, so that counting cells stands for drawing rows.
    """
    _check_rows(len(truth))
    cells, counts = np.unique(np.stack([truth, *guesses]), axis=1, return_counts=True)
    scorers = [_cell_scorer(cells[0], guess) for guess in cells[1:]]
    chunks = [
        [scorer(drawn) for scorer in scorers]
        for drawn in resampled_counts(counts, resamples, np.random.default_rng(seed))
    ]
    return [
        {score: np.concatenate([chunk[model][score] for chunk in chunks]) for score in REPORT_SCORES}
        for model in range(len(guesses))
    ]


def _cell_scorer(truth: np.ndarray, guess: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from int64 (resamples, cells) counts to {score: float64 (resamples,)}; a cell is a pair of classes."""
    from scipy.sparse import csr_array

    classes, codes = np.unique(np.concatenate([truth, guess]), return_inverse=True)
    cells, of_truth, of_guess = np.arange(len(truth)), codes[: len(truth)], codes[len(truth) :]
    shape, ones = (len(cells), len(classes)), np.ones(len(cells), np.int64)
    by_truth, by_guess = (csr_array((ones, (cells, of)), shape=shape) for of in (of_truth, of_guess))
    by_right = csr_array(((truth == guess).astype(np.int64), (cells, of_truth)), shape=shape)
    by_right.eliminate_zeros()

    def scores(counts: np.ndarray) -> dict[str, np.ndarray]:
        support, predicted, right = counts @ by_truth, counts @ by_guess, counts @ by_right
        rows, present = support.sum(axis=1), ((support + predicted) > 0).sum(axis=1)
        accuracy = right.sum(axis=1) / rows
        named = {"accuracy": accuracy}
        for kind, among in (("precision", predicted), ("recall", support), ("f1", (support + predicted) / 2)):
            by_class = np.divide(right, among, out=np.zeros(right.shape), where=among > 0)
            named[f"{kind}_macro"] = by_class.sum(axis=1) / present
            named[f"{kind}_micro"] = accuracy
            named[f"{kind}_weighted"] = (by_class * support).sum(axis=1) / rows
        return named

    return scores


def _ratio_samples(sums: np.ndarray, counts: np.ndarray | None, resamples: int, seed: int) -> np.ndarray:
    """sum(sums) / sum(counts) of each resample, float64 (resamples,); the mean of `sums` without counts."""
    samples = []
    for drawn in resampled_rows(len(sums), resamples, np.random.default_rng(seed)):
        rows = drawn.astype(np.intp)  # what numpy would do for each of the two look-ups
        samples.append(sums[rows].sum(axis=1) / (len(sums) if counts is None else counts[rows].sum(axis=1)))
    return np.concatenate(samples)


def _row_values(counts: Any = None, **columns: Any) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The columns and the counts as float64 (rows,), checked."""
    given = {**columns, **({} if counts is None else {"counts": counts})}
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in given.items()}
    if any(array.ndim != 1 for array in arrays.values()) or len({len(array) for array in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"a value for each row is needed, in equally long lists, but got the shapes {shapes}")
    for name, array in arrays.items():
        _check_rows(len(array))
        wrong = np.flatnonzero(~np.isfinite(array) | ((array <= 0) & (name == "counts")))
        if len(wrong):
            wanted = "above 0: leave out rows that count nothing" if name == "counts" else "a finite number"
            raise DataError(f"{name}[{wrong[0]}] must be {wanted}, but got {array[wrong[0]]}")
    return [arrays[name] for name in columns], arrays.get("counts")


def _comparison(difference: float, samples: np.ndarray, confidence: float) -> dict[str, float]:
    low, high = _interval(samples, confidence)
    tie = 1e-9 * np.abs(samples).max()  # equal averages may differ in their last bits
    not_better = min(int((samples <= tie).sum()), int((samples >= -tie).sum()))
    p_value = min(1.0, 2 * (not_better + 1) / (len(samples) + 1))
    return {"difference": difference, "low": low, "high": high, "p_value": p_value}


def _interval(samples: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_rows(rows: int) -> None:
    if rows < LEAST_ROWS:
        raise DataError(f"an interval over rows needs {LEAST_ROWS} rows or more, but got {rows}")


def _check_options(resamples: int, confidence: float) -> None:
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"resamples >= 1 and 0 < confidence < 1 must hold, but got resamples={resamples}, confidence={confidence}"
        )
