"""What the adapter benchmark times: decoding and prompts in onnxruntime-genai, classification in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


class Engine:
    """An onnxruntime-genai model with its adapters."""

    def __init__(self, folder: Path, filename: str, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        config.clear_providers()
        options = {"intra_op_num_threads": threads, "log_severity_level": 3}
        config.overlay(json.dumps({"model": {"decoder": {"filename": filename, "session_options": options}}}))
        self._og, self._model = og, og.Model(config)
        self._adapters = og.Adapters(self._model)
        self._loaded: set[Path] = set()

    def start(self, prompt: np.ndarray, max_length: int, adapter: Path | None = None) -> Any:
        """A generator that has read the prompts, int (batch, seq), and can go on to `max_length` positions."""
        params = self._og.GeneratorParams(self._model)
        # min_length: the end of the sequence never comes early
        params.set_search_options(batch_size=len(prompt), max_length=max_length, min_length=max_length, do_sample=False)
        generator = self._og.Generator(self._model, params)
        if adapter is not None:
            if adapter not in self._loaded:
                self._adapters.load(str(adapter), str(adapter))
                self._loaded.add(adapter)
            generator.set_active_adapter(self._adapters, str(adapter))
        generator.append_tokens(prompt.astype(np.int32))
        return generator


class Decode:
    """Each call decodes the next `tokens` tokens of every row."""

    def __init__(
        self, engine: Engine, prompt: np.ndarray, max_length: int, tokens: int, adapter: Path | None = None
    ) -> None:
        self._generator, self._tokens = engine.start(prompt, max_length, adapter), tokens

    def __call__(self) -> None:
        for _ in range(self._tokens):
            self._generator.generate_next_token()


class Prefill:
    """Each call reads the prompt into an empty cache and computes what the first token is sampled from."""

    def __init__(self, engine: Engine, prompt: np.ndarray, adapter: Path | None = None) -> None:
        self._engine, self._prompt, self._adapter = engine, prompt, adapter

    def __call__(self) -> None:
        self._engine.start(self._prompt, self._prompt.shape[1] + 1, self._adapter)


class Classify:
    """Each call is one pass of a graph with class head over ids (batch, seq), with or without the vocabulary."""

    def __init__(self, session: Any, ids: np.ndarray, classes: int, with_vocabulary: bool) -> None:
        import onnxruntime

        self._session = session
        sizes = {i.name: i.shape for i in [*session.get_inputs(), *session.get_overridable_initializers()]}
        head = np.zeros((1, sizes["class_head.weight"][1], classes), np.float32)
        positions = np.arange(ids.shape[1] if with_vocabulary else 0)
        feed = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": np.ones(ids.shape, np.int64),
            "class_head.weight": head,
            "logits_positions": positions.astype(np.int64),
        }
        feed |= {
            name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
            for name, shape in sizes.items()
            if name.startswith("past_key_values")
        }
        self._feed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
        self._outputs = ["class_logits", *(["logits"] if with_vocabulary else [])]

    def __call__(self) -> None:
        self._session.run_with_ort_values(self._outputs, self._feed)
