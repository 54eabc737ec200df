"""Widens attention heads with zeros, exactly, where onnxruntime's attention cannot take a base's head size."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEAD_SIZE_STEP = 16  # of GroupQueryAttention, which says so only when it runs
# these rotate neighbouring dimensions of a head; the others rotate dimension i with dimension i + size / 2
_INTERLEAVED = ("Ernie4_5ForCausalLM",)
# these scale the scores by a number of their configuration; the others by 1 / sqrt(head size)
_OWN_SCALE = ("Gemma2ForCausalLM", "GraniteForCausalLM")
# these normalize each head of q and k
_HEAD_NORM = {"Qwen3ForCausalLM": "k_norm"}


def head_size(config: Mapping[str, Any]) -> int:
    """Size of a head, from what config.json says."""
    return int(config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1))


def head_layout(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the heads of a base are widened; None where onnxruntime takes them as they are.

    Returns:
        {"size": dimensions of a head, "padded_size": after padding, "positions": where each dimension goes, "scale":
        factor by projection}. The factors keep attention the same: it divides by sqrt(padded_size) instead of
        sqrt(size), and a norm over a head divides by more dimensions.
    """
    size = head_size(config)
    if size % HEAD_SIZE_STEP == 0:
        return None
    padded = math.ceil(size / HEAD_SIZE_STEP) * HEAD_SIZE_STEP
    architecture = config["architectures"][0]
    half = size // 2
    positions = list(range(size))
    if architecture not in _INTERLEAVED:
        positions = [*range(half), *range(padded // 2, padded // 2 + half)]
    factor = math.sqrt(padded / size)
    scaled = () if architecture in _OWN_SCALE else ("q_proj", "k_proj") if architecture in _HEAD_NORM else ("q_proj",)
    return {"size": size, "padded_size": padded, "positions": positions, "scale": dict.fromkeys(scaled, factor)}


def save_padded(folder: Path, layout: Mapping[str, Any], out: Path) -> None:
    """Saves the base in `folder` with widened heads to `out`, at float32: the same function of a text.

    The rotary base becomes base ** (padded_size / size), which leaves the frequency of each real dimension as it was:
    (base ** (p / s)) ** (-2i / p) = base ** (-2i / s). Scaling of frequencies (linear, llama3) goes by the frequency.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    counts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads, "qkv_proj": heads + 2 * kv_heads}
    k_norm = _HEAD_NORM.get(config.architectures[0])
    state = {}
    for name, value in model.state_dict().items():
        _, _, module = name.rpartition(".")[0].rpartition(".")
        if ".self_attn." not in name:
            state[name] = value
        elif module == "o_proj" and name.endswith("weight"):
            state[name] = _widen(value.T, heads, layout).T.contiguous()
        elif module == "qkv_proj":
            parts = value.split([n * layout["size"] for n in (heads, kv_heads, kv_heads)])
            names = ("q_proj", "k_proj", "v_proj")
            widened = [
                _widen(part, counts[n], layout) * layout["scale"].get(n, 1)
                for n, part in zip(names, parts, strict=True)
            ]
            state[name] = torch.cat(widened)
        elif module in counts:
            state[name] = _widen(value, counts[module], layout) * layout["scale"].get(module, 1)
        elif "norm" in module:
            state[name] = _widen(value, 1, layout) / (layout["scale"]["k_proj"] if module == k_norm else 1)
        else:  # o_proj's bias
            state[name] = value
    config.head_dim = layout["padded_size"]
    config.rope_parameters["rope_theta"] **= layout["padded_size"] / layout["size"]
    model.save_pretrained(out, state_dict=state)
    for file in folder.iterdir():
        if file.is_file() and not (out / file.name).exists() and file.suffix in (".json", ".model", ".txt", ".jinja"):
            shutil.copyfile(file, out / file.name)


def mark_slots(slots: Mapping[str, dict[str, Any]], layout: Mapping[str, Any] | None) -> None:
    """Adds `layout` as "heads" to the attention's slots, so that adapters of the base itself are widened to fit."""
    for name, entry in slots.items():
        if layout is not None and ".attn." in name:
            entry["heads"] = dict(layout)


def _widen(value: torch.Tensor, count: int, layout: Mapping[str, Any]) -> torch.Tensor:
    """(count * size, ...) to (count * padded_size, ...), zeros between."""
    heads = value.reshape(count, layout["size"], *value.shape[1:])
    wide = heads.new_zeros(count, layout["padded_size"], *value.shape[1:])
    wide[:, layout["positions"]] = heads
    return wide.reshape(-1, *value.shape[1:])
