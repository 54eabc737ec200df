"""Runs a package's graph once over a batch, with plain onnxruntime: no generation loop, no cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime.errors import PackageError, ProviderError, nearest
from runtime.stacking import CACHE_BYTES, Rows, read_rows, stack_key

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "dml": "DmlExecutionProvider"}
# wheels that install files of the same name: of each row only one may be there
_RIVALS = (
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
    ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml", "onnxruntime-genai-winml"),
)
_NONE = np.zeros(0, dtype=np.int64)  # logits_positions of a run that reads no logits


def check_wheels() -> None:
    """Raises PackageError when wheels are installed that overwrite each other's files."""
    for row in _RIVALS:
        found = [name for name in row if _installed(name)]
        if len(found) > 1:
            raise PackageError(
                f"{' and '.join(found)} are both installed and overwrite each other's files; "
                f"uninstall both (pip uninstall {' '.join(found)}), then install the one for your hardware"
            )


def check_provider(execution_provider: str) -> str:
    """onnxruntime's name of a provider of ours.

    Raises:
        PackageError: there is no such provider.
        ProviderError: this machine's onnxruntime does not have it.
    """
    if execution_provider not in PROVIDERS:
        raise PackageError(f"execution_provider is '{execution_provider}'; {nearest(execution_provider, PROVIDERS)}")
    name, available = PROVIDERS[execution_provider], onnxruntime.get_available_providers()
    if name not in available:
        have = [ours for ours, theirs in PROVIDERS.items() if theirs in available]
        raise ProviderError(f"this onnxruntime has no {name}, which the package asks for; available: {', '.join(have)}")
    return name


