"""Writes a base model folder whose projections have an adapter added: LoRA or DoRA, from slots or PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.adapter_file import MAGNITUDE
from runtime.adapter_names import FITS, OTHER_BASE, REPAIRED, UNUSABLE, finding, oriented, sort_parts
from runtime.adapter_source import Source
from runtime.bottleneck import NOT_LINEAR, PARTS, PEFT_TYPE
from runtime.conversion import OWN_WEIGHTS, PACKS, refusal
from runtime.errors import PackageError
from runtime.head_sizes import narrow_heads, narrow_scale, own_parts
from runtime.lora_quantization import ZERO_POINT
from runtime.peft_config import meaning_problems, scale
from runtime.virtual_tokens import NO_WEIGHTS


@dataclass(frozen=True)
class Change:
    """What an adapter does to a projection's weight W (out, in): W + (a @ b).T; DoRA scales each row of that.

    Attributes:
        a: float32 (in, r).
        b: float32 (r, out), the scale folded in.
        magnitude: float32 (out,), the length that DoRA gives each row, or None.
        factor: float32 (out,), the scale of each row where it is known already, as in a DoRA slot, or None.
    """

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None = None
    factor: np.ndarray | None = None

    def apply(self, weight: np.ndarray) -> np.ndarray:
        """The merged weight, float32 (out, in).

        DoRA (Liu et al. 2024, equation 5) keeps the direction of each row of V = W + BA and sets its length: m V / |V|.
        """
        scale = self.scale(weight) if self.factor is None else self.factor
        merged: np.ndarray = weight + (self.a @ self.b).T
        return merged if scale is None else merged * scale[:, None]

    def scale(self, weight: np.ndarray) -> np.ndarray | None:
        """DoRA's m / |V| of each row, float32 (out,); None without a magnitude."""
        if self.magnitude is None:
            return None
        scale: np.ndarray = self.magnitude / np.linalg.norm(weight + (self.a @ self.b).T, axis=1)
        return scale


def changes_from_slots(
    tensors: Mapping[str, np.ndarray], slots: Mapping[str, Mapping[str, Any]], weights: Collection[str]
) -> dict[str, Change]:
    """Changes of an adapter in slot form, by projection, such as model.layers.0.self_attn.q_proj.

    Args:
        weights: names of the base's weights. Where it keeps q, k and v in one, or gate and up, so does the change.

    Raises:
        PackageError: it has bottlenecks.
    """
    if any(name.endswith(PARTS) for name in tensors):
        raise PackageError(NOT_LINEAR)
    sizes = {f"{_parent(slot)}.{part}": size for slot in slots for part, size in own_parts(slot, slots).items()}
    changes: dict[str, Change] = {}
    for slot, entry in slots.items():
        if f"{slot}.lora_A.weight" not in tensors:
            continue
        a, b = (tensors[f"{slot}.lora_{half}.weight"][0].astype(np.float32) for half in "AB")
        if entry.get("a_dtype") == "uint8":
            a -= ZERO_POINT
        a, b = narrow_heads((a, b), entry)
        factors = _factors(tensors, slot, entry)
        parent, first = _parent(slot), 0
        for part, size in own_parts(slot, slots).items():
            block = b[:, first : first + size]
            factor = None if factors is None else factors[first : first + size]
            first += size
            used = block.any(axis=1)
            if not used.any() and (factor is None or (factor == 1).all()):
                continue
            name, change = f"{parent}.{part}", Change(a[:, used], block[used], factor=factor)
            packs = (p for p, m in PACKS.items() if part in m and f"{parent}.{p}.weight" in weights)
            if f"{name}.weight" not in weights and (pack := next(packs, None)):
                lengths = {member: sizes[f"{parent}.{member}"] for member in PACKS[pack]}
                before = sum(list(lengths.values())[: list(lengths).index(part)])
                around = (before, sum(lengths.values()) - before - size)
                factor = None if factor is None else np.pad(factor, around, constant_values=1)
                name, change = f"{parent}.{pack}", Change(change.a, np.pad(change.b, ((0, 0), around)), factor=factor)
                if (other := changes.get(name)) is not None:
                    change = _joined(other, change)
            changes[name] = change
    return changes


def _factors(tensors: Mapping[str, np.ndarray], slot: str, entry: Mapping[str, Any]) -> np.ndarray | None:
    """DoRA's scale of the base's own outputs in a slot, None where the adapter has none there."""
    if (stored := tensors.get(slot + MAGNITUDE)) is None:
        return None
    return narrow_scale(stored[0, 0].astype(np.float32), entry)


