"""Bottleneck adapters: Houlsby et al. 2019, *Parameter-Efficient Transfer Learning for NLP* (arXiv:1902.00751).

Behind the last projection of each attention and each MLP, before the residual sum: h' = h + up(gelu(down(h))). They sit
in forward hooks, so that a base keeps its layers: linear ones, GPT-2's Conv1D, those of bitsandbytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.block_outputs import is_block_output
from passes.training.settings import AdapterSettings
from passes.training.sharded import whole
from runtime.adapter_source import HEAD_KEY
from runtime.bottleneck import ACTIVATION, PARTS, PEFT_TYPE
from runtime.errors import OlivalError

# Standard deviation of the initial down projections, that of most bases' own weights. The up projections start at zero:
# the adapted base is exactly the base, as with LoRA, and the first gradients reach them because down is not zero.
DOWN_INIT_STD = 0.02
_PREFIX = "base_model.model."  # of PEFT's names


class Bottleneck(nn.Module):
    """The adapter of one layer, in float32: forward (..., hidden) of any float type -> what is added to it."""

    def __init__(self, hidden: int, size: int, dropout: float = 0.0) -> None:
        """`dropout` is that of the `size` values behind the activation."""
        super().__init__()
        self.down, self.up, self.dropout = nn.Linear(hidden, size), nn.Linear(size, hidden), nn.Dropout(dropout)
        nn.init.normal_(self.down.weight, std=DOWN_INIT_STD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        between = nn.functional.gelu(self.down(hidden.to(self.down.weight.dtype)))
        result: torch.Tensor = self.up(self.dropout(between)).to(hidden.dtype)
        return result

    def parts(self) -> dict[str, torch.Tensor]:
        """By their names in adapter_model.safetensors behind that of the layer."""
        return dict(zip(PARTS, (self.down.weight, self.down.bias, self.up.weight, self.up.bias), strict=True))


class BottleneckAdapted:
    """A base with an adapter behind each output of its blocks; `model` is the base itself."""

    def __init__(self, model: Any, settings: AdapterSettings) -> None:
        self.model: Any = model
        self.layers = block_outputs(model)
        self.size = settings.bottleneck_size
        for layer in self.layers.values():
            layer.bottleneck = Bottleneck(output_size(layer), self.size, settings.dropout).to(model.device)
            layer.register_forward_hook(_add_own)
        model._hf_peft_config_loaded = True  # the Trainer's question whether a quantized base has something to train

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{_PREFIX}{name}.{part}": whole(value.detach()).float().contiguous().cpu()
            for name, layer in self.layers.items()
            for part, value in layer.bottleneck.parts().items()
        }

    def copy_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes the place of its own; `weights` has the names of `weights()`."""
        for name, layer in self.layers.items():
            for part, parameter in layer.bottleneck.parts().items():
                parameter.data.copy_(weights[f"{_PREFIX}{name}.{part}"])

    def save_config(self, folder: Path, base: Path) -> None:
        """{"peft_type": "BOTTLENECK", "bottleneck_size", "activation", "target_modules", "base_model_name_or_path"}"""
        config = {
            "peft_type": PEFT_TYPE,
            "bottleneck_size": self.size,
            "activation": ACTIVATION,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.layers}),
            "base_model_name_or_path": str(base),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def block_outputs(model: Any) -> dict[str, Any]:
    """{name: layer} of the projections that end the attentions and MLPs of a base without PEFT around it.

    Raises OlivalError where none has a known name.
    """
    linear = (nn.Linear, Conv1D)  # the layers of bitsandbytes are linear ones too
    found = {n: m for n, m in model.named_modules() if isinstance(m, linear) and is_block_output(n)}
    if not found:
        raise OlivalError(f"{type(model).__name__}: has no attention and MLP outputs with a name that is known here")
    return found


def output_size(layer: Any) -> int:
    return int(layer.nf if isinstance(layer, Conv1D) else layer.out_features)


def is_bottleneck(folder: Path) -> bool:
    """Whether an adapter's folder holds a bottleneck adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return bool(config.get("peft_type") == PEFT_TYPE)


def load_bottlenecks(folder: Path, layers: Mapping[str, Any], device: Any) -> dict[str, Bottleneck]:
    """The adapters of a folder by layer, ready to compute.

    Raises OlivalError where the tensors are not those of `layers`.
    """
    size = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["bottleneck_size"]
    tensors = load_file(folder / "adapter_model.safetensors")
    result = {}
    for name, layer in layers.items():
        result[name] = Bottleneck(output_size(layer), size).eval().to(device)
        for part, parameter in result[name].parts().items():
            value = tensors.pop(f"{_PREFIX}{name}.{part}", None)
            if value is None or value.shape != parameter.shape:
                found = "is missing" if value is None else f"has shape {list(value.shape)}"
                raise OlivalError(f"{folder}: {name}.{part} {found}, but the base takes {list(parameter.shape)}")
            parameter.data.copy_(value)
    if others := [name for name in tensors if name != HEAD_KEY]:
        raise OlivalError(f"{folder}: holds {others[0]}, which is of no layer of the base")
    return result


@contextmanager
def attached(bottlenecks: Mapping[str, Bottleneck], layers: Mapping[str, Any]) -> Iterator[None]:
    """The layers give out what the adapters make of it."""

    def hook(bottleneck: Bottleneck) -> Any:
        return lambda layer, inputs, output: output + bottleneck(output)

    handles = [layers[name].register_forward_hook(hook(bottleneck)) for name, bottleneck in bottlenecks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_own(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = output + layer.bottleneck(output)
    return result
