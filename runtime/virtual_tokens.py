"""Virtual tokens: what prompt tuning (Lester et al. 2021) and prefix tuning (Li and Liang 2021) put before a text.

The graph knows them by ids behind its vocabulary: id `first_id + i` is an adapter's i-th virtual token. Prompt tuning
gives each of them an embedding; prefix tuning gives them keys and values in each layer, and what their embedding is
does not matter. passes/graph/virtual_tokens.py makes the graph read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import PackageError

KINDS = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}  # by PEFT's peft_type
NO_WEIGHTS = "which stand before a text and change no weight that could be merged"
EMBEDDING = "virtual.embedding.weight"  # (lora_n, virtual_n, hidden)
ACTIVE = "virtual.prefix.weight"  # (lora_n, prefix_n, 1): 1 where keys and values are replaced


def kind_of(config: Mapping[str, Any]) -> str | None:
    """ "prompt" or "prefix" where an adapter_config.json is of one of them, whatever else its peft_type may hold."""
    return KINDS.get(str(config.get("peft_type")))


def virtual_ids(entry: Mapping[str, Any] | None, base: Mapping[str, Any]) -> list[int]:
    """Token ids that stand before each text of an adapter; none for most adapters, and for the base alone.

    Args:
        entry: the adapter's of the manifest, None for the base alone.
        base: entry of the manifest.
    """
    first = int(base["vocab_size"])
    return list(range(first, first + count(entry)))


def count(entry: Mapping[str, Any] | None) -> int:
    """How many virtual tokens stand before each text of an adapter."""
    return int((entry or {}).get("virtual_tokens") or 0)


def room_problem(virtual: int, max_length: int | None, context: int | None) -> str:
    """Why a base has no room for so many virtual tokens before a text of `max_length` tokens; empty where it has.

    They take at most half of the context: the rest is for texts.
    """
    if context is None:
        return ""
    if virtual > context // 2:
        return f"{virtual} virtual tokens, but they take at most {context // 2}, half of the base's context"
    if max_length is not None and max_length + virtual > context:
        return (
            f"max_length is {max_length} and {virtual} virtual tokens stand before the text, but the base's context "
            f"is {context}"
        )
    return ""


def check_room(name: str, entry: Mapping[str, Any], context: int | None) -> None:
    """Raises PackageError where the context has no room for an adapter's virtual tokens and texts."""
    if problem := room_problem(count(entry), entry["max_length"], context):
        raise PackageError(f"adapter '{name}': {problem}")


def input_sizes(layout: Mapping[str, Any] | None, hidden: int | None) -> dict[str, int | None]:
    """Inputs of a graph for virtual tokens and the size of their last dimension.

    Args:
        layout: "virtual_tokens" of the manifest, see `passes.graph.virtual_tokens.add_virtual_tokens`; None where the
            graph reads no virtual tokens.
        hidden: hidden size of the base, None if it does not matter.
    """
    if layout is None:
        return {}
    sizes: dict[str, int | None] = {EMBEDDING: hidden}
    if prefix := layout.get("prefix"):
        sizes[ACTIVE] = 1
        for layer in prefix["layers"]:
            sizes |= layer["inputs"]
    return sizes


def prompt_tensors(embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the graph for learned embeddings (virtual, hidden)."""
    return {EMBEDDING: embeddings[None]}


def prefix_size(prefix: Mapping[str, Any]) -> int:
    """How many numbers a virtual token of prefix tuning has: keys and values of all layers."""
    return len(prefix["layers"]) * 2 * int(prefix["kv_heads"]) * int(prefix["size"])


def prefix_tensors(flat: np.ndarray, prefix: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs of the graph for learned keys and values, float32.

    PEFT puts its keys into the cache, where keys have been rotated by their position already. The graph's attention
    rotates what it gets, so here each key is rotated back by its position: exactly, but for rounding.

    Args:
        flat: float32 (virtual, layers * 2 * kv_heads * size), as PEFT saves them.
        prefix: "prefix" of the layout: {"kv_heads", "size", "padded_size", "positions" of the own values in a head of
            the graph, "frequencies" in radians per position, "interleaved", "layers": [{"inputs": {name: size},
            "rotated"}]}; a layer has one input for query, key and value together or one for each of the last two.
    """
    virtual = len(flat)
    own = flat.reshape(virtual, len(prefix["layers"]), 2, prefix["kv_heads"], prefix["size"]).astype(np.float64)
    angles = np.arange(virtual)[:, None] * np.asarray(prefix["frequencies"], np.float64)
    tensors = {ACTIVE: np.ones((1, virtual, 1), np.float32)}
    for layer, pair in zip(prefix["layers"], own.swapaxes(0, 1), strict=True):
        keys, values = pair[:, 0], pair[:, 1]  # (virtual, heads, size)
        if layer["rotated"]:
            keys = _rotate_back(keys, angles, prefix["interleaved"])
        wide = [_widen(part, prefix).reshape(virtual, -1) for part in (keys, values)]
        if len(layer["inputs"]) == 1:
            ((name, size),) = layer["inputs"].items()
            wide = [np.zeros((virtual, size - sum(part.shape[1] for part in wide))), *wide]  # queries are never read
            tensors[name] = np.concatenate(wide, axis=1)[None].astype(np.float32)
        else:
            tensors |= {name: part[None].astype(np.float32) for name, part in zip(layer["inputs"], wide, strict=True)}
    return tensors


def _rotate_back(keys: np.ndarray, angles: np.ndarray, interleaved: bool) -> np.ndarray:
    """The keys (virtual, heads, size) that a rotation by angles (virtual, rotated / 2) makes these of (RoPE, Su et al.
    2021); dimensions behind the rotated ones stay."""
    half = angles.shape[1]
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    )
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    back = keys.copy()
    back[..., first] = keys[..., first] * cos + keys[..., second] * sin
    back[..., second] = keys[..., second] * cos - keys[..., first] * sin
    return back


def _widen(part: np.ndarray, prefix: Mapping[str, Any]) -> np.ndarray:
    """(virtual, heads, size) as (virtual, heads, padded_size), zeros between."""
    wide = np.zeros((*part.shape[:2], prefix["padded_size"]))
    wide[..., prefix["positions"]] = part
    return wide
