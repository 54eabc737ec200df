"""Turns adapters of other tools into slot tensors: PEFT LoRA folders, and files of `olive convert-adapters`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.adapter_file import HEAD, check_fits, read_adapter
from runtime.errors import PackageError, nearest

_PACKED = ("q_proj", "k_proj", "v_proj")
_PEFT_KEY = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+))\.lora_(A|B)\.weight")
_MODULE_KEY = re.compile(r"base_model\.model\.([\w.]+)\.lora_(A|B)\.weight")  # of bases whose slots are named so
_OLIVE_KEY = re.compile(r"(model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+))\.lora_(A|B)\.weight")
_SCORE = "base_model.model.score.weight"
# these initializations change the base's own weights, so the two matrices alone are not the adapter
_BASE_CHANGING = ("corda", "loftq", "olora", "pissa")

Pair = tuple[np.ndarray, np.ndarray]  # A (in, r) and B (r, out) with the scale folded in


def tensors_from_peft(
    folder: Path, slots: Mapping[str, Mapping[str, Any]], hidden: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Slot tensors of a PEFT LoRA folder (adapter_config.json, adapter_model.safetensors).

    The scale is alpha / r, or alpha / sqrt(r) with use_rslora (Kalajdzievski 2023), with a module's own r and alpha
    where rank_pattern and alpha_pattern give them; it is folded into B. The LoRA of q, k and v is packed into one slot:
    A side by side, B block-diagonal. A `score.weight` (classes, hidden) becomes the classification head.

    Args:
        folder: the PEFT folder; weights in float32, float16 or bfloat16.
        slots: table of `passes.graph.slots.add_slots`; its dtype is the tensors' dtype.
        hidden: hidden size of the base.

    Returns:
        (tensors by input name, {"rank": largest rank, "target_modules": sorted names, "classes": number or None}).

    Raises:
        PackageError: everything in the folder that slots cannot hold, each naming file and key.
    """
    folder = Path(folder)
    config_path, weights_path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            hint = (
                " (adapter_model.bin is a pickle, which is never loaded)"
                if (folder / "adapter_model.bin").exists()
                else ""
            )
            raise PackageError(f"{path}: there is no such file{hint if path == weights_path else ''}")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackageError(f"{config_path}: is no JSON: {error}") from error
    if missing := [key for key in ("peft_type", "r", "lora_alpha") if key not in config]:
        raise PackageError(f"{config_path}: is no LoRA configuration, it lacks {', '.join(missing)}")
    problems = [f"{config_path}: {p}" for p in _config_problems(config)]
    weights = _read_safetensors(weights_path)
    score = weights.pop(_SCORE, None)
    halves: dict[str, dict[str, np.ndarray]] = {}
    for key, value in weights.items():
        match = _PEFT_KEY.fullmatch(key)
        by_module = _MODULE_KEY.fullmatch(key)
        if match is not None:
            halves.setdefault(match[1], {})[match[5]] = value
        elif by_module is not None and by_module[1] in slots:
            halves.setdefault(by_module[1], {})[by_module[2]] = value
        elif not key.endswith("lora_magnitude_vector"):  # DoRA's, which use_dora has named already
            pattern = re.sub(r"\.\d+\.", ".{n}.", key)  # one line for all layers
            problems.append(
                f"{weights_path}: {pattern} has no slot; slots take the LoRA of {_targets(slots)}, and score.weight"
            )
    problems = list(dict.fromkeys(problems))
    if problems:
        raise PackageError("this adapter cannot be converted:\n" + "\n".join(f"  - {p}" for p in problems))
    pairs: dict[str, Pair] = {}
    for module, half in halves.items():
        if set(half) != {"A", "B"}:
            raise PackageError(f"{weights_path}: {module} comes without its lora_{'B' if 'A' in half else 'A'}")
        scale = _scale(config, module, rank=half["A"].shape[0])
        pairs[module] = half["A"].T, half["B"].T * np.float32(scale)
    return _fill_slots(pairs, None if score is None else score.T, slots, hidden, str(weights_path))


