"""Generates text from a package through plain onnxruntime, for what onnxruntime-genai cannot do.

That is DirectML, where onnxruntime ignores adapter files (issue 23503): the adapter's tensors are fed as inputs of
each run. And bases that onnxruntime-genai does not know. The key-value cache goes from one run into the next; a graph
without one computes the whole text again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.adapter_file import read_adapter
from runtime.errors import PackageError
from runtime.generation import TextGenerator
from runtime.session import GraphSession


class PlainGenerator:
    """Does what runtime.generation.TextGenerator does, one sequence at a time."""

    def __init__(self, folder: Path, session: GraphSession, context_length: int, ends: Sequence[int]) -> None:
        self._folder = folder
        self._session = session
        self._context_length = context_length
        self._ends = list(ends)
        self._loaded: dict[str, tuple[str, dict[str, Any]]] = {}  # name -> sha256 of the file, its tensors
        self._chat: TextGenerator | None = None

    def chat(self, prompt: str) -> str:
        """The prompt as a user's message in the tokenizer's chat template, ready for the assistant's answer.

        onnxruntime-genai's tokenizer comes with a model, which is loaded for the CPU at the first call.

        Raises:
            PackageError: onnxruntime-genai does not know this base.
        """
        if not (self._folder / "genai_config.json").is_file():
            raise PackageError("onnxruntime-genai applies chat templates, and it does not know this base")
        if self._chat is None:
            self._chat = TextGenerator(self._folder, "cpu", self._context_length)
        return self._chat.chat(prompt)

    def tokens(
        self,
        ids: Sequence[int],
        adapter: tuple[str, Path, str] | None,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
        stop_at_eos: bool,
    ) -> Iterator[int]:
        """New token ids, one by one; arguments and errors as in TextGenerator.tokens."""
        if not 0 < len(ids) < self._context_length:
            raise PackageError(f"the prompt has {len(ids)} tokens, but must have 1 to {self._context_length - 1}")
        tensors = self._load(*adapter) if adapter is not None else {}
        draw = np.random.default_rng(seed)
        new, past = np.array([ids], np.int64), None
        for _ in range(min(max_new_tokens, self._context_length - len(ids))):
            logits, past = self._session.next_logits(new, past, tensors)
            if not stop_at_eos:
                logits[:, self._ends] = -np.inf
            token = choose(logits[0], draw, temperature, top_k, top_p)
            yield token
            if token in self._ends:
                return
            new = np.array([[token]], np.int64)

    def keep_only(self, names: Collection[str]) -> None:
        """Forgets every other adapter; a running stream keeps its own until it ends."""
        self._loaded = {name: kept for name, kept in self._loaded.items() if name in names}

    def _load(self, name: str, path: Path, sha256: str) -> Mapping[str, Any]:
        if self._loaded.get(name, ("", {}))[0] != sha256:
            tensors = {k: v for k, v in read_adapter(path).items() if k != "class_head.weight"}
            self._loaded[name] = (sha256, self._session.to_device(tensors))
        return self._loaded[name][1]


def choose(logits: np.ndarray, draw: np.random.Generator, temperature: float, top_k: int, top_p: float) -> int:
    """A token id from float32 logits (vocab): the likeliest at temperature 0, else drawn from what the limits leave.

    top_k keeps the k likeliest (0: all); of them top_p keeps the likeliest until their probabilities sum to it
    (nucleus sampling, Holtzman et al. 2020), at least one.
    """
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    kept = 1 + int((np.cumsum(probabilities)[:-1] < top_p).sum())
    return int(draw.choice(order[:kept], p=probabilities[:kept] / probabilities[:kept].sum()))
