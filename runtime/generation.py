"""Generates text from a package through onnxruntime-genai, with or without an adapter."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import PackageError
from runtime.session import check_provider


def check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raises PackageError naming every sampling option that is out of range."""
    problems = []
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens is {max_new_tokens}, but must be at least 1")
    if temperature < 0:
        problems.append(f"temperature is {temperature}, but must be at least 0 (0 takes the likeliest token)")
    if top_k < 0:
        problems.append(f"top_k is {top_k}, but must be at least 0 (0 does not limit)")
    if not 0 < top_p <= 1:
        problems.append(f"top_p is {top_p}, but must be above 0 and at most 1")
    if problems:
        raise PackageError("; ".join(problems))


class TextGenerator:
    """An onnxruntime-genai model with the adapters that were used so far."""

    def __init__(self, folder: Path, execution_provider: str, context_length: int) -> None:
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
        config.clear_providers()
        if execution_provider != "cpu":
            config.append_provider(execution_provider)
        self._model = onnxruntime_genai.Model(config)
        self._adapters = onnxruntime_genai.Adapters(self._model)
        self._loaded: dict[str, str] = {}  # name -> onnxruntime-genai's name of the file that was loaded
        self._stale: list[str] = []  # replaced or removed, to be unloaded once no stream uses them
        self._context_length = context_length
        self._chat_tokenizer: Any = None

    def chat(self, prompt: str) -> str:
        """The prompt as a user's message in the tokenizer's chat template, ready for the assistant's answer."""
        if self._chat_tokenizer is None:
            self._chat_tokenizer = self._og.Tokenizer(self._model)
        message = json.dumps([{"role": "user", "content": prompt}], ensure_ascii=False)
        try:
            return str(self._chat_tokenizer.apply_chat_template(message, add_generation_prompt=True))
        except Exception as error:  # the binding raises RuntimeError with the template engine's own words
            raise PackageError(f"the tokenizer's chat template cannot be applied: {error}") from error

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
        """New token ids, one by one, the end-of-sequence token included.

        Args:
            ids: the prompt.
            adapter: name, file and sha256, or None for the base.
            temperature: 0 takes the likeliest token.
            stop_at_eos: False never chooses the end of the sequence before `max_new_tokens` or the end of the context.

        Raises:
            PackageError: the prompt is empty or fills the model's context.
        """
        if not 0 < len(ids) < self._context_length:
            raise PackageError(f"the prompt has {len(ids)} tokens, but must have 1 to {self._context_length - 1}")
        length = min(len(ids) + max_new_tokens, self._context_length)
        options: dict[str, Any] = {"max_length": length, "do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if seed is not None:
            options["random_seed"] = seed
        if not stop_at_eos:
            options["min_length"] = length
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(**options)
        generator = self._og.Generator(self._model, params)
        if adapter is not None:
            generator.set_active_adapter(self._adapters, self._load(*adapter))
        generator.append_tokens(list(ids))
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def _load(self, name: str, path: Path, sha256: str) -> str:
        """Loads an adapter at its first use, and again when its file was replaced. Returns onnxruntime-genai's name."""
        key = f"{name}-{sha256[:12]}"
        if self._loaded.get(name) != key:
            if name in self._loaded:
                self._stale.append(self._loaded.pop(name))
            if key in self._stale:  # it comes back before it was unloaded
                self._stale.remove(key)
            else:
                self._adapters.load(str(path), key)
            self._loaded[name] = key
        self._stale = [old for old in self._stale if not self._unload(old)]
        return key

    def keep_only(self, names: Collection[str]) -> None:
        """Unloads every other adapter; one that a running stream uses goes at the next occasion."""
        self._stale += [self._loaded.pop(name) for name in list(self._loaded) if name not in names]
        self._stale = [old for old in self._stale if not self._unload(old)]

    def _unload(self, key: str) -> bool:
        try:
            self._adapters.unload(key)
        except RuntimeError:  # in use
            return False
        return True
