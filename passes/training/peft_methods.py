"""The methods that PEFT implements.

LoRA (Hu et al. 2021), QLoRA (Dettmers et al. 2023), DoRA (Liu et al. 2024), prompt tuning (Lester et al. 2021) and
prefix tuning (Li and Liang 2021).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    initialize_kv_prefix_from_past_key_values,
)
from peft.tuners.lora import LoraLayer

from passes.base_model import is_encoder
from passes.training.settings import AdapterSettings
from passes.training.sharded import whole


class PeftAdapted:
    """A base inside a PEFT model."""

    def __init__(self, model: Any, settings: AdapterSettings, base: Path) -> None:
        self.model: Any = get_peft_model(model, _config(settings, base))
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer) and any(p.is_meta for p in layer.lora_A.parameters()):
                _place(layer, model.device)
        if settings.method == "prefix":
            _start_from_words(self.model)

    def weights(self) -> dict[str, torch.Tensor]:
        return {k: whole(v).float().contiguous().cpu() for k, v in get_peft_model_state_dict(self.model).items()}

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


def _start_from_words(model: Any) -> None:
    """Gives the prefix the keys and values of words drawn from the vocabulary: Li and Liang (section 7.4) find that it
    learns better from what the base computes than from noise."""
    plain, virtual = model.get_base_model(), model.active_peft_config.num_virtual_tokens
    ids = torch.randint(plain.config.get_text_config().vocab_size, (1, virtual), device=plain.device)
    with torch.no_grad():
        cache = plain.base_model(input_ids=ids, use_cache=True).past_key_values
    initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)


def _config(settings: AdapterSettings, base: Path) -> PeftConfig:
    virtual: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": settings.virtual_tokens}
    if settings.method == "prefix":
        return PrefixTuningConfig(**virtual)
    if settings.method == "prompt":  # words of the vocabulary, which Lester et al. find better than noise
        return PromptTuningConfig(**virtual, prompt_tuning_init="SAMPLE_VOCAB")
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
