"""PEFT folders of prompt and prefix tuning with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_virtual_adapter(
    folder: Path,
    base: Path,
    kind: str,
    virtual_tokens: int = 5,
    seed: int = 0,
    labels: list[str] | None = None,
    settings: dict[str, Any] | None = None,
    spread: float = 1.0,
) -> Path:
    """Writes an adapter of kind "prompt" or "prefix"; labels add a head; `spread` is the weights' standard deviation.

    adapter.json is written with labels or settings only.
    """
    import torch
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    kinds = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}
    model = AutoModelForCausalLM.from_pretrained(base)
    peft_model = get_peft_model(model, kinds[kind](task_type="CAUSAL_LM", num_virtual_tokens=virtual_tokens))
    with torch.no_grad():
        peft_model.prompt_encoder["default"].embedding.weight.normal_(0.0, spread)
    peft_model.save_pretrained(folder)
    if labels is not None:
        path = folder / "adapter_model.safetensors"
        head = torch.randn(len(labels), model.config.hidden_size) * 0.3
        save_file({**load_file(path), "base_model.model.score.weight": head}, path)
    if labels is not None or settings is not None:
        ours: dict[str, Any] = {
            "name": "test",
            "task": "classification" if labels is not None else "generation",
            "labels": labels,
            "template": "{text}",
            "max_length": 48,
            "pooling": "last",
            "window_stride": None,
            "metrics": {},
            **(settings or {}),
        }
        (folder / "adapter.json").write_text(json.dumps(ours), encoding="utf-8")
    return folder
