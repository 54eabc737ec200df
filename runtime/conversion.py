"""Fits an adapter to the slots of a base: names and layouts repaired, every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.adapter_file import HEAD, MAGNITUDE, base_version
from runtime.adapter_names import (
    FITS,
    NO_SLOT,
    OTHER_BASE,
    REPAIRED,
    UNUSABLE,
    Finding,
    Module,
    finding,
    oriented,
    sort_parts,
)
from runtime.adapter_source import CONFIG, Source, read_source
from runtime.bottleneck import NO_SLOTS, PARTS, place, takes_bottleneck
from runtime.bottleneck import PEFT_TYPE as BOTTLENECK
from runtime.dora import dora_problems, place_scales
from runtime.errors import PackageError, nearest
from runtime.head_sizes import Place, Slots, graph_sizes, own_sizes, widen_heads
from runtime.lora_quantization import quantize_a
from runtime.peft_config import meaning_problems, scale
from runtime.virtual_conversion import fit_virtual

# what some bases or graphs keep in one projection, and others apart
PACKS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_MOST_LINES = 20
OWN_WEIGHTS = (
    "peft_type is 'FULL': holds {} weights of the base itself ({}, for one), which have no slot beside other adapters; "
    "MultiAdapterExport makes a package of its own of them"
)

Pair = tuple[np.ndarray, np.ndarray]  # A (in, r) and B (r, out) with the scale folded in


@dataclass
class Fit:
    """An adapter against a base: `problems` and findings with a bad verdict say why it does not fit."""

    findings: list[Finding]
    problems: list[str]
    tensors: dict[str, np.ndarray]
    info: dict[str, Any]
    empty_slots: list[str]

    @property
    def fits(self) -> bool:
        return not self.problems and all(f.verdict in (FITS, REPAIRED) for f in self.findings)


def slot_tensors(
    path: Path | Source,
    slots: Slots,
    hidden: int | None,
    fingerprint: str = "",
    virtual: Mapping[str, Any] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Slot tensors of an adapter of any kind.

    Args:
        path: a PEFT folder, or an .onnx_adapter or .safetensors file; or what was read of one.
        slots: table of `passes.graph.slots.add_slots`; its dtype is the tensors' dtype.
        hidden: hidden size of the base.
        fingerprint: of the base, which an .onnx_adapter may contradict.
        virtual: "virtual_tokens" of the manifest; None where the graph takes none.

    Returns:
        (tensors by input name, {"rank": largest rank, "target_modules": sorted names, "classes": number or None}); a
        bottleneck adapter has rank 0 and a largest "bottleneck_size", one with virtual tokens
        their number "virtual_tokens".

    Raises:
        PackageError: everything that slots cannot hold, each naming file and key.
    """
    source = path if isinstance(path, Source) else read_source(path)
    result = fit(source, slots, hidden, fingerprint, virtual)
    if not result.fits:
        raise PackageError(refusal(source, result.problems, result.findings))
    return result.tensors, result.info


def refusal(source: Source, problems: Sequence[str], findings: Iterable[Finding]) -> str:
    """One message for everything that does not fit; the same trouble in many layers is one line."""
    lines = [f"{source.path.parent / CONFIG if source.config else source.path}: {p}" for p in problems]
    for f in findings:
        if f.verdict not in (FITS, REPAIRED):
            lines.append(re.sub(r"layers\.\d+\.", "layers.{n}.", f"{source.path}: {f.key}: {f.note}"))
    lines = list(dict.fromkeys(lines))
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"and {len(lines) - _MOST_LINES} more; `python -m runtime.adapters check` lists all"]
    return "this adapter does not fit the base:\n" + "\n".join(f"  - {line}" for line in lines)


