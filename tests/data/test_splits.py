from __future__ import annotations

import random
from collections import Counter

import pytest

from data.splits import count_repeats, find_duplicates, split_indices
from runtime.errors import DataError


@pytest.mark.parametrize("seed", range(20))
def test_a_split_is_disjoint_complete_stratified_and_repeatable(seed: int) -> None:
    draw = random.Random(seed)
    labels = [*draw.choices("abc", weights=[8, 3, 1], k=draw.randint(40, 300)), *"aabbcc"]
    fraction = draw.uniform(0.1, 0.3)
    train, validation = split_indices(len(labels), fraction, seed, labels)
    assert sorted(train + validation) == list(range(len(labels)))
    assert train == sorted(train) and validation == sorted(validation)
    share = len(validation) / len(labels)
    assert abs(share - fraction) <= 1 / len(labels)
    whole, part = Counter(labels), Counter(labels[index] for index in validation)
    assert all(abs(part[label] - whole[label] * share) <= 1 for label in whole)
    assert split_indices(len(labels), fraction, seed, labels) == (train, validation)
    assert split_indices(len(labels), fraction, seed + 1, labels) != (train, validation)


def test_a_split_without_labels() -> None:
    train, validation = split_indices(10, 0.15, 0)
    assert len(validation) == 2 and sorted(train + validation) == list(range(10))


@pytest.mark.parametrize(
    ("count", "fraction", "labels", "message"),
    [
        (10, 0, None, "0 < validation_fraction < 1"),
        (10, 1.0, None, "0 < validation_fraction < 1"),
        (10, "0.1", None, "0 < validation_fraction < 1"),
        (1, 0.5, None, r"1 row\(s\) cannot be split"),
        (5, 0.2, list("aaaab"), "class 'b' has a single row"),
        (6, 0.1, list("aabbcc"), "6 rows cannot be split with validation_fraction=0.1"),
        (3, 0.5, ["a"], "one label per row"),
    ],
)
def test_impossible_splits(count: int, fraction: float, labels: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_indices(count, fraction, 0, labels)


def test_duplicates_are_found_in_their_normalised_form() -> None:
    train = ["Free  PRIZE!", "hello", "stra\u00dfe", "hello", "caf\u00e9"]
    validation = ["free prize!", "new", " HELLO\n", "STRASSE", "cafe\u0301"]
    assert find_duplicates(train, validation) == [(0, 0), (1, 2), (2, 3), (4, 4)]
    assert find_duplicates(train, []) == []
    assert count_repeats(train) == 1
