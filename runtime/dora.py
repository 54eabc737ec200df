"""DoRA in slots (Liu et al. 2024, arXiv:2402.09353): a scale of each output, m / |W + s B A|, beside A and B.

PEFT keeps the magnitude m and divides by the length of the base's rows as it runs. A package has no float weights to
do so; the scale is constant once the adapter is trained, so `passes.dora` computes it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runtime.adapter_names import NO_SLOT, UNUSABLE, Finding, Module, finding
from runtime.adapter_source import SCALES_FILE, Source
from runtime.head_sizes import Place, Slots, graph_sizes, own_sizes, widen_scale

DORA = "dora"  # in the "extra" of a slot that has a scale, and in a package's extra_slots
_MERGE = "`python -m runtime.adapters merge` makes it a package of its own"


def dora_problems(source: Source, slots: Slots, fingerprint: str) -> list[str]:
    """What keeps a DoRA folder from going into slots; an empty list for every other source."""
    if not (source.config or {}).get("use_dora"):
        return []
    if not any(map(_takes_scale, slots.values())):
        return [
            "use_dora is true, but this package has no slots for DoRA, which an export makes only where one of its "
            f"adapters needs them; export it again with this one in the workflow, or {_MERGE}"
        ]
    make = f"`python -m passes.dora {source.path.parent} --base BASE` writes it, BASE the package's float base"
    if source.scales is None:
        return [f"use_dora is true, but {SCALES_FILE}, which takes the base's weights to compute, is not there; {make}"]
    if source.scales.weights != source.sha256:
        return [f"{SCALES_FILE} was made from other weights than those of {source.path.name}; {make} anew"]
    if fingerprint and source.scales.base != fingerprint:
        return [f"{SCALES_FILE} was made with another base, {source.scales.base[:12]}, not {fingerprint[:12]}; {make}"]
    return []


def dora_note(source: Source) -> list[str]:
    """What `inspect` says of a DoRA folder."""
    if not (source.config or {}).get("use_dora"):
        return []
    found = "is" if source.scales is not None else "is not"
    return [f"use_dora is true; packages exported with a DoRA adapter have slots for it; {SCALES_FILE} {found} there"]


def place_scales(
    source: Source, modules: Mapping[str, Module], places_of: Callable[[str], list[Place]], slots: Slots
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """(scale of each slot that has one, float32 (out,), 1 where the adapter has none; what could not be placed)."""
    result: dict[str, np.ndarray] = {}
    findings = []
    for module in modules.values():
        places = places_of(module.name)
        key, scale = _scale(source, module)
        if not places or scale is None:
            if places and key:
                findings.append(finding(source, key, UNUSABLE, f"{SCALES_FILE} has no scale of {module.name}"))
            continue
        if not _takes_scale(slots[places[0][0]]):
            findings.append(finding(source, key, NO_SLOT, "this package has no slots for DoRA"))
            continue
        # a file in slot form has the graph's heads already, which may be wider than the base's own
        wide = source.config is None and graph_sizes(places, slots)[1] == len(scale)
        sizes = graph_sizes if wide else own_sizes
        if len(scale) != (size_out := sizes(places, slots)[1]):
            note = f"the scale of {module.name} has {len(scale)} values, but the base has {size_out} outputs"
            findings.append(finding(source, key, UNUSABLE, note))
            continue
        start = 0
        for place in places:
            size = sizes([place], slots)[1]
            _put(result, place, scale[start : start + size], slots, wide)
            start += size
    return result, findings


def _scale(source: Source, module: Module) -> tuple[str, np.ndarray | None]:
    """(key of the tensor that asks for a scale, the scale); "" where none does, None where it is not there."""
    if source.config is None:
        key, value = module.parts.get("lora_magnitude", ("", None))
        return key, None if value is None else value.reshape(-1)
    if not source.config.get("use_dora") or source.scales is None:
        return "", None
    scale = source.scales.by_module.get(module.name)
    return next(iter(module.parts.values()))[0], None if scale is None else scale.reshape(-1)


def _put(result: dict[str, np.ndarray], place: Place, scale: np.ndarray, slots: Slots, wide: bool) -> None:
    slot, part = place
    entry: Mapping[str, Any] = slots[slot]
    names = list(entry["parts"])
    start = 0 if part is None else sum(entry["parts"][name] for name in names[: names.index(part)])
    values = scale if wide else widen_scale(scale, entry)
    whole = result.setdefault(slot, np.ones(entry["out"], np.float32))
    whole[start : start + len(values)] = values


def _takes_scale(slot: Mapping[str, Any]) -> bool:
    return DORA in slot.get("extra", ())
