"""What the names of an adapter's tensors say, in the schemes of PEFT, of both of Olive's ways, and of ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from runtime.adapter_source import CONFIG, Source
from runtime.lora_quantization import ZERO_POINT
from runtime.peft_config import FULL

FITS, REPAIRED, OTHER_BASE, NO_SLOT, UNUSABLE = "fits", "repaired", "other base", "no slot", "unusable"
# PEFT:            base_model.model.model.layers.0.self_attn.q_proj.lora_A[.default].weight
# convert-adapters:                 model.layers.0.self_attn.q_proj.lora_A.weight
# ExtractAdapters:                       model.layers.0.attn.q_proj.lora_A[.MatMul].weight
_LORA = re.compile(
    r"((?:base_model\.model\.)?)([\w.]+?)\.(lora_A|lora_B|lora_magnitude_vector|lora_magnitude)"
    r"(?:\.(\w+?))??(?:\.weight)?"
)
_BOTTLENECK = re.compile(r"((?:base_model\.model\.)?)([\w.]+?)\.(bottleneck_(?:down|up)\.(?:weight|bias))")
# of PEFT, and in the form of a graph's inputs, see runtime/virtual_tokens.py
_VIRTUAL = re.compile(
    r"prompt_embeddings|virtual\.(?:embedding|prefix)\.weight|model\.layers\.\d+\.attn\.\w+_proj\.prefix\.weight"
)
_HEADS = re.compile(
    r"(?:base_model\.model\.)?(?:score|classifier|class_head)"
    r"(?:\.(original_module|modules_to_save)(?:\.\w+)?)??\.(weight|bias)"
)


@dataclass
class Finding:
    """What became of one tensor of a source: its verdict, and where it went or why it did not."""

    key: str
    shape: list[int]
    dtype: str
    verdict: str
    note: str


@dataclass
class Module:
    """The tensors of one adapted layer, by their part: key and values.

    Parts are lora_A and lora_B; with DoRA also PEFT's lora_magnitude_vector, or in slot form lora_magnitude, the scale
    that comes of it. Those of a bottleneck adapter are runtime.bottleneck.PARTS.
    """

    name: str
    peft: bool  # PEFT's names come with A (r, in) and B (out, r); all others with A (in, r) and B (r, out)
    parts: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)


@dataclass
class Parts:
    """A source's tensors sorted by what their names say; `findings` holds those that no slot could take."""

    modules: dict[str, Module]
    head: tuple[str, np.ndarray] | None
    findings: list[Finding]
    repaired: dict[str, str]  # key -> what was odd about its name
    bottlenecks: dict[str, Module] = field(default_factory=dict)
    own_weights: list[str] = field(default_factory=list)  # names of the base's own weights, of a full fine-tuning
    virtual: dict[str, np.ndarray] = field(default_factory=dict)  # of virtual tokens, by their keys


def sort_parts(source: Source) -> Parts:
    """Sorts tensors by what their names say: layers with their A, B and magnitude, bottlenecks, a head, the rest."""
    parts = Parts({}, None, [], {})
    full = (source.config or {}).get("peft_type") == FULL
    for key, value in source.tensors.items():

        def told(verdict: str, note: str, key: str = key) -> None:
            parts.findings.append(finding(source, key, verdict, note))

        lora, head = _LORA.fullmatch(key) or _BOTTLENECK.fullmatch(key), _HEADS.fullmatch(key)
        in_8_bits = source.dtypes[key] == "uint8" and key.endswith(".lora_A.weight")  # of a slot, see quantize_a
        if in_8_bits:
            value = value.astype(np.float32) - ZERO_POINT
        if not in_8_bits and source.dtypes[key] not in ("float16", "float32", "float64", "bfloat16"):
            hint = "int4 weights have no slot, convert without --quantize_int4" if ".quant." in key else "no float"
            told(UNUSABLE, f"dtype {source.dtypes[key]}: {hint}")
        elif ".quant." in key:
            told(UNUSABLE, "int4 adapter weights have no slot, convert without --quantize_int4")
        elif not np.isfinite(value).all():
            told(UNUSABLE, "holds values that are not finite (NaN or infinity)")
        elif _VIRTUAL.fullmatch(key):
            parts.virtual[key] = value
        elif head is not None and head[1] == "original_module":
            told(REPAIRED, "left out: the head as it was before training")
        elif head is not None and head[2] == "bias":
            zero = not value.any()
            told(REPAIRED if zero else UNUSABLE, "left out: all zero" if zero else "a head's bias has no slot")
        elif head is not None and parts.head is None:
            parts.head = key, value
        elif full:
            parts.own_weights.append(key)
        elif lora is not None and not (lora[1] and source.kind == "safetensors"):
            name = lora[2] if not lora[2].startswith("layers.") else f"model.{lora[2]}"
            modules = parts.bottlenecks if lora.re is _BOTTLENECK else parts.modules
            module = modules.setdefault(name, Module(name, bool(lora[1])))
            if lora[3] in module.parts:
                told(UNUSABLE, f"comes twice, it is {module.parts[lora[3]][0]} too")
                continue
            module.parts[lora[3]] = key, value
            if (lora.re is _LORA and lora[4]) or name != lora[2]:
                parts.repaired[key] = "name"
        elif lora is not None:
            told(UNUSABLE, f"PEFT's names need the {CONFIG} beside the file, for the scale; give the folder")
        else:
            told(NO_SLOT, "has no slot; slots take the LoRA of projections, and a head named score or classifier")
    return parts


def oriented(value: np.ndarray, peft: bool, size: int | None, axis: int) -> tuple[np.ndarray, bool]:
    """(values as A (in, r) or B (r, out), whether that took another layout than the names promise).

    Args:
        size: what `axis` must have: in for A (axis 0), out for B (axis 1); None trusts the names.
    """
    flat = value[0] if value.ndim == 3 and len(value) == 1 else value
    if flat.ndim != 2:
        return value, False
    first, second = (flat.T, flat) if peft else (flat, flat.T)
    if size is None or first.shape[axis] == size or second.shape[axis] != size:
        return first, False
    return second, True


def finding(source: Source, key: str, verdict: str, note: str) -> Finding:
    return Finding(key, list(source.tensors[key].shape), source.dtypes[key], verdict, note)
