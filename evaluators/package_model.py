"""The ONNX side of a comparison: a finished package through the same runtime that deployers import."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizing import length_sorted_batches
from evaluators.token_scores import Scores, check_finite, log_probabilities, score_rows
from runtime.model import MultiAdapterModel
from runtime.virtual_tokens import count

SIDE_BY_SIDE_BYTES = 512 * 2**20  # a larger base is not loaded twice; see `PackageModel._for_batches`


class PackageModel:
    """A package folder; the same interface as evaluators.torch_model.TorchModel."""

    constrains = True  # `generate` takes a schema

    def __init__(self, folder: Path, execution_provider: str | None = None, side_by_side: bool = True) -> None:
        """Loads the package and, unless its base is an encoder, runs one token of the base.

        `side_by_side` computes many batches of a small base with a thread each, see `_for_batches`.

        Raises:
            PackageError: the package is damaged (see `runtime.manifest.read_manifest`).
            ProviderError: this machine cannot run on the package's provider, or on the one given in its place.
        """
        self.runtime = MultiAdapterModel.load(folder, execution_provider=execution_provider)
        self._side_by_side = side_by_side
        self._single: MultiAdapterModel | None = None  # computes each batch with one thread
        if self.runtime.manifest["base"].get("generates", True):  # encoders have no logits, and are for the CPU only
            self.runtime.logits(np.zeros((1, 1), np.int64))

    def labels(self, adapter: str) -> list[str]:
        """The label names of a classification adapter, in the order of its logits."""
        return list(self.runtime.adapters[adapter]["labels"])

    def thresholds(self, adapter: str) -> list[float] | None:
        """From which probability on each label counts; None where a text has one label."""
        thresholds: list[float] | None = self.runtime.adapters[adapter].get("thresholds")
        return thresholds

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, adapter: str | None) -> np.ndarray:
        """Next-token logits float32 (batch, seq, vocab) of int64 (batch, seq) ids; `adapter` None is the base."""
        return self.runtime.logits(input_ids, attention_mask, adapter)

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int = 16) -> np.ndarray:
        """Class logits float32 (rows, classes) of token id lists.

        Raises OlivalError, naming adapter and row, when one is not finite.
        """
        batches = length_sorted_batches([len(row) for row in rows], batch_size)
        model, each = self._for_batches(len(batches))
        result = np.empty((len(rows), len(self.labels(adapter))), np.float32)

        def classify(batch: list[int]) -> None:
            result[batch] = model.class_logits([rows[i] for i in batch], adapter, batch_size)

        for _ in each(classify, batches):
            pass  # what went wrong in a batch is raised here
        return check_finite(result, adapter)

    def token_scores(
        self, rows: Sequence[Sequence[int]], adapter: str | None, starts: Sequence[int], batch_size: int = 16
    ) -> list[Scores]:
        """Log-probabilities of the tokens from `starts[i]` on, given all before; see `token_scores.score_rows`."""
        vocabulary = int(self.runtime.manifest["base"]["vocab_size"])
        model, each = self._for_batches(-(-len(rows) // batch_size))
        selected = partial(_selected_logits, model, adapter)
        return score_rows(rows, starts, batch_size, vocabulary, selected, log_probabilities, adapter, each)

    def _for_batches(self, batches: int) -> tuple[MultiAdapterModel, Callable[..., Iterable[None]]]:
        """A model for this many batches, and how to go through them: side by side where that is faster.

        Threads that share a small matrix product wait for each other: two batches of models/tiny with a thread each
        take less time than one after the other with two threads (benchmark/evaluation_speed.py). The weights are loaded
        once more for it, so large models, whose products keep the threads busy, go on as they are.
        """
        threads = self.runtime.threads or os.cpu_count() or 1
        size = sum(entry["bytes"] for entry in self.runtime.manifest["files"].values())
        small = size <= SIDE_BY_SIDE_BYTES and self.runtime.execution_provider == "cpu"
        if not (self._side_by_side and small and batches > 1 and threads > 1):
            return self.runtime, map
        if self._single is None:
            self._single = MultiAdapterModel.load(self.runtime.folder, verify=False, threads=1)
            self._pool = ThreadPoolExecutor(threads)
        return self._single, self._pool.map

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: str | None,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int = 16,
        schema: Any = None,
    ) -> list[str]:
        """Greedy text after each prompt's ids, without special tokens, ended by end-of-text or before a stop string.

        With a JSON Schema only tokens are chosen that lead to a text that keeps it.

        Raises PackageError for an unknown adapter or one that classifies, and for a prompt that fills the context.
        """
        rows = [(prompt, adapter) for prompt in prompts]
        return self.runtime.complete(rows, max_new_tokens, batch_size, stop=list(stop), json_schema=schema)

    def stream(self, prompt: list[int], adapter: str | None, new_tokens: int) -> Iterator[int]:
        """Greedy decoding; yields exactly `new_tokens` ids, end-of-text does not stop it.

        Not `runtime.stream`: a piece of text may take several tokens, and time per token would look too long.
        """
        return self.runtime.tokens(prompt, adapter, new_tokens, stop_at_eos=False)

    @property
    def context_length(self) -> int | None:
        """Most tokens that the base takes; None where it has no such limit."""
        return self.runtime.context_length

    def text_length(self, adapter: str | None) -> int | None:
        """What virtual tokens of an adapter leave of `context_length`."""
        return self.runtime.context_length - count(self.runtime.adapters.get(adapter or ""))

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Ids of a text; `special` adds special tokens or not, None does what the tokenizer does."""
        return list(self.runtime.tokenizer.encode(text, add_special_tokens=special is not False).ids)

    def special_token(self, which: str) -> tuple[str, int] | None:
        """Text and id of the tokenizer's "bos" or "eos" token, None where it has none."""
        path = self.runtime.folder / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        token = config.get(f"{which}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str):
            return None
        number = self.runtime.tokenizer.token_to_id(text)
        return None if number is None else (text, number)


def _selected_logits(
    runtime: MultiAdapterModel, adapter: str | None, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    return runtime.logits(ids, mask, adapter, positions)