def fit(
    source: Source,
    slots: Slots,
    hidden: int | None,
    fingerprint: str = "",
    virtual: Mapping[str, Any] | None = None,
) -> Fit:
    """Puts a source's tensors into slots; what does not fit is told, never dropped.

    The LoRA of q, k and v is packed into one slot where the graph packs them: A side by side, B block-diagonal; a
    packed LoRA is divided where the graph has separate slots. PEFT's scale is folded into B; other files have done so.
    A layout that does not fit but would when transposed is transposed; where both would fit, the names decide. DoRA's
    scales (see `runtime.dora`) lie side by side in a packed slot, 1 where the adapter has none.
    """
    parts = sort_parts(source)
    findings = parts.findings
    problems = [] if source.config is None else meaning_problems(source.config)
    problems += dora_problems(source, slots, fingerprint)
    if source.base_version not in (0, 1, base_version(fingerprint)) and fingerprint:
        problems.append(
            f"model version {source.base_version:07x}: it says that it was made for another base, "
            f"not for {fingerprint[:7]}"
        )
    if parts.own_weights:
        problems.append(OWN_WEIGHTS.format(len(parts.own_weights), parts.own_weights[0]))
    elif not (parts.modules or parts.bottlenecks or parts.virtual or parts.head is not None or findings):
        problems.append("holds neither LoRA weights nor a classification head")
    index = _index(slots)
    placed: dict[str, dict[str | None, Pair]] = {}
    for module in parts.modules.values():
        findings += _place_module(source, module, slots, index, placed, parts.repaired)
    bottlenecks, told_of_them, problem = _place_bottlenecks(source, parts.bottlenecks, slots, index)
    findings += told_of_them
    problems += problem
    scales, unplaced = place_scales(source, parts.modules, lambda name: _places(name, slots, index), slots)
    findings += unplaced
    head = None
    if parts.head is not None:
        head, told = _head(source, *parts.head, hidden)
        findings.append(told)
    dtype = str(next(iter(slots.values()))["dtype"])
    read, told_virtual = fit_virtual(source, parts.virtual, virtual, hidden)
    findings += told_virtual
    tensors: dict[str, np.ndarray] = {}
    with np.errstate(over="ignore"):  # what overflows in float16 is named below
        for slot in (s for s in slots if s in placed):
            a, b = _pack(placed[slot], slots[slot])
            a_dtype = slots[slot].get("a_dtype", dtype)
            if a_dtype == "uint8":
                a, b = quantize_a(a, b)
            tensors[f"{slot}.lora_A.weight"] = np.ascontiguousarray(a, a_dtype)[None]
            tensors[f"{slot}.lora_B.weight"] = np.ascontiguousarray(b, dtype)[None]
            if slot in scales:
                tensors[slot + MAGNITUDE] = np.ascontiguousarray(scales[slot], dtype)[None, None]
        for slot, values in bottlenecks.items():
            tensors |= {f"{slot}.{part}": np.ascontiguousarray(value, dtype) for part, value in values.items()}
        tensors |= {name: np.ascontiguousarray(value, dtype) for name, value in read.items()}
        if head is not None:
            tensors[HEAD] = np.ascontiguousarray(head, dtype)[None]
    if overflow := [name for name, value in tensors.items() if not np.isfinite(value).all()]:
        problems.append(f"not finite at {dtype}: {', '.join(overflow[:_MOST_LINES])}")
    ranks = _ranks(placed, slots)
    targets = {part for part, rank in ranks.items() if rank} | {slot.rpartition(".")[2] for slot in bottlenecks}
    info = {
        "rank": max(ranks.values(), default=0),
        "target_modules": sorted(targets),
        "classes": None if head is None else head.shape[1],
        **({"virtual_tokens": max(value.shape[1] for value in read.values())} if read else {}),
    }
    if bottlenecks:
        info["bottleneck_size"] = max(values[PARTS[0]].shape[2] for values in bottlenecks.values())
    return Fit(findings, problems, tensors, info, [s for s in slots if s not in placed and s not in bottlenecks])