def _joined(one: Change, other: Change) -> Change:
    """Two changes of different rows of one weight."""
    factors = [change.factor for change in (one, other) if change.factor is not None]
    a, b = np.concatenate([one.a, other.a], 1), np.concatenate([one.b, other.b], 0)
    return Change(a, b, factor=np.prod(factors, axis=0) if factors else None)


def _parent(slot: str) -> str:
    """The layer's block in the base's own words: the graph calls self_attn attn."""
    return slot.rpartition(".")[0].replace(".attn", ".self_attn")


def changes_from_peft(source: Source, hidden: int) -> tuple[dict[str, Change], np.ndarray | None]:
    """(changes by projection, head (hidden, classes) or None) of a PEFT folder, LoRA or DoRA.

    Raises:
        PackageError: everything that cannot be merged, each naming file and key.
    """
    if source.config is None:
        raise PackageError(f"{source.path}: only a PEFT folder, or an adapter of the package, can be merged")
    parts = sort_parts(source)
    problems, findings = meaning_problems(source.config), parts.findings
    if parts.bottlenecks or source.config.get("peft_type") == PEFT_TYPE:
        problems.append(NOT_LINEAR)
    if parts.own_weights:
        problems.append(OWN_WEIGHTS.format(len(parts.own_weights), parts.own_weights[0]))
    if parts.virtual:
        problems.append(f"peft_type is {source.config.get('peft_type')}: virtual tokens, {NO_WEIGHTS}")
    changes = {}
    for module in parts.modules.values():
        key = next(iter(module.parts.values()))[0]
        wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if source.config.get("use_dora") else set())
        if set(module.parts) != wanted:
            note = f"{module.name} has {', '.join(sorted(module.parts))}, but must have {', '.join(sorted(wanted))}"
            findings.append(finding(source, key, UNUSABLE, note))
            continue
        a, _ = oriented(module.parts["lora_A"][1], True, None, 0)
        b, _ = oriented(module.parts["lora_B"][1], True, None, 1)
        magnitude = module.parts["lora_magnitude_vector"][1].reshape(-1) if len(wanted) == 3 else None
        lengths = b.shape[-1:] if magnitude is None else magnitude.shape
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or a.shape[1] == 0 or lengths != b.shape[1:]:
            note = f"{module.name} has A {list(a.shape)} and B {list(b.shape)}"
            findings.append(finding(source, key, UNUSABLE, note + ", but must have [in, r] and [r, out], r above 0"))
            continue
        factor = np.float32(scale(source.config, module.name, a.shape[1]))
        changes[module.name] = Change(a, b * factor, magnitude)
    head = None
    if parts.head is not None:
        head, _ = oriented(parts.head[1], True, hidden, 0)
        if head.ndim != 2 or head.shape[0] != hidden:
            note = f"the head has shape {list(parts.head[1].shape)}, but the base takes [classes, {hidden}]"
            findings.append(finding(source, parts.head[0], OTHER_BASE, note))
    if problems or any(f.verdict not in (FITS, REPAIRED) for f in findings):
        raise PackageError(refusal(source, problems, findings))
    return changes, head


def weight_shapes(base: Path) -> dict[str, list[int]]:
    """Shapes of a base's weights by name, from the headers of its safetensors.

    Raises:
        PackageError: the base has none.
    """
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, framework="np") as file:
            shapes |= {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if not shapes:
        raise PackageError(f"{base}: has no *.safetensors, which merging reads; save the base with save_pretrained")
    return shapes


def write_merged_base(base: Path, folder: Path, changes: Mapping[str, Change]) -> None:
    """Writes a copy of a base with its projections changed. Changed weights are float32, the others as they were.

    Raises:
        PackageError: the base lacks a projection, or one has another size; all in one error.
    """
    import torch
    from safetensors.torch import load_file, save_file

    _check_places(base, changes)
    folder.mkdir(parents=True)
    for shard in sorted(base.glob("*.safetensors")):
        tensors = load_file(shard)
        for module, change in changes.items():
            if (key := f"{module}.weight") in tensors:
                tensors[key] = torch.from_numpy(change.apply(tensors[key].float().numpy()))
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
    for pattern in ("*.json", "*.model", "*.txt", "*.jinja"):
        for file in base.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    # a loader in the base's half precision would round the merged weights
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _check_places(base: Path, changes: Mapping[str, Change]) -> None:
    shapes = weight_shapes(base)
    problems = []
    for module, change in changes.items():
        size, wanted = shapes.get(f"{module}.weight"), [change.b.shape[1], change.a.shape[0]]
        if size is None:
            problems.append(f"{base}: has no weight {module}.weight")
        elif size != wanted:
            problems.append(f"{base}: {module}.weight has shape {size}, but the adapter was made for {wanted}")
    if problems:
        raise PackageError("this adapter cannot be merged:\n" + "\n".join(f"  - {p}" for p in problems[:20]))
