"""Stacks adapters along the batch, so that each row of one run has its own: ranks and classes padded with zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.adapter_file import MAGNITUDE, read_adapter

CACHE_BYTES = 512 * 2**20  # of stacks, which are as large as all their rows' adapters together, that are kept for reuse


class AdapterFile(NamedTuple):
    """Where an adapter lies, and its sha256, which stands for its contents."""

    path: Path
    sha256: str


Rows = Sequence[AdapterFile | None]  # None: the base alone


def stack_key(rows: Rows) -> tuple[str, ...]:
    """What a run with these rows needs: nothing (), one adapter for all rows (sha256,), or one per row ("" for none).

    Two lists of rows with the same key are served by the same tensors.
    """
    key = tuple(row.sha256 if row else "" for row in rows)
    return key if len(set(key)) > 1 else key[:1] if any(key) else ()


def read_rows(rows: Rows) -> dict[str, np.ndarray]:
    """Tensors for `stack_key(rows)`: an adapter's own, or a stack. Each file is read once.

    Raises:
        PackageError: a file is missing or unreadable.
    """
    key = stack_key(rows)
    files = {row.sha256: row for row in rows if row}
    tensors = {sha256: read_adapter(file.path) for sha256, file in files.items()}
    return tensors[key[0]] if len(key) == 1 else stack([tensors.get(sha256, {}) for sha256 in key])


def stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Tensors (rows, m, n) from adapters' tensors (1, m, n), each padded to the largest m and n; dtypes stay.

    Padding A (1, in, r) and B (1, r, out) in r leaves their product as it is; a head (1, hidden, classes) gets classes
    whose logits are 0, which the caller cuts off. A row without a tensor gets zeros, and ones as its DoRA scale
    (1, 1, out), so it computes the base.
    """
    result = {}
    for name in sorted({name for row in rows for name in row}):
        parts = [row.get(name) for row in rows]
        there = [part for part in parts if part is not None]
        sizes = [max(part.shape[axis] for part in there) for axis in (1, 2)]
        result[name] = np.full((len(rows), *sizes), float(name.endswith(MAGNITUDE)), there[0].dtype)
        for target, part in zip(result[name], parts, strict=True):
            if part is not None:
                target[: part.shape[1], : part.shape[2]] = part[0]
    return result
