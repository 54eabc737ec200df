"""Sizes of projections and their adapters where a graph has widened a base's attention heads with zeros.

onnxruntime's attention takes head sizes that are multiples of 16; passes/graph/head_padding.py widens other bases to
them. An adapter that was trained on the base itself is widened in the same way when it is put into the graph's slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # A (in, r) and B (r, out)
Place = tuple[str, str | None]  # a slot, and the part of it (None: all of it)
Slots = Mapping[str, Mapping[str, Any]]


def graph_sizes(places: Sequence[Place], slots: Slots) -> tuple[int, int]:
    """Inputs and outputs of what a pair stands beside in the graph."""
    outputs = (slots[slot]["out"] if part is None else slots[slot]["parts"][part] for slot, part in places)
    return slots[places[0][0]]["in"], sum(outputs)


def own_sizes(places: Sequence[Place], slots: Slots) -> tuple[int, int]:
    """Inputs and outputs of the base's own projection; as in the graph, unless that has widened the heads."""
    size_in, size_out = graph_sizes(places, slots)
    first = slots[places[0][0]]
    if heads := first.get("heads"):
        if "o_proj" in first["parts"]:
            return size_in // heads["padded_size"] * heads["size"], size_out
        size_out = size_out // heads["padded_size"] * heads["size"]
    return size_in, size_out


def own_parts(name: str, slots: Slots) -> dict[str, int]:
    """Outputs of the base's own projections in a slot, by part."""
    return {part: own_sizes([(name, part)], slots)[1] for part in slots[name]["parts"]}


def widen_heads(part: str | None, pair: Pair, slot: Mapping[str, Any]) -> Pair:
    """The pair of a projection for the heads of the graph: as it is where they are the base's own.

    Args:
        part: one of the slot's parts, or None for a pair that covers all of them (Phi-3 packs q, k and v).
        pair: as it was trained: A (in, r), B (r, out) of the base's own sizes.
        slot: its "heads", if it has them, are {"size", "padded_size", "positions" of the own values in a widened
            head, "scale" by part}.
    """
    heads = slot.get("heads")
    if heads is None:
        return pair
    a, b = pair
    if "o_proj" in slot["parts"]:
        return _widen(a, heads), b
    b = _widen(b.T, heads).T
    sizes = slot["parts"] if part is None else {part: b.shape[1]}
    scale = np.repeat([heads["scale"].get(name, 1.0) for name in sizes], list(sizes.values()))
    return a, b * scale.astype(np.float32)


def narrow_heads(pair: Pair, slot: Mapping[str, Any]) -> Pair:
    """The reverse of `widen_heads`, for a pair that covers the slot."""
    heads = slot.get("heads")
    if heads is None:
        return pair
    a, b = pair
    if "o_proj" in slot["parts"]:
        return _narrow(a, heads), b
    scale = np.repeat([heads["scale"].get(part, 1.0) for part in slot["parts"]], list(slot["parts"].values()))
    return a, _narrow((b / scale.astype(np.float32)).T, heads).T


def widen_scale(scale: np.ndarray, slot: Mapping[str, Any]) -> np.ndarray:
    """DoRA's scale of own outputs (heads * size,) for the outputs of the graph: 1 for those that are always 0."""
    heads = slot.get("heads")
    return scale if heads is None or "o_proj" in slot["parts"] else _widen(scale[:, None], heads, 1)[:, 0]


def narrow_scale(scale: np.ndarray, slot: Mapping[str, Any]) -> np.ndarray:
    """The reverse of `widen_scale`."""
    heads = slot.get("heads")
    return scale if heads is None or "o_proj" in slot["parts"] else _narrow(scale[:, None], heads)[:, 0]


def _widen(value: np.ndarray, heads: Mapping[str, Any], between: float = 0) -> np.ndarray:
    """(heads * size, r) to (heads * padded_size, r)."""
    split = value.reshape(-1, heads["size"], value.shape[1])
    wide = np.full((len(split), heads["padded_size"], value.shape[1]), between, value.dtype)
    wide[:, heads["positions"]] = split
    return wide.reshape(-1, value.shape[1])


def _narrow(value: np.ndarray, heads: Mapping[str, Any]) -> np.ndarray:
    """(heads * padded_size, r) to (heads * size, r)."""
    wide = value.reshape(-1, heads["padded_size"], value.shape[1])
    return wide[:, heads["positions"]].reshape(-1, value.shape[1])
