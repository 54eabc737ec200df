"""Bottleneck adapters as files: what their configuration and tensors must be, and how they go into a graph's slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BOTTLENECK = "bottleneck"  # in a manifest's extra_slots, and in the "extra" of a slot that takes one
PEFT_TYPE = "BOTTLENECK"  # in adapter_config.json; PEFT itself has no such type
ACTIVATION = "gelu"  # the exact one, with erf
PARTS = ("bottleneck_down.weight", "bottleneck_down.bias", "bottleneck_up.weight", "bottleneck_up.bias")
MAX_SIZE = 1 << 16
NO_SLOTS = (
    "is a bottleneck adapter, but this package's graph has no slots for them; a package has those that its adapters "
    "need when it is exported: export it again with a pass of method 'bottleneck'"
)

NOT_LINEAR = (
    "is a bottleneck adapter, which cannot be merged: there is an activation in it, so no weights of the base compute "
    "the same; it runs beside others in the package"
)


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the adapter_config.json of a bottleneck adapter; {"peft_type", "bottleneck_size"} suffice."""
    problems = []
    size, activation = config.get("bottleneck_size"), config.get("activation", ACTIVATION)
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_SIZE:
        problems.append(f"bottleneck_size is {str(size)[:40]}, but must be a whole number from 1 to {MAX_SIZE}")
    if activation != ACTIVATION:
        problems.append(f"activation is {str(activation)[:40]}; slots compute '{ACTIVATION}'")
    return problems


def takes_bottleneck(slot: Mapping[str, Any]) -> bool:
    """Whether an entry of the slot table has inputs for a bottleneck adapter."""
    return BOTTLENECK in slot.get("extra", ())


def in_slot_form(parts: Mapping[str, np.ndarray], turned: bool) -> dict[str, np.ndarray]:
    """Tensors by part as a graph takes them: down (1, hidden, size), up (1, size, hidden), biases (1, 1, n).

    Args:
        turned: they are PyTorch's: weights (out, in), biases (n,). A tensor with other dimensions stays as it is.
    """
    result = {}
    for part, value in parts.items():
        fits = value.ndim == (2 if part.endswith("weight") else 1)
        result[part] = (value.T if value.ndim == 2 else value[None])[None] if turned and fits else value
    return result


def misfit(parts: Mapping[str, np.ndarray], hidden: int) -> str:
    """Why tensors in slot form are no bottleneck adapter of a layer with `hidden` outputs; empty where they are one."""
    if missing := [part for part in PARTS if part not in parts]:
        return f"comes without its {', '.join(missing)}"
    down = parts[PARTS[0]]
    size = down.shape[-1] if down.ndim == 3 else 0
    wanted = [(1, hidden, size), (1, 1, size), (1, size, hidden), (1, 1, hidden)]
    if [parts[part].shape for part in PARTS] == wanted:
        return ""
    found = ", ".join(f"{part} {list(parts[part].shape)}" for part in PARTS)
    return f"has {found}, but the base takes [1, {hidden}, s], [1, 1, s], [1, s, {hidden}], [1, 1, {hidden}]"


def place(
    module: str,
    parts: Mapping[str, np.ndarray],
    turned: bool,
    places: Sequence[tuple[str, str | None]],
    slots: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any] | None,
) -> tuple[str, dict[str, np.ndarray], str]:
    """(slot, tensors in slot form, why not): of a layer's adapter; "why not" is empty where it fits.

    Args:
        module: the layer's name, for messages.
        parts, turned: see `in_slot_form`.
        places: slots that stand for the layer.
        config: adapter_config.json, whose bottleneck_size must be that of the tensors; None of other files.
    """
    slot = places[0][0] if len(places) == 1 else ""
    if not slot or not takes_bottleneck(slots[slot]):
        return "", {}, f"{module} has no slot for a bottleneck adapter; the last projections of attention and MLP have"
    if config is not None and config.get("peft_type") != PEFT_TYPE:
        return slot, {}, f"is of a bottleneck adapter, but peft_type is '{config.get('peft_type')}', not '{PEFT_TYPE}'"
    tensors = in_slot_form(parts, turned)
    if problem := misfit(tensors, slots[slot]["out"]):
        return slot, {}, f"{module} {problem}"
    size = tensors[PARTS[0]].shape[2]
    if config is not None and size != config["bottleneck_size"]:
        return slot, {}, f"{module} has size {size}, but bottleneck_size is {config['bottleneck_size']}"
    return slot, tensors, ""
