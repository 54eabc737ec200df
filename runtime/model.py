"""A finished package in use: generate and classify with one base and its adapters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from runtime.adapter_file import read_adapter
from runtime.errors import PackageError, nearest
from runtime.generation import TextGenerator, check_sampling
from runtime.manifest import read_manifest
from runtime.plain_generation import PlainGenerator
from runtime.prompts import encode_windows, fill
from runtime.session import GraphSession, check_wheels, pad_right


@dataclass(frozen=True)
class Classification:
    """The likeliest label of a text, its probability, and the probability of every label."""

    label: str
    probability: float
    probabilities: dict[str, float]


class MultiAdapterModel:
    """One base with its adapters, loaded from a package folder. The two engines start when they are first needed.

    >>> model = MultiAdapterModel.load("output/package")  # doctest: +SKIP
    >>> model.classify("free prize, call now", adapter="spam")[0].label  # doctest: +SKIP
    'spam'
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], execution_provider: str, threads: int | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.execution_provider = execution_provider
        self._threads = threads
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise PackageError(f"{path}: there is no such file; the base needs a fast tokenizer")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._session: GraphSession | None = None
        self._generator: TextGenerator | PlainGenerator | None = None
        self._tensors: dict[str, Any] = {}  # sha256 of an adapter file -> its tensors
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, folder: str | Path, verify: bool = True, execution_provider: str | None = None, threads: int | None = None
    ) -> MultiAdapterModel:
        """Opens a package.

        Args:
            folder: the package.
            verify: compare every file with the manifest first (reads the whole package once).
            execution_provider: "cpu", "cuda" or "dml" in the place of the one that the package was written for.
            threads: compute threads of classification and `logits` in the place of the target's.

        Raises:
            PackageError: the package is damaged (see `runtime.manifest.read_manifest`), or wheels of onnxruntime clash.
        """
        check_wheels()
        folder = Path(folder)
        manifest = read_manifest(folder, verify)
        target = manifest["target"]
        return cls(folder, manifest, execution_provider or target["execution_provider"], threads or target["threads"])

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """Adapters by name, each with its entry of the manifest: task, labels, rank, template and so on."""
        return dict(self.manifest["adapters"])

    def reload(self) -> None:
        """Reads the manifest again, after adapters were added, replaced or removed; the base stays loaded.

        Raises:
            PackageError: the package is damaged, or holds another base now. The model goes on with what it had.
        """
        manifest = read_manifest(self.folder)
        if manifest["base"]["fingerprint"] != self.manifest["base"]["fingerprint"]:
            raise PackageError(f"{self.folder}: holds another base now; load it anew")
        with self._lock:
            self.manifest = manifest
            kept = {entry["sha256"] for entry in manifest["adapters"].values()}
            self._tensors = {key: value for key, value in self._tensors.items() if key in kept}
            if self._generator is not None:
                self._generator.keep_only(manifest["adapters"])

    def generate(self, prompt: str, adapter: str | None = None, max_new_tokens: int = 128, **options: Any) -> str:
        """Text that follows a prompt, without special tokens; `options` as in `stream`."""
        tokens = list(self.tokens(self.encode_prompt(prompt, adapter), adapter, max_new_tokens, **options))
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def stream(
        self, prompt: str, adapter: str | None = None, max_new_tokens: int = 128, **options: Any
    ) -> Iterator[str]:
        """The same text piece by piece, as soon as each piece is complete.

        Args:
            prompt: goes into the adapter's template; without an adapter it is taken as it is.
            adapter: name of a generation adapter, or None for the base.
            max_new_tokens: at most this many, and at most what the model's context has left.
            options: temperature (0.0: greedy), top_k (50), top_p (1.0), seed (None), stop_at_eos (True; False never
                ends early).

        Raises:
            PackageError: unknown adapter, one for another task, a bad option, or a prompt that fills the context.
        """
        decoder = DecodeStream(skip_special_tokens=True)
        for token in self.tokens(self.encode_prompt(prompt, adapter), adapter, max_new_tokens, **options):
            piece = decoder.step(self.tokenizer, token)
            if piece:
                yield piece

    def classify(self, texts: str | Sequence[str], adapter: str, batch_size: int = 16) -> list[Classification]:
        """Labels of texts, in their order, with softmax probabilities.

        Raises:
            PackageError: unknown adapter, one for another task, or a text of which the tokenizer makes nothing.
        """
        entry = self._entry(adapter, "classification")
        logits = self.class_logits([texts] if isinstance(texts, str) else texts, adapter, batch_size).astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        results = []
        for row in probabilities:
            best = int(row.argmax())
            by_label = {label: float(p) for label, p in zip(entry["labels"], row, strict=True)}
            results.append(Classification(entry["labels"][best], float(row[best]), by_label))
        return results

    def class_logits(
        self, texts: Sequence[str] | Sequence[Sequence[int]], adapter: str, batch_size: int = 16
    ) -> np.ndarray:
        """Class logits, float32 (texts, classes). A text in several windows gets the mean of their logits.

        Args:
            texts: texts, which go into the adapter's template, or rows of token ids, which are taken as they are.
            adapter: name of a classification adapter.
            batch_size: rows that are run together; rows of like length go together.
        """
        entry = self._entry(adapter, "classification")
        documents = [self._windows(t, entry) if isinstance(t, str) else [list(map(int, t))] for t in texts]
        rows = [window for windows in documents for window in windows]
        logits = np.zeros((len(rows), len(entry["labels"])), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        session, tensors = self._graph(), self._adapter_tensors(entry)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            logits[chosen] = session.class_logits(*pad_right([rows[i] for i in chosen]), tensors)
        ends = np.cumsum([len(windows) for windows in documents], dtype=np.int64)
        means = [logits[end - len(windows) : end].mean(axis=0) for end, windows in zip(ends, documents, strict=True)]
        return np.stack(means) if means else logits

    def logits(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, adapter: str | None = None
    ) -> np.ndarray:
        """Next-token logits, float32 (batch, seq, vocab), of ids and mask int64 (batch, seq), padded on the right."""
        self._check_writes()
        ids = np.ascontiguousarray(input_ids, np.int64)
        mask = np.ones_like(ids) if attention_mask is None else np.ascontiguousarray(attention_mask, np.int64)
        tensors = {} if adapter is None else self._adapter_tensors(self._entry(adapter))
        return self._graph().logits(ids, mask, {k: v for k, v in tensors.items() if k != "class_head.weight"})

    def encode_prompt(self, prompt: str, adapter: str | None = None) -> list[int]:
        """Token ids that `generate` continues: template or chat template applied, special tokens in place."""
        template = "{text}" if adapter is None else self._entry(adapter, "generation")["template"]
        if template == "chat":  # the chat template writes the special tokens itself
            return list(self.tokenizer.encode(self._engine().chat(prompt), add_special_tokens=False).ids)
        return list(self.tokenizer.encode(fill(template, prompt)).ids)

    def tokens(
        self,
        ids: Sequence[int],
        adapter: str | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_at_eos: bool = True,
    ) -> Iterator[int]:
        """Ids that follow the prompt's ids, which `encode_prompt` makes; arguments and errors as in `stream`."""
        check_sampling(max_new_tokens, temperature, top_k, top_p)
        self._check_writes()
        chosen = None
        if adapter is not None:
            entry = self._entry(adapter, "generation")
            chosen = (adapter, self.folder / entry["file"], entry["sha256"])
        return self._engine().tokens(ids, chosen, max_new_tokens, temperature, top_k, top_p, seed, stop_at_eos)

    def _windows(self, text: str, entry: Mapping[str, Any]) -> list[list[int]]:
        limit = entry["max_length"] or self._context_length()
        return encode_windows(self.tokenizer, fill(entry["template"], text), limit, entry["window_stride"])

    def _entry(self, adapter: str, task: str | None = None) -> dict[str, Any]:
        """An adapter's entry, if it is there and made for the task."""
        adapters = self.manifest["adapters"]
        fitting = [name for name, entry in adapters.items() if task in (None, entry["task"])]
        if adapter not in adapters:
            raise PackageError(f"there is no adapter '{adapter}'; {nearest(adapter, fitting)}")
        if adapter not in fitting:
            raise PackageError(
                f"adapter '{adapter}' is for {adapters[adapter]['task']}, not for {task}; {nearest(adapter, fitting)}"
            )
        return dict(adapters[adapter])

    def _adapter_tensors(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        key = entry["sha256"]
        if key not in self._tensors:
            self._tensors[key] = self._graph().to_device(read_adapter(self.folder / entry["file"]))
        return dict(self._tensors[key])

    def _is_plain(self) -> bool:
        """Whether plain onnxruntime runs this package, for onnxruntime-genai does not know its base."""
        return self.manifest.get("engine") == "onnxruntime"

    def _check_writes(self) -> None:
        if not self.manifest["base"].get("generates", True):
            raise PackageError(
                f"the base {self.manifest['base']['name']} is an encoder: it classifies, and writes no text"
            )

    def _context_length(self) -> int:
        if self._is_plain():
            return int(self.manifest["base"]["context_length"])
        config = json.loads((self.folder / "genai_config.json").read_text(encoding="utf-8"))
        return int(config["model"]["context_length"])

    def _graph(self) -> GraphSession:
        with self._lock:
            if self._session is None:
                self._session = GraphSession(self.folder, self.execution_provider, self._threads)
            return self._session

    def _engine(self) -> TextGenerator | PlainGenerator:
        session = self._graph() if self._is_plain() else None
        with self._lock:
            if self._generator is None and session is not None:
                end: int | list[int] | None = self.manifest["base"]["eos_token_id"]
                ends = end if isinstance(end, list) else [] if end is None else [end]
                self._generator = PlainGenerator(self.folder, session, self._context_length(), ends)
            elif self._generator is None:
                self._generator = TextGenerator(self.folder, self.execution_provider, self._context_length())
            return self._generator
