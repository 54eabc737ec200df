"""Draws rows with replacement, fast enough for 10,000 resamples of 10,000 rows in less than a second.

Measured on one core: 0.45 s for a mean, 0.6 s for a ratio, 0.03 s for the scores of two classes, 0.6 s for 1,400
different pairs of expected and predicted class, 2.3 s for a thousand classes. Both functions draw exactly, every row
with the same probability; they yield chunks of resamples that stay in a processor's cache, and show progress when it
takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CHUNK = 1 << 17  # numbers of a chunk: 1 MiB of int64
FREQUENT = 10  # rows of a cell from which one binomial draw costs less than a draw for each row
PROGRESS_AFTER_SECONDS = 3


def resampled_rows(rows: int, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields unsigned (chunk, rows) row indices, in an order of their own: good for sums over each resample.

    Random bits are cut into indices below a power of two, which needs no rejection. Rows are therefore parted into
    blocks whose sizes are the powers of two that make up their number, and a multinomial draw says how often each
    block is hit: 10,000 rows are blocks of 8192, 1024, 512, 256 and 16.
    """
    sizes = np.array([1 << bit for bit in reversed(range(rows.bit_length())) if rows >> bit & 1])
    kind = np.uint16 if rows <= 1 << 16 else np.uint32 if rows <= 1 << 32 else np.uint64
    starts, masks = (np.cumsum(sizes) - sizes).astype(kind), (sizes - 1).astype(kind)
    for chunk in _chunks(resamples, rows):
        hits = generator.multinomial(rows, sizes / rows, size=chunk).ravel()
        words = -(-chunk * rows * kind().itemsize // 8)
        bits = generator.integers(0, 1 << 64, size=words, dtype=np.uint64)
        drawn: np.ndarray = bits.view(kind)[: chunk * rows]
        drawn &= np.repeat(np.tile(masks, chunk), hits)
        drawn += np.repeat(np.tile(starts, chunk), hits)
        yield drawn.reshape(chunk, rows)


def resampled_counts(counts: np.ndarray, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields int64 (chunk, cells): how often each cell is hit when as many rows are drawn as all cells have.

    `counts` int64 (cells,) are the rows of each cell, 1 or more. Counts of cells are multinomial, so frequent cells
    take one binomial draw each; the rows of all others share one more, and are then drawn by themselves.
    """
    rows, often = int(counts.sum()), counts >= FREQUENT
    rare = np.repeat(np.flatnonzero(~often), counts[~often])  # the cell of each rare row
    shares = np.append(counts[often], len(rare) or []) / rows
    for chunk in _chunks(resamples, max(len(counts), len(rare))):
        hits = generator.multinomial(rows, shares, size=chunk)
        drawn = np.zeros((chunk, len(counts)), np.int64)
        drawn[:, often] = hits[:, : often.sum()]
        if len(rare):
            cells = rare[generator.integers(0, len(rare), size=int(hits[:, -1].sum()))]
            cells += np.repeat(np.arange(chunk) * len(counts), hits[:, -1])
            drawn += np.bincount(cells, minlength=drawn.size).reshape(drawn.shape)
        yield drawn


def _chunks(resamples: int, numbers: int) -> Iterator[int]:
    """Sizes of chunks that add up to `resamples`, for `numbers` numbers a resample."""
    from tqdm import tqdm

    most = max(1, CHUNK // numbers)
    with tqdm(total=resamples, desc="resampling", unit="resample", delay=PROGRESS_AFTER_SECONDS, leave=False) as bar:
        for start in range(0, resamples, most):
            size = min(most, resamples - start)
            yield size
            bar.update(size)