class GraphSession:
    """An onnxruntime session of a package's model.onnx; adapter tensors are fed as inputs of each run.

    Several threads may use it: they compute side by side.
    """

    def __init__(self, folder: Path, execution_provider: str, threads: int | None) -> None:
        provider = check_provider(execution_provider)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # each optional input is a warning otherwise
        if threads:
            options.intra_op_num_threads = threads
        providers = [provider] if provider == PROVIDERS["cpu"] else [provider, PROVIDERS["cpu"]]
        try:
            self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)
        except Exception as error:  # onnxruntime has a kind of its own for each cause
            raise PackageError(f"{folder / 'model.onnx'}: onnxruntime cannot load it: {error}") from error
        if provider not in self._session.get_providers():  # onnxruntime falls back to the CPU without a word
            raise ProviderError(
                f"{provider} did not start on this machine (see onnxruntime's message above); is CUDA there?"
            )
        self._inputs = self._session.get_inputs()
        # inputs with a default: the graph of an encoder has no logits, and no logits_positions
        self._optional = {item.name for item in self._session.get_overridable_initializers()}
        self._device = "cuda" if execution_provider == "cuda" else "cpu"
        self._fed: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()  # by stack_key; the last used is last
        self._bytes: dict[tuple[str, ...], int] = {}  # of the stacks among them
        self._lock = threading.Lock()

    def adapters(self, rows: Rows) -> dict[str, Any]:
        """Values to feed for a run with these rows; on a GPU they are there already, and stay for the next run.

        Raises:
            PackageError: an adapter's file is missing or unreadable.
        """
        key = stack_key(rows)
        if not key:
            return {}
        with self._lock:
            if key not in self._fed:
                tensors = read_rows(rows)
                to_device = onnxruntime.OrtValue.ortvalue_from_numpy
                self._fed[key] = {k: to_device(v, self._device, 0) for k, v in tensors.items()}
                if len(key) > 1:
                    self._bytes[key] = sum(value.nbytes for value in tensors.values())
            self._fed.move_to_end(key)
            values = self._fed[key]
            while sum(self._bytes.values()) > CACHE_BYTES:
                self._drop(next(old for old in self._fed if old in self._bytes))
            return dict(values)

    def keep_only(self, sha256s: Collection[str]) -> None:
        """Forgets the tensors of every other adapter; runs that use them keep them until they end."""
        with self._lock:
            for key in [key for key in self._fed if not set(key) - {""} <= set(sha256s)]:
                self._drop(key)

    def _drop(self, key: tuple[str, ...]) -> None:
        del self._fed[key]
        self._bytes.pop(key, None)

    def logits(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        adapter: Mapping[str, Any],
        positions: np.ndarray | None = None,
    ) -> np.ndarray:
        """Next-token logits, float32 (batch, seq, vocab), of ids and mask int64 (batch, seq) padded on the right.

        `positions`, int64 (count,), are those to compute, the same in each row: then (batch, count, vocab).
        """
        if positions is None:
            positions = np.arange(input_ids.shape[1], dtype=np.int64)
        logits = self._run("logits", input_ids, attention_mask, adapter, {"logits_positions": positions})
        return logits if "logits_positions" in self._optional else logits[:, positions]

    def class_logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, adapter: Mapping[str, Any]) -> np.ndarray:
        """Class logits, float32 (batch, classes); the language-model head is skipped."""
        return self._run("class_logits", input_ids, attention_mask, adapter, {"logits_positions": _NONE})

    def _run(
        self,
        output: str,
        ids: np.ndarray,
        mask: np.ndarray,
        adapter: Mapping[str, Any],
        extra: Mapping[str, np.ndarray],
    ) -> np.ndarray:
        feed: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": mask}
        feed |= {name: value for name, value in extra.items() if name in self._optional}
        if any(item.name == "position_ids" for item in self._inputs):
            positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int64), ids.shape)
            feed["position_ids"] = np.ascontiguousarray(positions)
        feed |= self._empty_cache(len(ids))
        values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in feed.items()}
        result = self._session.run_with_ort_values([output], {**values, **adapter})[0]
        return result.numpy().astype(np.float32, copy=False)

    def _empty_cache(self, batch: int) -> dict[str, np.ndarray]:
        """Keys and values of no tokens, by input name; empty where the graph has no cache."""
        return {
            item.name: np.zeros(
                (batch, item.shape[1], 0, item.shape[3]), np.float16 if item.type == "tensor(float16)" else np.float32
            )
            for item in self._inputs
            if item.name.startswith("past_key_values.")
        }

    def next_logits(
        self, input_ids: np.ndarray, past: Mapping[str, Any] | None, adapter: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Logits of the token that follows, float32 (batch, vocab), and the cache for the next call.

        A graph without a cache computes the whole text again: its cache is the ids of the text so far.

        Args:
            input_ids: int64 (batch, new), no padding.
            past: the cache of the call before, None at the first one.
            adapter: tensors of `adapters`.
        """
        batch, new = input_ids.shape
        names = [item.name for item in self._inputs]
        keys = [name for name in names if name.startswith("past_key_values.")]
        if not keys:
            text = input_ids if past is None else np.concatenate([past["ids"], input_ids], axis=1)
            last = {"logits_positions": np.array([-1], np.int64)}
            return self._run("logits", text, np.ones_like(text), adapter, last)[:, -1], {"ids": text}
        if past is None:
            empty = self._empty_cache(batch)
            past = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in empty.items()}
        length = past[keys[0]].shape()[2]
        feed = {
            "input_ids": input_ids,
            "attention_mask": np.ones((batch, length + new), np.int64),
            "position_ids": np.broadcast_to(np.arange(length, length + new, dtype=np.int64), (batch, new)),
            "logits_positions": np.array([-1], np.int64),
        }
        values = {
            k: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for k, v in feed.items() if k in names
        }
        outputs = ["logits", *(key.replace("past_key_values.", "present.") for key in keys)]
        logits, *present = self._session.run_with_ort_values(outputs, {**values, **past, **adapter})
        return logits.numpy()[:, -1].astype(np.float32), dict(zip(keys, present, strict=True))


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and attention mask, both int64 (rows, longest); the padding id is 0 and never seen."""
    length = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
