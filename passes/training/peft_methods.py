"""The methods that PEFT implements: LoRA (Hu et al. 2021), QLoRA (Dettmers et al. 2023), DoRA (Liu et al. 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from passes.base_model import is_encoder
from passes.training.settings import AdapterSettings


class PeftAdapted:
    """A base inside a PEFT model."""

    def __init__(self, model: Any, settings: AdapterSettings, base: Path) -> None:
        self.model: Any = get_peft_model(model, _config(settings, base))
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer) and any(p.is_meta for p in layer.lora_A.parameters()):
                _place(layer, model.device)

    def weights(self) -> dict[str, torch.Tensor]:
        return {k: v.float().contiguous().cpu() for k, v in get_peft_model_state_dict(self.model).items()}

    def save_config(self, folder: Path, base: Path) -> None:
        config = self.model.peft_config["default"]
        config.base_model_name_or_path = str(base)
        config.inference_mode = True
        config.save_pretrained(folder)


def _place(layer: LoraLayer, device: torch.device) -> None:
    """Gives LoRA its initial values where its base layer is offloaded: PEFT leaves it without any, as that one is."""
    for half in (layer.lora_A, layer.lora_B):
        half.to_empty(device=device)
    layer.reset_lora_parameters("default", True)


def _config(settings: AdapterSettings, base: Path) -> PeftConfig:
    return LoraConfig(
        task_type="FEATURE_EXTRACTION" if is_encoder(base) else "CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        use_rslora=settings.rslora,
        use_dora=settings.method == "dora",
        bias="none",
    )
