"""Bottleneck adapters written as files by numpy, and what transformers computes with them, from the paper's formula."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "base_model.model."
# kind of base -> the projections that end its attentions and MLPs
LAYERS = {
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "qwen2": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
}


def random_tensors(kind: str, size: int, seed: int = 0, hidden: int = 64, layers: int = 2) -> dict[str, np.ndarray]:
    """Tensors of an adapter, float32, by their names in adapter_model.safetensors."""
    rng, result = np.random.default_rng(seed), {}
    for layer in (name.format(i) for i in range(layers) for name in LAYERS[kind]):
        shapes = {
            "down.weight": (size, hidden),
            "down.bias": (size,),
            "up.weight": (hidden, size),
            "up.bias": (hidden,),
        }
        for part, shape in shapes.items():
            result[f"{PREFIX}{layer}.bottleneck_{part}"] = rng.normal(scale=0.3, size=shape).astype(np.float32)
    return result


def save_bottleneck(
    folder: Path, kind: str, size: int = 8, seed: int = 0, labels: list[str] | None = None, **settings: Any
) -> Path:
    """A folder of random weights for the tiny bases; with labels a classifier's. `settings` are for adapter.json."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(kind, size, seed)
    if labels is not None:
        head = np.random.default_rng(seed + 100).normal(scale=0.3, size=(len(labels), 64))
        tensors[f"{PREFIX}score.weight"] = head.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "BOTTLENECK", "bottleneck_size": size, "base_model_name_or_path": "somewhere/else"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours: dict[str, Any] = {"task": "classification" if labels else "generation", "labels": labels, "max_length": 64}
    ours |= {"template": "{text}" if labels else "{prompt}", **settings}
    (folder / "adapter.json").write_text(json.dumps(ours), encoding="utf-8")
    return folder


@contextmanager
def adapted(model: Any, folder: Path) -> Iterator[Any]:
    """A model of transformers that computes h + up gelu(down h + d) + u behind each layer that the folder names.

    Houlsby et al. 2019 (arXiv:1902.00751), section 2; in float64 with numpy, gelu(z) = z (1 + erf(z / sqrt 2)) / 2.
    """
    import torch
    from safetensors.numpy import load_file

    tensors, handles = load_file(folder / "adapter_model.safetensors"), []

    def hook(name: str) -> Any:
        down, d, up, u = (
            tensors[f"{name}.bottleneck_{part}"].astype(np.float64)
            for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )

        def changed(layer: Any, inputs: Any, output: Any) -> Any:
            h = output.detach().double().numpy()
            z = h @ down.T + d
            erf = torch.special.erf(torch.from_numpy(z / np.sqrt(2))).numpy()
            return torch.from_numpy(h + z * (1 + erf) / 2 @ up.T + u).to(output.dtype)

        return changed

    names = {key.rpartition(".bottleneck_")[0] for key in tensors if ".bottleneck_" in key}
    for name in sorted(names):
        handles.append(model.get_submodule(name.removeprefix(PREFIX)).register_forward_hook(hook(name)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def final_states(base: Any, folder: Path, ids: np.ndarray) -> np.ndarray:
    """Final hidden states (batch, seq, 64) of rows without padding."""
    import torch

    with adapted(base, folder), torch.no_grad():
        inner = base.base_model(input_ids=torch.from_numpy(ids), attention_mask=torch.ones(ids.shape, dtype=torch.long))
    return np.asarray(inner.last_hidden_state.numpy())


def logits(model: Any, folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits (batch, seq, vocab) of rows without padding."""
    import torch

    with adapted(model, folder), torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids)).logits.numpy())
