from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from evaluators.parity import OPTIONS, SCORES, check_options, label_flips, parity_scores, violations


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


def test_logits_that_are_no_numbers_are_never_accepted() -> None:
    """float16 overflows: a NaN must not hide behind the other rows, whatever the bounds."""
    rows = [np.zeros((1, 2)), np.zeros((1, 2))]
    for broken in (np.nan, np.inf):
        scores = parity_scores(rows, [np.array([[broken, 0.0]]), rows[1]])
        assert violations("fp16", scores, OPTIONS) == ["fp16 logits are not finite"]
    assert violations("fp16", parity_scores(rows, rows), OPTIONS) == []


def test_flips_by_hand() -> None:
    reference = np.array([[math.log(3), 0.0], [0.0, math.log(3)], [0.0, 1.0]])
    measured = np.array([[0.0, math.log(4)], [0.0, math.log(9)], [0.0, 2.0]])
    assert label_flips(reference, measured, ["ham", "spam"]) == [
        {
            "row": 0,
            "pytorch": {"label": "ham", "probability": pytest.approx(0.75)},
            "package": {"label": "spam", "probability": pytest.approx(0.8)},
        }
    ]


SOME = {"max_abs_difference": 0.5, "mean_abs_difference": 0.1, "kl_divergence": 0.02, "top1_agreement": 0.9}


@pytest.mark.parametrize(
    ("bounds", "broken"),
    [
        ({}, []),
        ({"max_abs_difference": 0.5, "top1_agreement": 0.9, "label_flips": 3}, []),  # a bound itself is kept
        ({"max_abs_difference": 0.4}, ["int4 max_abs_difference is 0.5, but must be at most 0.4"]),
        ({"mean_abs_difference": 0.05}, ["int4 mean_abs_difference is 0.1, but must be at most 0.05"]),
        (
            {"kl_divergence": 0.01, "top1_agreement": 1, "label_flips": 2},
            [
                "int4 kl_divergence is 0.02, but must be at most 0.01",
                "int4 top1_agreement is 0.9, but must be at least 1",
                "int4 label_flips is 3, but must be at most 2",
            ],
        ),
    ],
)
def test_violations(bounds: dict[str, float], broken: list[str]) -> None:
    options = {**OPTIONS, **bounds}
    assert violations("int4", {**SOME, "label_flips": 3}, options) == broken
    assert violations("int4", SOME, options) == [line for line in broken if "label_flips" not in line]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, None),
        ({**dict.fromkeys(SCORES, 1), "samples": 16, "fp32_max_abs_difference": 1e-4}, None),
        ({**dict.fromkeys(SCORES), "samples": None}, None),
        ({"label_flips": 0, "top1_agreement": 0}, None),
        ({"top1_agrement": 0.9}, "top1_agrement: unknown key; did you mean 'top1_agreement'?"),
        ({"fp32_max_abs_difference": None}, "fp32_max_abs_difference: must be a number above 0, but got None"),
        ({"kl_divergence": 0}, "kl_divergence: must be a number above 0, but got 0"),
        ({"max_abs_difference": float("nan")}, "max_abs_difference: must be a number above 0, but got nan"),
        ({"mean_abs_difference": "0.1"}, "mean_abs_difference: must be a number above 0, but got '0.1'"),
        ({"top1_agreement": 1.5}, "top1_agreement: must be a number from 0 to 1, but got 1.5"),
        ({"label_flips": -1}, "label_flips: must be a whole number from 0, but got -1"),
        ({"label_flips": True}, "label_flips: must be a whole number from 0, but got True"),
        ({"samples": 0}, "samples: must be a whole number from 1, but got 0"),
        ({"samples": float("nan")}, "samples: must be a whole number from 1, but got nan"),
        ({"samples": 2.5}, "samples: must be a whole number from 1, but got 2.5"),
    ],
)
def test_options(given: dict[str, object], problem: str | None) -> None:
    problems = check_options(given)
    assert [p.startswith(f"parity.{problem}") for p in problems] == ([] if problem is None else [True])