def _place_bottlenecks(
    source: Source, modules: Mapping[str, Module], slots: Slots, index: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, dict[str, np.ndarray]], list[Finding], list[str]]:
    """(tensors by slot and part, a finding for each tensor, problems) of the layers' bottleneck adapters."""
    if modules and not any(map(takes_bottleneck, slots.values())):
        return {}, [], [NO_SLOTS]
    placed: dict[str, dict[str, np.ndarray]] = {}
    findings = []
    for module in modules.values():
        values = {part: value for part, (_, value) in module.parts.items()}
        places = _places(module.name, slots, index)
        slot, tensors, problem = place(module.name, values, module.peft, places, slots, source.config)
        problem = f"slot {slot} is taken by another tensor of this adapter" if slot in placed else problem
        if not problem:
            placed[slot] = tensors
        for key, _ in module.parts.values():
            verdict = UNUSABLE if problem else FITS
            findings.append(finding(source, key, verdict, problem or f"-> {slot}"))
    return placed, findings, []


def _place_module(
    source: Source,
    module: Module,
    slots: Slots,
    index: Mapping[str, tuple[str, str]],
    placed: dict[str, dict[str | None, Pair]],
    repaired: Mapping[str, str],
) -> list[Finding]:
    """Puts a layer's pair into its slots and says so of each of its tensors."""

    def told(verdict: str, note: str) -> list[Finding]:
        return [finding(source, key, verdict, note) for key, _ in module.parts.values()]

    if source.config is not None and source.config.get("peft_type") == BOTTLENECK:
        return told(UNUSABLE, f"is of a LoRA, but peft_type is '{BOTTLENECK}'")
    places = _places(module.name, slots, index)
    if not places:
        return told(*_homeless(module.name, slots))
    if missing := [half for half in ("lora_A", "lora_B") if half not in module.parts]:
        return told(UNUSABLE, f"{module.name} comes without its {missing[0]}")
    if "lora_magnitude_vector" in module.parts and not (source.config or {}).get("use_dora"):
        return told(UNUSABLE, "a DoRA magnitude, but use_dora is not true")
    if "lora_magnitude" in module.parts and source.config is not None:
        return told(UNUSABLE, f"{module.name} has the scale of a slot; a PEFT folder has a lora_magnitude_vector")
    raw_a, raw_b = module.parts["lora_A"][1], module.parts["lora_B"][1]
    # a file in slot form has the graph's heads already, which may be wider than the base's own
    in_slot_form = source.config is None and graph_sizes(places, slots) == (raw_a.shape[-2], raw_b.shape[-1])
    sizes = graph_sizes if in_slot_form else own_sizes
    size_in, size_out = sizes(places, slots)
    a, a_turned = oriented(raw_a, module.peft, size_in, 0)
    b, b_turned = oriented(raw_b, module.peft, size_out, 1)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != size_in or b.shape[1] != size_out or a.shape[1] != b.shape[0]:
        note = f"{module.name} has A {list(a.shape)} and B {list(b.shape)}"
        sizes_fit = a.ndim == b.ndim == 2 and a.shape[0] == size_in and b.shape[1] == size_out
        return told(
            UNUSABLE if sizes_fit else OTHER_BASE, f"{note}, but the base takes [{size_in}, r] and [r, {size_out}]"
        )
    factor = 1.0
    if source.config is not None:
        if a.shape[1] == 0:
            return told(UNUSABLE, f"{module.name} has rank 0")
        factor = scale(source.config, module.name, a.shape[1])
        with np.errstate(over="ignore"):
            b = b * np.float32(factor)
    start = 0
    for slot, part in places:
        size = sizes([(slot, part)], slots)[1]
        if part in placed.setdefault(slot, {}) or (placed[slot] and (part is None or None in placed[slot])):
            return told(UNUSABLE, f"slot {slot} is taken by another tensor of this adapter")
        block = b[:, start : start + size]
        used = block.any(axis=1) if len(places) > 1 else np.ones(len(block), bool)
        pair = (a[:, used], block[used])
        placed[slot][part] = pair if in_slot_form else widen_heads(part, pair, slots[slot])
        start += size
    target = ", ".join(slot if part in (None, slot.rpartition(".")[2]) else f"{slot} ({part})" for slot, part in places)
    findings = []
    for half, (key, _) in module.parts.items():
        odd = [repaired[key]] if key in repaired else []
        odd += ["transposed"] if {"lora_A": a_turned, "lora_B": b_turned}.get(half) else []
        note = f"-> {target}" + (f", times {factor:g}" if half == "lora_B" and factor != 1 else "")
        note += ", as its scale" if half.startswith("lora_magnitude") else ""
        note += f"; repaired: {', '.join(odd)}" if odd else ""
        findings.append(finding(source, key, REPAIRED if odd else FITS, note))
    return findings


