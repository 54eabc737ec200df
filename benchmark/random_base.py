"""Random models of published shapes: speed depends on sizes and vocabulary, not on what the weights know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
# From the config.json of Qwen/Qwen2.5-0.5B, meta-llama/Llama-3.2-1B, JackFram/llama-160m (whose head is tied here) and
# HuggingFaceTB/SmolLM-135M; "tiny" is for tests. Context is cut to what the benchmark needs, because the cache of the
# rotary embedding grows with it.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_ROPE,
        "rms_norm_eps": 1e-5,
    },
    "llama-160m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
    },
    "smollm-135m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
    },
    "tiny": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
    },
}
_COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_random_base(folder: Path, shape: str, seed: int = 0) -> None:
    """Writes a model folder in the format of transformers, one file of float16 weights per layer.

    Args:
        folder: made if it does not exist. A complete one of an earlier call is left as it is.
        shape: a key of SHAPES.
        seed: of the weights: normal with standard deviation 0.02, norms 1.
    """
    from safetensors.numpy import save_file

    if (folder / "model.safetensors.index.json").is_file():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = {**SHAPES[shape], **_COMMON}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _save_byte_tokenizer(folder)
    generator = np.random.default_rng(seed)
    files: dict[str, str] = {}
    total = 0
    for file, sizes in _tensor_sizes(config):
        tensors = {
            name: np.ones(size, np.float16)
            if name.endswith("norm.weight")
            else (0.02 * generator.standard_normal(size, np.float32)).astype(np.float16)
            for name, size in sizes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _tensor_sizes(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """(file name, {tensor name: shape}) of each file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    outputs = dict(zip(PROJECTIONS, (hidden, kv, kv, hidden, inner, inner, hidden), strict=True))
    count = config["num_hidden_layers"] + 1
    yield (
        f"model-00001-of-{count:05}.safetensors",
        {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)},
    )
    for layer in range(config["num_hidden_layers"]):
        sizes: dict[str, tuple[int, ...]] = {}
        for projection, size in outputs.items():
            block = "self_attn" if projection in PROJECTIONS[:4] else "mlp"
            name = f"model.layers.{layer}.{block}.{projection}"
            sizes[f"{name}.weight"] = (size, inner if projection == "down_proj" else hidden)
            if config["model_type"] == "qwen2" and projection in PROJECTIONS[:3]:
                sizes[f"{name}.bias"] = (size,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
        yield f"model-{layer + 2:05}-of-{count:05}.safetensors", sizes


def _save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer without merges: the builder copies one, the benchmark feeds ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )
    fast.save_pretrained(folder)
