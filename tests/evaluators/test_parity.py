from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax  # type: ignore[import-untyped]
from scipy.stats import entropy  # type: ignore[import-untyped]

from evaluators.parity import parity_scores


def test_scores_by_hand() -> None:
    """Two rows: one position of two classes, two positions of two classes."""
    even, skewed = [0.0, 0.0], [math.log(3), 0.0]  # probabilities (1/2, 1/2) and (3/4, 1/4)
    reference = [np.array([even]), np.array([skewed, skewed])]
    measured = [np.array([skewed]), np.array([skewed, [0.0, 1.0]])]
    scores = parity_scores(reference, measured)
    assert scores["max_abs_difference"] == pytest.approx(math.log(3))
    assert scores["mean_abs_difference"] == pytest.approx((math.log(3) + math.log(3) + 1) / 6)
    divergence = [
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        0.0,
        0.75 * math.log(0.75 * (1 + math.e)) + 0.25 * math.log(0.25 * (1 + math.e) / math.e),
    ]
    assert scores["kl_divergence"] == pytest.approx(sum(divergence) / 3)
    assert scores["top1_agreement"] == pytest.approx(2 / 3)  # argmax of (0, 0) is 0


@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_that_of_scipy_and_torch(seed: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = [(int(draw.integers(1, 9)), 50) for _ in range(4)]
    reference = [draw.normal(0, 3, shape).astype(np.float32) for shape in shapes]
    measured = [row + draw.normal(0, 0.5, row.shape).astype(np.float32) for row in reference]
    value = parity_scores(reference, measured)["kl_divergence"]
    p, q = np.concatenate(reference).astype(np.float64), np.concatenate(measured).astype(np.float64)
    assert value == pytest.approx(entropy(softmax(p, axis=1), softmax(q, axis=1), axis=1).mean(), rel=1e-9)
    by_torch = torch.nn.functional.kl_div(
        torch.from_numpy(q).log_softmax(1), torch.from_numpy(p).log_softmax(1), reduction="batchmean", log_target=True
    )
    assert value == pytest.approx(float(by_torch), rel=1e-9)


def test_equal_logits_and_a_shift_of_all() -> None:
    logits = [np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)]
    same = parity_scores(logits, logits)
    assert same == {
        "max_abs_difference": 0.0,
        "mean_abs_difference": 0.0,
        "kl_divergence": 0.0,
        "top1_agreement": 1.0,
    }
    shifted = parity_scores(logits, [logits[0].astype(np.float64) + 2.0])
    assert shifted["max_abs_difference"] == pytest.approx(2.0)
    assert shifted["kl_divergence"] == pytest.approx(0.0, abs=1e-12)


def test_unequal_lists_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        parity_scores([np.zeros((1, 2))], [])
