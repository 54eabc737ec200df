"""Seeded train/validation splits, and texts that stand in both parts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from runtime.errors import DataError


def split_indices(
    count: int, fraction: float, seed: int, labels: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Splits the rows 0..count-1 at random; with `labels`, each class keeps its share within one row.

    Args:
        count: number of rows, at least 2.
        fraction: share of the validation part, 0 < fraction < 1; 0.1 to 0.2 is usual. Rounded up to whole rows.
        seed: the same seed gives the same split.
        labels: one label per row.

    Returns:
        (train indices, validation indices), both ascending, disjoint, together complete, neither empty.

    Raises:
        DataError: a fraction outside (0, 1), too few rows, a class with one row, fewer rows in a part than classes.
    """
    from sklearn.model_selection import train_test_split

    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise DataError(f"0 < validation_fraction < 1 must hold (0.1 to 0.2 is usual), but it is {fraction!r}")
    if count < 2:
        raise DataError(f"{count} row(s) cannot be split into two parts")
    if labels is not None:
        if len(labels) != count:
            raise DataError(f"there must be one label per row, but there are {len(labels)} labels for {count} rows")
        single = sorted(label for label, rows in Counter(labels).items() if rows == 1)
        if single:
            raise DataError(
                f"class {single[0]!r} has a single row and cannot stand in both parts of a stratified split; "
                "add rows, remove the class, or split without labels"
            )
    try:
        train, validation = train_test_split(
            range(count), test_size=float(fraction), random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise DataError(f"{count} rows cannot be split with validation_fraction={fraction}: {error}") from error
    return sorted(train), sorted(validation)


def normalise(text: str) -> str:
    """The form in which two texts count as the same: Unicode NFKC, case folded, runs of white space made one blank.

    >>> normalise("  O\\ufb01cina,\\n MUNDO ")
    'oficina, mundo'
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def find_duplicates(texts_a: Sequence[str], texts_b: Sequence[str]) -> list[tuple[int, int]]:
    """Finds the texts of `texts_b` that also stand in `texts_a`, compared in their normalised form.

    Returns:
        One pair (i, j) for each such text `texts_b[j]`, in the order of j; i is its first place in `texts_a`.

    >>> find_duplicates(["Free prize!", "hi"], ["hello", "free  PRIZE!"])
    [(0, 1)]
    """
    first: dict[str, int] = {}
    for index, text in enumerate(texts_a):
        first.setdefault(normalise(text), index)
    keys = [normalise(text) for text in texts_b]
    return [(first[key], index) for index, key in enumerate(keys) if key in first]


def count_repeats(texts: Sequence[str]) -> int:
    """How many texts repeat an earlier one, in the normalised form."""
    return len(texts) - len({normalise(text) for text in texts})
