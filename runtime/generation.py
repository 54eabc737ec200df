"""Generates tokens from a package through onnxruntime-genai, for one row or a batch, each with its own adapter."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import PackageError
from runtime.loaded_adapters import LoadedAdapters
from runtime.options import GenerationOptions
from runtime.session import check_provider
from runtime.stacking import AdapterFile

# onnxruntime-genai masks what equals its pad_token_id. No prompt holds -1, while every id of the vocabulary may stand
# in one (a chat has ends of sequences in the middle); the embedding's Gather reads -1 as its last row, masked anyway.
_PADDING = -1


class TextGenerator:
    """An onnxruntime-genai model with the adapters that were used so far.

    Several threads may use it: each run has a generator of its own. onnxruntime-genai holds Python's lock while it
    computes, so runs take turns token by token; rows that shall be computed together go into one run.
    """

    def __init__(self, folder: Path, execution_provider: str, threads: int | None = None) -> None:
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise PackageError(
                "generation needs onnxruntime-genai (onnxruntime-genai-cuda for NVIDIA GPUs), which is not installed "
                f"or cannot be loaded: {error}"
            ) from error
        self._og = onnxruntime_genai
        check_provider(execution_provider)
        config = onnxruntime_genai.Config(str(folder))
        overlay: dict[str, Any] = {"pad_token_id": _PADDING}
        if threads:
            overlay["decoder"] = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": overlay}))
        config.clear_providers()
        if execution_provider != "cpu":
            config.append_provider(execution_provider)
        self.model = onnxruntime_genai.Model(config)
        self.loaded = LoadedAdapters(onnxruntime_genai.Adapters(self.model))
        sizes = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.context_length, self._vocabulary = int(sizes["context_length"]), int(sizes["vocab_size"])
        self._chat_tokenizer: Any = None
        self._guides: bool | None = None  # whether this onnxruntime-genai can constrain, once it was asked
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages (role, content) in the tokenizer's chat template, ready for the assistant's answer."""
        with self._lock:
            if self._chat_tokenizer is None:
                self._chat_tokenizer = self._og.Tokenizer(self.model)
            text = json.dumps([dict(message) for message in messages], ensure_ascii=False)
            try:
                return str(self._chat_tokenizer.apply_chat_template(text, add_generation_prompt=True))
            except Exception as error:  # the binding raises RuntimeError with the template engine's own words
                raise PackageError(f"the base's chat template is missing or cannot be applied: {error}") from error

    def runs(self, lengths: Sequence[int], options: GenerationOptions, batch_size: int) -> list[list[int]]:
        """Divides rows, by the lengths of their prompts, into runs in which each is computed as if it were alone.

        Rows of like length go together. One run has one end, so a prompt too near to the context's end to get
        max_new_tokens only goes with others of its length. Rows run alone under a constraint, which cannot go on in
        onnxruntime-genai once one row has ended, and with a repetition penalty, which would count the padding.
        """
        if options.guide or options.repetition_penalty != 1:
            batch_size = 1
        return divide(lengths, batch_size, longest_mixed=self.context_length - options.max_new_tokens)

    def steps(
        self, rows: Sequence[tuple[Sequence[int], AdapterFile | None]], options: GenerationOptions
    ) -> Generator[list[int], None, None]:
        """One run: at each step the next id of each row, its end-of-sequence token included, and -1 behind that.

        Args:
            rows: a prompt's ids (1 to context_length - 1 of them) and an adapter or None; see `runs`.
            options: the same for all rows; sampling draws from one stream of random numbers.

        Raises:
            PackageError: the constraint is unusable, or cannot be followed.
        """
        longest = max(len(ids) for ids, _ in rows)
        ids = np.full((len(rows), longest), _PADDING, np.int32)
        for target, (row, _) in zip(ids, rows, strict=True):
            target[: len(row)] = row
        params = self._parameters(len(rows), longest, options)
        with self.loaded.using([file for _, file in rows]) as adapter:
            generator = self._start(params, options)
            try:
                if adapter is not None:
                    generator.set_active_adapter(self.loaded.adapters, adapter)
                generator.append_tokens(ids)
                while not generator.is_done():
                    generator.generate_next_token()
                    yield generator.get_next_tokens().tolist()
            except RuntimeError as error:
                if options.guide is None:
                    raise
                raise PackageError(f"{options.guide[0]} cannot be followed any further: {_first(error)}") from error
            finally:
                del generator  # before its adapter may be unloaded

    def _parameters(self, rows: int, longest: int, options: GenerationOptions) -> Any:
        length = min(longest + options.max_new_tokens, self.context_length)
        search: dict[str, Any] = {"max_length": length, "batch_size": rows, "do_sample": options.temperature > 0}
        search["min_length"] = min(longest + options.min_new_tokens, length) if options.stop_at_eos else length
        search["repetition_penalty"] = float(options.repetition_penalty)
        if options.temperature > 0:  # a top_k beyond the vocabulary ends the process in onnxruntime-genai
            top_k = min(options.top_k, self._vocabulary)
            search |= {"temperature": float(options.temperature), "top_k": top_k, "top_p": float(options.top_p)}
        if options.seed is not None:
            search["random_seed"] = options.seed
        params = self._og.GeneratorParams(self.model)
        params.set_search_options(**search)
        return params

    def _start(self, params: Any, options: GenerationOptions) -> Any:
        if options.guide is None:
            return self._og.Generator(self.model, params)
        if not self._can_guide():
            raise PackageError(
                f"{options.guide[0]} needs an onnxruntime-genai that was built with guidance; this one was not"
            )
        params.set_guidance(*options.guide[1:])
        try:
            return self._og.Generator(self.model, params)
        except RuntimeError as error:
            raise PackageError(f"{options.guide[0]} cannot be used: {_first(error)}") from error

    def _can_guide(self) -> bool:
        """Asks for a constraint that does not exist: without guidance onnxruntime-genai ignores it without an error."""
        if self._guides is None:
            params = self._og.GeneratorParams(self.model)
            params.set_search_options(max_length=1)
            params.set_guidance("no such kind", "x")
            try:
                self._og.Generator(self.model, params)
                self._guides = False
            except RuntimeError:
                self._guides = True
        return self._guides


def divide(lengths: Sequence[int], batch_size: int, longest_mixed: int) -> list[list[int]]:
    """Row numbers in runs of at most `batch_size`, from the shortest prompt to the longest.

    A prompt of more than `longest_mixed` tokens goes into a run with others of its length only.
    """
    runs: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        mixes = lengths[row] <= longest_mixed
        if runs and len(runs[-1]) < batch_size and (mixes or lengths[row] == lengths[runs[-1][0]]):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _first(error: Exception) -> str:
    """onnxruntime-genai's message without the state and the stack that follow it."""
    return str(error).split("\n<")[0].strip()
