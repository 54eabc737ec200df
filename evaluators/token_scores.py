"""Batches for log-probabilities of given tokens: rows of like length together, logits only where they are read.

The logits of a batch are the largest thing that an evaluation holds, so a batch also ends where they would grow beyond
`LOGITS_BYTES`; a model hands them out one batch at a time and nothing keeps a second copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from runtime.errors import OlivalError
from runtime.session import pad_right

Scores = tuple[np.ndarray, np.ndarray]  # float64 log-probabilities (nats), bool "is the most probable token"
# ids and mask int64 (batch, seq), positions int64 (count,) -> logits (batch, count, vocab), NumPy or torch
SelectedLogits = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
# logits (count, vocab) of one row, which it may overwrite, and int64 ids (count,)
Reduce = Callable[[Any, np.ndarray], Scores]

LOGITS_BYTES = 256 * 2**20  # 16 rows of 512 tokens at a vocabulary of 8,000; more would not be any faster


def score_rows(
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch_size: int,
    vocabulary: int,
    selected_logits: SelectedLogits,
    reduce: Reduce,
    adapter: str | None,
    each: Callable[..., Iterable[None]] = map,
) -> list[Scores]:
    """Scores of the tokens `starts[i]` to the end of each row, in the order of the rows.

    Args:
        rows: token ids; a row may be one longer than the model's context, for its last token is only predicted.
        starts: index of the first token to score, 1 to the row's length (then there is nothing to score).
        batch_size: most rows in one batch.
        vocabulary: width of the logits.
        selected_logits: runs the model.
        reduce: `log_probabilities` or its like; a log-probability that is not finite means that the logits are not.
        adapter: for messages.
        each: calls a function for every batch, as `map` does; a thread pool's computes several at a time.

    Raises:
        OlivalError: a start outside its row, or logits that are not finite; names the row, the latter the adapter too.
    """
    if batch_size < 1:
        raise OlivalError(f"batch_size is {batch_size}, but must be at least 1")
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        if not 1 <= start <= len(row):
            raise OlivalError(f"row {number}: 1 <= start <= tokens must hold, but got (start={start}, {len(row)})")
    results: list[Scores] = [(np.zeros(0), np.zeros(0, bool)) for _ in rows]

    def score(batch: list[int]) -> None:
        first = min(starts[i] for i in batch) - 1
        ids, mask = pad_right([rows[i][:-1] for i in batch])
        logits = selected_logits(ids, mask, np.arange(first, ids.shape[1], dtype=np.int64))
        for place, i in enumerate(batch):
            wanted = np.asarray(rows[i][starts[i] :], np.int64)
            begin = starts[i] - 1 - first
            results[i] = reduce(logits[place, begin : begin + len(wanted)], wanted)
            if not np.isfinite(results[i][0]).all():
                raise NotFiniteError(adapter, i)

    for _ in each(score, score_batches([len(row) for row in rows], starts, batch_size, vocabulary)):
        pass  # what went wrong in a batch is raised here
    return results


def score_batches(lengths: Sequence[int], starts: Sequence[int], batch_size: int, vocabulary: int) -> list[list[int]]:
    """Row numbers in batches, the longest rows first; a row with nothing to score stands in none.

    A batch has at most `batch_size` rows and, unless it is a single row, at most `LOGITS_BYTES` of float32 logits.
    """
    batches: list[list[int]] = []
    first = longest = 0
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], starts[i]), reverse=True)
    for i in order:
        if starts[i] == lengths[i]:
            continue
        if batches and len(batches[-1]) < batch_size:
            positions = longest - min(first, starts[i])
            if (len(batches[-1]) + 1) * positions * vocabulary * 4 <= LOGITS_BYTES:
                batches[-1].append(i)
                first = min(first, starts[i])
                continue
        batches.append([i])
        first, longest = starts[i], lengths[i]
    return batches


def log_probabilities(logits: np.ndarray, tokens: np.ndarray) -> Scores:
    """Log-softmax at one token of each position, and whether that token is the most probable one.

    The sum of exponentials is taken in float32 after subtracting the largest logit (no term exceeds 1), in place.

    Args:
        logits: float32 (count, vocab); overwritten.
        tokens: int64 (count,).

    Returns:
        float64 (count,) in nats and bool (count,); NaN for a position that has a logit that is not finite.
    """
    most = logits.max(axis=-1)
    chosen = logits[np.arange(len(tokens)), tokens]
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(logits.sum(axis=-1))  # one NaN or infinity makes a sum that is none; finite ones do not
        logits -= most[:, None]
        total = np.exp(logits, out=logits).sum(axis=-1)
        values = chosen.astype(np.float64) - most - np.log(total, dtype=np.float64)
    return np.where(finite, values, np.nan), chosen == most


def check_finite(logits: np.ndarray, adapter: str | None) -> np.ndarray:
    """Returns logits (rows, classes) if all are finite, else raises NotFiniteError for the first row."""
    bad = np.nonzero(~np.isfinite(logits).all(axis=-1))[0]
    if len(bad):
        raise NotFiniteError(adapter, int(bad[0]))
    return logits


class NotFiniteError(OlivalError):
    """A NaN or an infinity in the logits of a row, which `row` numbers from 0; `where` names what the rows are of."""

    def __init__(self, adapter: str | None, row: int, where: str = "") -> None:
        self.row = row
        name = "the base without adapter" if adapter is None else f"adapter '{adapter}'"
        start = f"{where}: " if where else ""
        super().__init__(f"{start}{name}, row {row + 1}: the logits are not finite (NaN or infinity)")
