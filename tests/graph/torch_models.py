"""Tiny random models of the families that torch's exporter takes, and what transformers computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import save_tokenizer

_COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
_BERT = {**_COMMON, "intermediate_size": 96}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": _BERT,
    "opt": {**_COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "bert": _BERT,
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 128},
    "electra": {**_BERT, "embedding_size": 32},
    "roberta": {**_BERT, "max_position_embeddings": 129},
    "xlm-roberta": {**_BERT, "max_position_embeddings": 129},
}
DECODERS = ("gpt2", "gpt_neox", "opt")


def save_torch_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Saves a random two-layer model with tokenizer; encoders with their masked language model's head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": save_tokenizer(folder), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **{**sizes, "initializer_range": 0.2, **CONFIGS[kind], **changes})
    torch.manual_seed(0)
    model: Any = (AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif "norm" in name.lower() or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def torch_base(folder: Path, kind: str) -> Any:
    """The model as its users load it: causal language model, or encoder without a head."""
    from transformers import AutoModel, AutoModelForCausalLM

    return (AutoModelForCausalLM if kind in DECODERS else AutoModel).from_pretrained(folder).eval()


def save_adapter(folder: Path, base: Path, kind: str, **lora: Any) -> Path:
    """A PEFT folder with random LoRA on every linear layer, and a head of three classes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    torch.manual_seed(1)
    model = torch_base(base, kind)
    if kind in ("bert", "roberta", "xlm-roberta"):  # the pooler is no part of what is classified
        model = AutoModel.from_pretrained(base, add_pooling_layer=False)
    task = "CAUSAL_LM" if kind in DECODERS else "FEATURE_EXTRACTION"
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": task, **lora}
    peft_model = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1)
    peft_model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    head = torch.randn(3, 64) * 0.3
    save_file({**load_file(weights), "base_model.model.score.weight": head}, weights)
    return folder


def torch_outputs(
    base: Path, kind: str, ids: np.ndarray, mask: np.ndarray, adapter: Path | None = None
) -> dict[str, np.ndarray]:
    """Final hidden state (batch, seq, 64) and, of causal language models, logits, by transformers and PEFT."""
    import torch
    from peft import PeftModel

    model = torch_base(base, kind)
    plain = model
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.no_grad():
        if kind not in DECODERS:
            return {"hidden": model(**inputs).last_hidden_state.numpy()}
        output = model(**inputs, output_hidden_states=True)
        # the last hidden state that transformers gives out is the one behind the final norm
        assert plain.get_output_embeddings() is not None
        return {"hidden": output.hidden_states[-1].numpy(), "logits": output.logits.numpy()}
