"""Fits an adapter's virtual tokens to the inputs that a graph has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.adapter_names import FITS, NO_SLOT, OTHER_BASE, UNUSABLE, Finding, finding
from runtime.adapter_source import Source
from runtime.virtual_tokens import EMBEDDING, input_sizes, kind_of, prefix_size, prefix_tensors, prompt_tensors

PEFT_KEY = "prompt_embeddings"
_AGAIN = "export again with such an adapter among the workflow's passes"


def fit_virtual(
    source: Source, values: Mapping[str, np.ndarray], layout: Mapping[str, Any] | None, hidden: int | None
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """Inputs of the graph, float32, and what became of each tensor.

    Args:
        source: the adapter.
        values: its tensors of virtual tokens, by their keys: PEFT's one, or inputs of a graph.
        layout: "virtual_tokens" of the manifest, None where the graph takes none.
        hidden: hidden size of the base.
    """
    if PEFT_KEY in values:
        tensors, verdict, note = _from_peft(source, values[PEFT_KEY], layout, hidden)
        return tensors, [finding(source, key, verdict, note) for key in values]
    sizes = input_sizes(layout, hidden)
    tensors, findings = {}, []
    for key, value in values.items():
        if key not in sizes:
            findings.append(finding(source, key, NO_SLOT, f"this package takes no such virtual tokens; {_AGAIN}"))
        elif value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != (sizes[key] or value.shape[2]):
            note = f"has shape {list(value.shape)}, but the graph takes [1, virtual tokens, {sizes[key]}]"
            findings.append(finding(source, key, OTHER_BASE, note))
        else:
            tensors[key] = value
            findings.append(finding(source, key, FITS, f"-> {key}, {value.shape[1]} virtual tokens"))
    return tensors, findings


def _from_peft(
    source: Source, value: np.ndarray, layout: Mapping[str, Any] | None, hidden: int | None
) -> tuple[dict[str, np.ndarray], str, str]:
    """(inputs, verdict, note) for what PEFT saves: (virtual, numbers of each)."""
    config = source.config or {}
    kind = kind_of(config)
    if kind is None:
        return {}, UNUSABLE, f"virtual tokens, but peft_type is {config.get('peft_type')!r}"
    if layout is None or (kind == "prefix" and "prefix" not in layout):
        return {}, NO_SLOT, f"this package has no inputs for {kind} tuning; {_AGAIN}"
    wanted = hidden if kind == "prompt" else prefix_size(layout["prefix"])
    virtual = config.get("num_virtual_tokens")
    if value.ndim != 2 or value.shape != (virtual, wanted or value.shape[-1]):
        return {}, OTHER_BASE, f"has shape {list(value.shape)}, but the base takes [{virtual}, {wanted}]"
    if kind == "prompt":
        return prompt_tensors(value), FITS, f"-> {EMBEDDING}, {virtual} virtual tokens"
    tensors = prefix_tensors(value, layout["prefix"])
    return tensors, FITS, f"-> keys and values of {len(tensors) - 1} inputs, {virtual} virtual tokens"
