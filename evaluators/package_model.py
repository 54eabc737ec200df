"""The ONNX side of a comparison: a finished package through the same runtime that deployers import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtime.model import MultiAdapterModel


class PackageModel:
    """A package folder; the same interface as evaluators.torch_model.TorchModel."""

    def __init__(self, folder: Path, execution_provider: str | None = None) -> None:
        """Loads the package and, unless its base is an encoder, runs one token of the base.

        Raises:
            PackageError: the package is damaged (see `runtime.manifest.read_manifest`).
            ProviderError: this machine cannot run on the package's provider, or on the one given in its place.
        """
        self.runtime = MultiAdapterModel.load(folder, execution_provider=execution_provider)
        if self.runtime.manifest["base"].get("generates", True):  # encoders have no logits, and are for the CPU only
            self.runtime.logits(np.zeros((1, 1), np.int64))

    def labels(self, adapter: str) -> list[str]:
        """The label names of a classification adapter, in the order of its logits."""
        return list(self.runtime.adapters[adapter]["labels"])

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, adapter: str | None) -> np.ndarray:
        """Next-token logits float32 (batch, seq, vocab) of int64 (batch, seq) ids; `adapter` None is the base."""
        return self.runtime.logits(input_ids, attention_mask, adapter)

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int = 16) -> np.ndarray:
        """Class logits float32 (rows, classes) of token id lists."""
        return self.runtime.class_logits(rows, adapter, batch_size)

    def stream(self, prompt: list[int], adapter: str | None, new_tokens: int) -> Iterator[int]:
        """Greedy decoding; yields exactly `new_tokens` ids, end-of-text does not stop it.

        Not `runtime.stream`: a piece of text may take several tokens, and time per token would look too long.
        """
        return self.runtime.tokens(prompt, adapter, new_tokens, stop_at_eos=False)
