"""Generates text with plain onnxruntime, for bases that onnxruntime-genai does not know: greedy or sampled, no cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.errors import PackageError
from runtime.session import GraphSession


class PlainGenerator:
    """Computes the whole text again for each token: right for every graph, and slower the longer the text is."""

    def __init__(self, session: GraphSession, context_length: int, end_ids: Sequence[int]) -> None:
        self._session = session
        self._context_length = context_length
        self._end_ids = list(end_ids)

    def tokens(
        self,
        ids: Sequence[int],
        adapter: Mapping[str, Any],
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
        stop_at_eos: bool,
    ) -> Iterator[int]:
        """New token ids, one by one, the end-of-sequence token included.

        Args:
            ids: the prompt.
            adapter: tensors of the adapter's slots; empty for the base.
            temperature: 0 takes the likeliest token.
            stop_at_eos: False never chooses the end of the sequence before `max_new_tokens` or the end of the context.

        Raises:
            PackageError: the prompt is empty or fills the model's context.
        """
        if not 0 < len(ids) < self._context_length:
            raise PackageError(f"the prompt has {len(ids)} tokens, but must have 1 to {self._context_length - 1}")
        random = np.random.default_rng(seed)
        text = np.array([ids], dtype=np.int64)
        for _ in range(min(max_new_tokens, self._context_length - len(ids))):
            logits = self._session.last_logits(text, np.ones_like(text), adapter)[0]
            if not stop_at_eos:
                logits[self._end_ids] = -np.inf
            token = choose(logits, temperature, top_k, top_p, random)
            yield token
            if token in self._end_ids:
                return
            text = np.append(text, [[token]], axis=1)


def choose(logits: np.ndarray, temperature: float, top_k: int, top_p: float, random: np.random.Generator) -> int:
    """A token of logits (vocabulary,): the likeliest at temperature 0, or one drawn from the softmax of
    logits / temperature over the `top_k` likeliest (0: all) and, of these, over the fewest that together have
    probability `top_p` (nucleus sampling, Holtzman et al. 2019)."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    likely = np.exp(scaled - scaled.max())
    likely /= likely.sum()
    kept = np.cumsum(likely) - likely < top_p
    return int(random.choice(order[kept], p=likely[kept] / likely[kept].sum()))
