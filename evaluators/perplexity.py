"""Perplexity of token sequences under a model: exp of the mean negative log-likelihood of the counted tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from data.tokenizing import length_sorted_batches, pad_batch

Example = tuple[list[int], list[int]]  # input ids, labels (-100 where a token does not count)
# (input_ids, attention_mask), both int64 (batch, seq) -> logits float32 (batch, seq, vocab)
LogitsFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


def perplexity(logits_of: LogitsFunction, examples: Sequence[Example], batch_size: int = 16) -> float:
    """Token-weighted perplexity over the labelled tokens of all examples together (not a mean of perplexities).

    A label at position i is predicted by the logits at i - 1; the first token is never counted.
    Raises ValueError when no token counts.
    """
    total, count = 0.0, 0
    for indices in length_sorted_batches([len(ids) for ids, _ in examples], batch_size):
        batch = pad_batch([examples[i] for i in indices], pad_id=0)
        logits = logits_of(batch["input_ids"], batch["attention_mask"])[:, :-1]
        labels = batch["labels"][:, 1:]
        rows, positions = np.nonzero(labels != -100)
        total -= float(log_softmax(logits[rows, positions])[np.arange(len(rows)), labels[rows, positions]].sum())
        count += len(rows)
    if count == 0:
        raise ValueError("perplexity needs at least one counted token")
    return math.exp(total / count)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