def _head(source: Source, key: str, value: np.ndarray, hidden: int | None) -> tuple[np.ndarray | None, Finding]:
    """The head as (hidden, classes); PEFT keeps (classes, hidden), and `olive convert-adapters` turns it round."""
    head, turned = oriented(value, source.kind == "PEFT folder", hidden, 0)
    if head.ndim != 2 or head.shape[0] != (hidden or head.shape[0]) or head.shape[1] == 0:
        shape = list(head.T.shape)
        note = f"the head has shape {shape}, but the base takes [classes, {hidden}]"
        return None, finding(source, key, OTHER_BASE, note)
    note = f"-> {HEAD}, {head.shape[1]} classes" + ("; repaired: transposed" if turned else "")
    return head, finding(source, key, REPAIRED if turned else FITS, note)


def slot_places(name: str, slots: Slots) -> list[Place]:
    """(slot, part) of one of a base's projections by its name in PyTorch; part None is all of a slot, [] is no slot."""
    return _places(name, slots, _index(slots))


def _index(slots: Slots) -> dict[str, tuple[str, str]]:
    """{model.layers.0.attn.q_proj: (its slot, its part of the slot)}"""
    return {
        f"{slot.rpartition('.')[0]}.{part}": (slot, part) for slot, entry in slots.items() for part in entry["parts"]
    }


def _places(name: str, slots: Slots, index: Mapping[str, tuple[str, str]]) -> list[Place]:
    """(slot, part) that a layer's pair goes to; several where the layer is packed and the graph is not."""
    for module in (name, name.replace(".self_attn.", ".attn.")):
        if module in index:
            return [index[module]]
        if module in slots:
            return [(module, None)]
        parent, _, tail = module.rpartition(".")
        members = [index.get(f"{parent}.{member}") for member in PACKS.get(tail, ())]
        if members and all(members):
            return list(filter(None, members))
    return []


def _homeless(name: str, slots: Slots) -> tuple[str, str]:
    """Why a layer has no slot: another base's layer, or no projection."""
    layers = sorted({int(found[1]) for slot in slots if (found := re.search(r"layers\.(\d+)\.", slot))})
    layer = re.search(r"layers\.(\d{1,6})\.", name)
    if layers and layer and int(layer[1]) > layers[-1]:
        return OTHER_BASE, f"layer {layer[1]}, but the base has layers {layers[0]} to {layers[-1]}"
    return (
        NO_SLOT,
        f"{name} has no slot in this base; {nearest(name.replace('.self_attn.', '.attn.'), list(slots)[:40])}",
    )


def _pack(parts: Mapping[str | None, Pair], slot: Mapping[str, Any]) -> Pair:
    """One A and B for a slot: A side by side, B block-diagonal in the order of the slot's parts."""
    if None in parts:
        return parts[None]
    if len(slot["parts"]) == 1:
        return next(iter(parts.values()))
    columns, blocks = [], []
    start = 0
    for name, size in slot["parts"].items():
        if name in parts:
            a, b = parts[name]
            columns.append(a)
            blocks.append(np.pad(b, ((0, 0), (start, slot["out"] - start - size))))
        start += size
    return np.concatenate(columns, axis=1), np.concatenate(blocks, axis=0)


def _ranks(placed: Mapping[str, Mapping[str | None, Pair]], slots: Slots) -> dict[str, int]:
    """Largest rank of each projection; of a packed pair, the number of B's rows that reach the projection."""
    ranks: dict[str, int] = {}
    for slot, parts in placed.items():
        start = 0
        for part, size in slots[slot]["parts"].items():
            if part in parts:
                ranks[part] = max(ranks.get(part, 0), parts[part][0].shape[1])
            elif None in parts:
                reach = int(parts[None][1][:, start : start + size].any(axis=1).sum())
                ranks[part] = max(ranks.get(part, 0), reach)
            start += size
    return ranks
