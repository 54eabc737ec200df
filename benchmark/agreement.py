"""Whether a package answers alike on two providers: the logits of the same token rows, each from its own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.parity import parity_scores
from runtime.errors import DataError


def agreement(reference: Path, measured: Path) -> list[dict[str, Any]]:
    """Compares two files of benchmark/outputs.py.

    Returns:
        One entry for the base (adapter None; an encoder has none) and each adapter: {"adapter", "top1_agreement",
        "kl_divergence" (nats, KL(reference || measured)), "max_abs_difference", "positions"}; a position is a token
        of a text, or a classified text.

    Raises:
        DataError: the files are of other rows or adapters, or logits are not finite; the adapter and row are named.
    """
    with np.load(reference, allow_pickle=False) as expected, np.load(measured, allow_pickle=False) as actual:
        _check(expected, actual, measured)
        owners = dict.fromkeys(name.rpartition(".")[0] for name in expected.files if not name.startswith("ids."))
        entries = []
        for owner in owners:
            names = [name for name in expected.files if name.rpartition(".")[0] == owner]
            scores = parity_scores(_finite(expected, names, reference), _finite(actual, names, measured))
            entries.append(
                {
                    "adapter": None if owner == "base" else owner.removeprefix("adapter."),
                    **{key: scores[key] for key in ("top1_agreement", "kl_divergence", "max_abs_difference")},
                    "positions": sum(len(expected[name]) for name in names),
                }
            )
    return entries


def _check(expected: Any, actual: Any, path: Path) -> None:
    if set(expected.files) != set(actual.files):
        odd = sorted(set(expected.files) ^ set(actual.files))
        raise DataError(f"{path}: its outputs are of other rows or adapters: {', '.join(odd[:3])}")
    for name in expected.files:
        theirs, ours = expected[name], actual[name]
        if theirs.shape != ours.shape or (name.startswith("ids.") and not np.array_equal(theirs, ours)):
            raise DataError(f"{path}: {_row(name)} is of another text or shape than the reference's")


def _finite(arrays: Any, names: list[str], path: Path) -> Iterator[np.ndarray]:
    """The arrays one by one: those of a large vocabulary need not all be in memory."""
    for name in names:
        array: np.ndarray = arrays[name]
        if not np.isfinite(array).all():
            raise DataError(f"{path}: logits of {_row(name)} are not finite")
        yield array


def _row(name: str) -> str:
    owner, _, row = name.rpartition(".")
    return f"{owner.replace('.', ' ', 1)}, row {row},"
