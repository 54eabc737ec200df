"""Rows by class: counted by Counter, not by the code that chooses them."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from data.balancing import balanced_rows

LABELS = ["ham"] * 70 + ["spam"] * 20 + ["news"] * 9
Random(0).shuffle(LABELS)


def chosen(option: Any) -> Counter[str]:
    return Counter(LABELS[place] for place in balanced_rows(LABELS, option))


def test_oversampling_keeps_every_row_and_repeats_evenly() -> None:
    places = balanced_rows(LABELS, "oversample")
    assert places[: len(LABELS)] == list(range(len(LABELS)))
    assert chosen("oversample") == {"ham": 70, "spam": 70, "news": 70}
    times = Counter(places)
    for label in ("ham", "spam", "news"):
        own = [times[place] for place, name in enumerate(LABELS) if name == label]
        assert min(own) >= 1 and max(own) - min(own) <= 1


def test_undersampling_repeats_none() -> None:
    places = balanced_rows(LABELS, "undersample")
    assert places == sorted(set(places))
    assert chosen("undersample") == {"ham": 9, "spam": 9, "news": 9}


@pytest.mark.parametrize("method", ["oversample", "undersample"])
def test_target_shares(method: str) -> None:
    shares = {"ham": 0.5, "spam": 0.3, "news": 0.2}
    counts = chosen({"method": method, "shares": shares})
    total = counts.total()
    assert all(abs(counts[label] - share * total) <= 1 for label, share in shares.items())
    had = Counter(LABELS)
    if method == "oversample":
        assert counts["ham"] == 70 and all(counts[label] >= had[label] for label in had)
    else:
        assert counts["news"] == 9 and all(counts[label] <= had[label] for label in had)


def test_the_seed_decides() -> None:
    one, two = ({"method": "undersample", "seed": seed} for seed in (1, 2))
    assert balanced_rows(LABELS, one) == balanced_rows(LABELS, one) != balanced_rows(LABELS, two)
    assert balanced_rows(["a", "b"], "oversample") == [0, 1]