def tensors_from_olive_adapter(
    path: Path, slots: Mapping[str, Mapping[str, Any]], hidden: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Slot tensors of an .onnx_adapter or .safetensors file; `olive convert-adapters` has folded the scale into B.

    A file that is in slot form already passes through after the check. Returns and raises as `tensors_from_peft`.
    """
    path = Path(path)
    if path.suffix == ".onnx_adapter":
        tensors = read_adapter(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        raise PackageError(f"{path}: an adapter is a PEFT folder, an .onnx_adapter file or a .safetensors file")
    names = {f"{slot}.lora_{half}.weight" for slot in slots for half in "AB"} | {HEAD}
    if tensors and set(tensors) <= names:
        problems = check_fits(tensors, slots, hidden)
        if problems:
            raise PackageError("\n".join(f"{path}: {p}" for p in problems))
        return tensors, _describe_slot_form(tensors, slots)
    score = tensors.pop(_SCORE, None)
    halves: dict[str, dict[str, np.ndarray]] = {}
    problems = []
    for key, value in tensors.items():
        match = _OLIVE_KEY.fullmatch(key)
        if match is None:
            hint = (
                "int4 adapter weights have no slot, convert without --quantize_int4"
                if ".quant." in key
                else "it has no slot"
            )
            problems.append(f"{path}: {key}: {hint}; slots take the LoRA of {_targets(slots)}")
        else:
            halves.setdefault(match[1], {})[match[5]] = value
    problems += [
        f"{path}: {m} comes without its lora_A or lora_B" for m, half in halves.items() if set(half) != {"A", "B"}
    ]
    if not tensors:
        problems.append(f"{path}: holds no tensors")
    if problems:
        raise PackageError("this adapter cannot be converted:\n" + "\n".join(f"  - {p}" for p in problems))
    return _fill_slots({m: (half["A"], half["B"]) for m, half in halves.items()}, score, slots, hidden, str(path))


def _config_problems(config: Mapping[str, Any]) -> list[str]:
    """What adapter_config.json asks for that A and B alone cannot express."""
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')}; only LORA has slots, merge others into the base")
    if config.get("use_dora"):
        problems.append("use_dora is true; DoRA also rescales the base's weights, merge it into the base")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is '{config['bias']}'; slots have no bias, train with 'none'")
    for key in ("lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora"):
        if config.get(key):
            problems.append(f"{key} is {json.dumps(config[key])}; slots cannot express it")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        problems.append(
            f"init_lora_weights is '{start}', which changes the base's weights; "
            "save the adapter with path_initial_model_for_weight_conversion"
        )
    return problems


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r or alpha / sqrt(r); patterns match the end of a module's name, as in PEFT's get_pattern_key."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    key = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
    alpha = config["lora_alpha"] if key is None else patterns[key]
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _fill_slots(
    pairs: Mapping[str, Pair],
    head: np.ndarray | None,
    slots: Mapping[str, Mapping[str, Any]],
    hidden: int | None,
    source: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Puts LoRA pairs by module name into slots. All shapes are checked before anything is packed."""
    by_slot: dict[str, dict[str, Pair]] = {}
    problems = []
    for module, pair in pairs.items():
        for slot, part, (a, b) in _places(module, pair, slots):
            if slot not in slots:
                problems.append(f"{source}: {module} has no slot in this base; {nearest(slot, slots)}")
                continue
            wanted = (slots[slot]["in"], slots[slot]["parts"].get(part, slots[slot]["out"]))
            if (a.shape[0], b.shape[1]) != wanted or a.shape[1] != b.shape[0]:
                problems.append(
                    f"{source}: {module} has A {list(a.shape)} and B {list(b.shape)}, "
                    f"but the base takes [{wanted[0]}, r] and [r, {wanted[1]}]"
                )
            by_slot.setdefault(slot, {})[part] = (a, b)
    if head is not None and (head.ndim != 2 or head.shape[0] != (hidden or head.shape[0])):
        problems.append(
            f"{source}: score.weight has shape {list(head.T.shape)}, but the base takes [classes, {hidden}]"
        )
    if not pairs and head is None:
        problems.append(f"{source}: holds neither LoRA weights nor a classification head")
    if problems:
        raise PackageError("this adapter does not fit the base:\n" + "\n".join(f"  - {p}" for p in problems))
    dtype = next(iter(slots.values()))["dtype"]
    tensors: dict[str, np.ndarray] = {}
    with np.errstate(over="ignore"):  # what overflows in float16 is named below
        for slot in (s for s in slots if s in by_slot):
            a, b = _pack(by_slot[slot], slots[slot])
            tensors[f"{slot}.lora_A.weight"] = np.ascontiguousarray(a, dtype)[None]
            tensors[f"{slot}.lora_B.weight"] = np.ascontiguousarray(b, dtype)[None]
        if head is not None:
            tensors[HEAD] = np.ascontiguousarray(head, dtype)[None]
    overflow = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if overflow:
        raise PackageError(f"{source}: not finite at {dtype}: {', '.join(overflow)}")
    targets = sorted({module.rpartition(".")[2] for module in pairs})
    rank = max((a.shape[1] for a, _ in pairs.values()), default=0)
    return tensors, {"rank": rank, "target_modules": targets, "classes": None if head is None else head.shape[1]}


def _places(module: str, pair: Pair, slots: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Pair]]:
    """(slot, part, pair) of a module: q, k and v share a slot where the graph packs them; Phi-3 packs gate and up."""
    if module in slots:
        return [(module, module.rpartition(".")[2], pair)]
    parent, _, target = module.replace(".self_attn.", ".attn.").rpartition(".")
    if target in _PACKED and f"{parent}.qkv_proj" in slots:
        return [(f"{parent}.qkv_proj", target, pair)]
    if target == "gate_up_proj":
        a, b = pair
        half = b.shape[1] // 2
        return [
            (f"{parent}.gate_proj", "gate_proj", (a, b[:, :half])),
            (f"{parent}.up_proj", "up_proj", (a, b[:, half:])),
        ]
    return [(f"{parent}.{target}", target, pair)]


