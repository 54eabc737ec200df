"""Reads and writes .onnx_adapter files, and says whether an adapter's tensors fit a graph's slots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bottleneck import PARTS, misfit, takes_bottleneck
from runtime.errors import nearest
from runtime.onnx_adapter import read_onnx_adapter
from runtime.virtual_tokens import input_sizes

HEAD = "class_head.weight"
MAGNITUDE = ".lora_magnitude.weight"  # how far a DoRA slot scales each output
_LORA = (".lora_A.weight", ".lora_B.weight")
_BOTTLENECK = tuple(f".{part}" for part in PARTS)


def read_adapter(path: Path) -> dict[str, np.ndarray]:
    """Tensors of an .onnx_adapter file, by name; copies, so that the file may be replaced afterwards.

    Raises:
        PackageError: the file is missing, or is no sound adapter file.
    """
    return read_onnx_adapter(path).tensors


def write_adapter(path: Path, tensors: Mapping[str, np.ndarray], base_fingerprint: str = "") -> None:
    """Writes tensors as an .onnx_adapter file, which onnxruntime and onnxruntime-genai load as it is.

    Args:
        path: the file; an older one is replaced.
        tensors: by input name of the graph; see passes/graph/slots.py and head.py for the shapes.
        base_fingerprint: hexadecimal; its start is stored as the file's model version, so that the file names its base.
    """
    import onnxruntime

    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(base_version(base_fingerprint))
    # sorted: the file's bytes depend on the order, and equal adapters shall give equal files
    values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for k, v in sorted(tensors.items())}
    adapter.set_parameters(values)
    adapter.export_adapter(str(path))


def base_version(base_fingerprint: str) -> int:
    """The number that stands for a base in an adapter file, an int32: 28 bits of its fingerprint, 0 for none."""
    return int(base_fingerprint[:7], 16) if base_fingerprint else 0


def stored_base_version(path: Path) -> int:
    """What `base_version` gave when the file was written; files of other tools have 0 or 1."""
    return read_onnx_adapter(path).model_version


def check_fits(
    tensors: Mapping[str, np.ndarray],
    slots: Mapping[str, Mapping[str, Any]],
    hidden: int | None = None,
    virtual: Mapping[str, Any] | None = None,
) -> list[str]:
    """Says what keeps tensors from being fed to a graph with these slots; an empty list means that they fit.

    Args:
        tensors: adapter tensors by input name: A (1, in, r), B (1, r, out), DoRA's scale (1, 1, out), head
            (1, hidden, classes), and those of `runtime.bottleneck.in_slot_form`.
        slots: table of `passes.graph.slots.add_slots`.
        hidden: hidden size of the base; None leaves the head's shape unchecked.
        virtual: "virtual_tokens" of the manifest; None where the graph takes none.
    """
    sizes = input_sizes(virtual, hidden)
    problems = []
    dtype = next(iter(slots.values()))["dtype"] if slots else "float32"
    if not tensors:
        problems.append("holds no tensors")
    for name, value in sorted(tensors.items()):
        slot_of_a = slots.get(name.removesuffix(_LORA[0]), {})  # empty for every other tensor
        taken = slot_of_a.get("a_dtype", dtype)
        if str(value.dtype) != taken:
            problems.append(f"{name} has dtype {value.dtype}, but the graph takes {taken}")
        if name == HEAD:
            if value.ndim != 3 or value.shape[0] != 1 or value.shape[1] != (hidden or value.shape[1]):
                problems.append(f"{name} has shape {list(value.shape)}, but the graph takes [1, {hidden}, classes]")
            continue
        if name in sizes:
            if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != (sizes[name] or value.shape[2]):
                wanted_shape = f"[1, virtual tokens, {sizes[name]}]"
                problems.append(f"{name} has shape {list(value.shape)}, but the graph takes {wanted_shape}")
            continue
        scaled = name.removesuffix(MAGNITUDE)
        if scaled != name and "dora" in slots.get(scaled, {}).get("extra", ()):
            if value.shape != (wanted := (1, 1, slots[scaled]["out"])):
                problems.append(f"{name} has shape {list(value.shape)}, but the graph takes {list(wanted)}")
            continue
        ending = next((e for e in (*_LORA, *_BOTTLENECK) if name.endswith(e)), "")
        slot = name.removesuffix(ending)
        if ending in _BOTTLENECK and takes_bottleneck(slots.get(slot, {})):
            there = {e.removeprefix("."): tensors[slot + e] for e in _BOTTLENECK if slot + e in tensors}
            if (problem := misfit(there, slots[slot]["out"])) and name == slot + f".{min(there)}":  # once a slot
                problems.append(f"{slot} {problem}")
            continue
        if ending not in _LORA or slot not in slots:
            problems.append(
                f"{name} has no slot in the graph; {nearest(name, [s + e for s in slots for e in _LORA][:40])}"
            )
            continue
        a, b = (tensors.get(slot + e) for e in _LORA)
        rank = next((x.shape[i] for x, i in ((a, -1), (b, -2)) if x is not None and x.ndim == 3), 0)
        wanted = (1, slots[slot]["in"], rank) if ending == _LORA[0] else (1, rank, slots[slot]["out"])
        if value.shape != wanted:
            problems.append(f"{name} has shape {list(value.shape)}, but the graph takes {list(wanted)}")
        if a is None or b is None:
            problems.append(f"{name} comes without its {'lora_B' if b is None else 'lora_A'}")
    return problems
