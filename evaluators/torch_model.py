"""The PyTorch side of a comparison: the base in float32 with trained adapters in PEFT's own implementation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizing import length_sorted_batches, pad_batch


class TorchModel:
    """One base with named adapters; the same interface as evaluators.package_model.PackageModel."""

    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        from peft import PeftModel
        from safetensors.torch import load_file

        from passes.base_model import load_base, load_tokenizer

        self.tokenizer = load_tokenizer(base)
        self.model: Any = load_base(base)
        self.info: dict[str, dict[str, Any]] = {}
        self.heads: dict[str, Any] = {}
        for name, folder in adapters.items():
            self.info[name] = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(str(folder), name)
            else:
                self.model = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
            if self.info[name]["task"] == "classification":
                self.heads[name] = load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]
        self.model.eval()

    @property
    def writes(self) -> bool:
        """Whether the base has a language-model head; an encoder has none."""
        return self.model.get_output_embeddings() is not None

    def labels(self, adapter: str) -> list[str]:
        """The label names of a classification adapter, in the order of its logits."""
        return list(self.info[adapter]["labels"])

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, adapter: str | None) -> np.ndarray:
        """Next-token logits float32 (batch, seq, vocab) of int64 (batch, seq) ids; `adapter` None is the base."""
        import torch

        with torch.no_grad(), self._active(adapter):
            ids, mask = self._tensors(input_ids, attention_mask)
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().cpu().numpy()

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int = 16) -> np.ndarray:
        """Class logits float32 (rows, classes) of token id lists."""
        import torch

        from passes.training.classifier import pooled_features

        head = self.heads[adapter].to(self.model.device)
        result = np.empty((len(rows), len(head)), dtype=np.float32)
        with torch.no_grad(), self._active(adapter):
            for indices in length_sorted_batches([len(row) for row in rows], batch_size):
                batch = pad_batch([rows[i] for i in indices], pad_id=0)
                ids, mask = self._tensors(batch["input_ids"], batch["attention_mask"])
                result[indices] = (pooled_features(self.model, ids, mask).float() @ head.T).cpu().numpy()
        return result

    def stream(self, prompt: list[int], adapter: str | None, new_tokens: int) -> Iterator[int]:
        """Greedy decoding with a KV cache; yields exactly `new_tokens` ids, end-of-text does not stop it."""
        import torch

        with torch.no_grad(), self._active(adapter):
            ids = torch.tensor([prompt], device=self.model.device)
            cache = None
            for _ in range(new_tokens):
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, ids = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
                yield int(ids)

    def _tensors(self, *arrays: np.ndarray) -> list[Any]:
        import torch

        return [torch.from_numpy(array).to(self.model.device) for array in arrays]

    @contextmanager
    def _active(self, adapter: str | None) -> Iterator[None]:
        if adapter is not None:
            self.model.set_adapter(adapter)
        plain = adapter is None and hasattr(self.model, "disable_adapter")
        with self.model.disable_adapter() if plain else nullcontext(), exact_float32():
            yield


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products on a GPU are float32: a training argument such as tf32 would let it round to 10 bits."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