def _pack(parts: Mapping[str, Pair], slot: Mapping[str, Any]) -> Pair:
    """One A and B for a slot: A side by side, B block-diagonal in the order of the slot's parts."""
    if len(slot["parts"]) == 1 or not set(parts) <= set(slot["parts"]):
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


def _describe_slot_form(tensors: Mapping[str, np.ndarray], slots: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rank and targets of tensors in slot form: a part's rank is the number of B's rows that reach it."""
    ranks: dict[str, int] = {}
    for slot, entry in slots.items():
        b = tensors.get(f"{slot}.lora_B.weight")
        start = 0
        for part, size in entry["parts"].items():
            if b is not None:
                rank = int(b[0, :, start : start + size].any(axis=1).sum())
                ranks[part] = max(rank, ranks.get(part, 0))
            start += size
    classes = tensors[HEAD].shape[2] if HEAD in tensors else None
    targets = sorted(part for part, rank in ranks.items() if rank)
    return {"rank": max(ranks.values(), default=0), "target_modules": targets, "classes": classes}


def _targets(slots: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(sorted({part for slot in slots.values() for part in slot["parts"]}))


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Float32 tensors of a safetensors file. numpy has no bfloat16: those are read as the upper halves of float32."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise PackageError(f"{path}: is no safetensors file: {error}") from error
    tensors = {}
    for name, entry in entries:
        data, kind = entry["data"], entry["dtype"]
        if kind == "BF16":
            flat = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif kind in ("F16", "F32", "F64"):
            flat = np.frombuffer(data, {"F16": np.float16, "F32": np.float32, "F64": np.float64}[kind]).astype(
                np.float32
            )
        else:
            raise PackageError(f"{path}: {name} has dtype {kind}; valid: BF16, F16, F32, F64")
        tensors[name] = flat.reshape(entry["shape"])
    return tensors
