"""Full fine-tuning: the base's own weights are trained, all of them, those of its last blocks, or none but a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from passes.training.settings import AdapterSettings
from passes.training.sharded import whole
from runtime.peft_config import FULL


class FullAdapted:
    """A base whose own weights are trained, as far as `freeze` lets them.

    Its weights are named as transformers names those of the base, without a prefix. Tied weights are one.
    """

    def __init__(self, model: Any, settings: AdapterSettings, classifies: bool) -> None:
        """
        Args:
            model: frozen, see `passes.base_model.load_base`.
            classifies: a head will read the final states, so that a language-model head of its own is not trained.
        """
        self.model: Any = model
        self.freeze = settings.freeze or "none"
        for part in _trained_parts(model, self.freeze):
            part.requires_grad_(True)
        output = model.get_output_embeddings()
        if classifies and output is not None and output.weight is not model.get_input_embeddings().weight:
            output.requires_grad_(False)

    def weights(self) -> dict[str, torch.Tensor]:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return {name: whole(p.detach()).float().contiguous().cpu() for name, p in trained.items()}

    def save_config(self, folder: Path, base: Path) -> None:
        config = {"peft_type": FULL, "freeze": self.freeze, "base_model_name_or_path": str(base)}
        text = json.dumps({**config, "inference_mode": True}, indent=2)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _trained_parts(model: Any, freeze: str | dict[str, int]) -> list[nn.Module]:
    if isinstance(freeze, str):
        return [model] if freeze == "none" else []
    stack, blocks = block_stack(model)
    norms = [child for child in stack.children() if "norm" in type(child).__name__.lower()]
    return [*blocks[len(blocks) - freeze["last_n_blocks"] :], *norms]


def block_stack(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """(the module that holds a base's blocks, and where there is one its final norm; the blocks from first to last)."""
    for module in model.base_model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers:
                return module, child
    raise AssertionError(f"{type(model).__name__} has no list of {model.config.num_hidden_layers} blocks")
