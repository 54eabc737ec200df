"""Generates tokens from a package through plain onnxruntime, for what onnxruntime-genai cannot do.

That is DirectML, where onnxruntime ignores adapter files (issue 23503): the adapters' tensors are fed as inputs of
each run. And bases that onnxruntime-genai does not know. The key-value cache goes from one run into the next; a graph
without one computes the whole text again.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.adapter_file import HEAD
from runtime.errors import PackageError
from runtime.generation import TextGenerator, divide
from runtime.options import GenerationOptions
from runtime.session import GraphSession
from runtime.stacking import AdapterFile


class PlainGenerator:
    """Does what runtime.generation.TextGenerator does, except for constraints."""

    def __init__(self, folder: Path, session: GraphSession, context_length: int, ends: Sequence[int]) -> None:
        self._folder = folder
        self._session = session
        self._context_length = context_length
        self._ends = list(ends)  # ids of end-of-sequence tokens
        self._chat: TextGenerator | None = None

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages (role, content) in the tokenizer's chat template, ready for the assistant's answer.

        onnxruntime-genai's tokenizer comes with a model, which is loaded for the CPU at the first call.

        Raises:
            PackageError: onnxruntime-genai does not know this base.
        """
        if not (self._folder / "genai_config.json").is_file():
            raise PackageError("onnxruntime-genai applies chat templates, and it does not know this base")
        if self._chat is None:
            self._chat = TextGenerator(self._folder, "cpu")
        return self._chat.chat(messages)

    def runs(self, lengths: Sequence[int], options: GenerationOptions, batch_size: int) -> list[list[int]]:
        """Divides rows into runs without padding: prompts of one length go together."""
        return divide(lengths, batch_size, longest_mixed=0)

    def steps(
        self, rows: Sequence[tuple[Sequence[int], AdapterFile | None]], options: GenerationOptions
    ) -> Generator[list[int], None, None]:
        """One run; see `runtime.generation.TextGenerator.steps`.

        Raises:
            PackageError: a constraint is asked for.
        """
        if options.guide is not None:
            raise PackageError(f"{options.guide[0]} needs onnxruntime-genai, which cannot run this package")
        tensors = self._session.adapters([file for _, file in rows])
        tensors = {name: value for name, value in tensors.items() if name != HEAD}
        draw = np.random.default_rng(options.seed)
        text, past = np.array([ids for ids, _ in rows], np.int64), None
        new, ended = text, np.zeros(len(rows), bool)
        for count in range(min(options.max_new_tokens, self._context_length - text.shape[1])):
            logits, past = self._session.next_logits(new, past, tensors)
            if not options.stop_at_eos or count < options.min_new_tokens:
                logits[:, self._ends] = -np.inf
            new = np.array([[choose(*row, draw, options)] for row in zip(logits, text, strict=True)], np.int64)
            yield [-1 if over else int(token) for over, (token,) in zip(ended, new, strict=True)]
            ended |= np.isin(new[:, 0], self._ends)
            if ended.all():
                return
            text = np.concatenate([text, new], axis=1)


def choose(logits: np.ndarray, text: np.ndarray, draw: np.random.Generator, options: GenerationOptions) -> int:
    """A token id: the likeliest at temperature 0, else drawn from what the limits leave.

    top_k keeps the k likeliest (0: all); of them top_p keeps the likeliest until their probabilities sum to it
    (nucleus sampling, Holtzman et al. 2020), at least one. A repetition penalty divides the logits of tokens that the
    text has, or multiplies them where they are negative (Keskar et al. 2019).

    Args:
        logits: float32 (vocab,).
        text: ids so far, int64 (length,).
    """
    if options.repetition_penalty != 1:
        text = text[text < len(logits)]  # virtual tokens have no logit
        seen = logits[text]
        logits[text] = np.where(seen > 0, seen / options.repetition_penalty, seen * options.repetition_penalty)
    if options.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: options.top_k or None]
    scaled = logits[order].astype(np.float64) / options.temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    kept = 1 + int((np.cumsum(probabilities)[:-1] < options.top_p).sum())
    return int(draw.choice(order[:kept], p=probabilities[:kept] / probabilities[:kept].sum()))
