"""Reads an adapter of any kind as it is: a PEFT folder, an .onnx_adapter or a .safetensors file, trusting nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import PackageError
from runtime.manifest import file_sha256
from runtime.onnx_adapter import MAX_BYTES, MAX_NAME, Damaged, check_shape, read_onnx_adapter, widen_bfloat16
from runtime.peft_config import value_problems

CONFIG, WEIGHTS, SETTINGS_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter.json"
HEAD_KEY = "base_model.model.score.weight"  # a classification head (classes, hidden) in WEIGHTS
SCALES_FILE = "dora_scale.safetensors"  # beside the weights of a DoRA folder; passes.dora writes it
_MAX_JSON = 1 << 20  # bytes; real ones have a few thousand
_MAX_TENSORS = 20_000  # the largest models with slots have 2,000
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Scales:
    """By how much DoRA scales each output of a layer, which takes the base's weights to compute (`passes.dora`).

    Attributes:
        by_module: float32 (out,) by the layer's name in the base.
        base: fingerprint of the base.
        weights: sha256 of the adapter's weights.
    """

    by_module: dict[str, np.ndarray]
    base: str
    weights: str


@dataclass(frozen=True)
class Source:
    """An adapter as it was read, nothing converted.

    Attributes:
        path: the weights, which messages name.
        kind: "PEFT folder", "onnx_adapter" or "safetensors".
        tensors: by the names that the file uses; floating-point ones widened to float32 where they are halves.
        dtypes: what the file stores, by name.
        config: adapter_config.json of a PEFT folder.
        settings: adapter.json beside it, where our training left one.
        base_version: what an .onnx_adapter says of its base; see `runtime.adapter_file.base_version`.
        scales: of a DoRA folder, where they have been computed.
        sha256: of the weights, where there are scales to compare it with.
    """

    path: Path
    kind: str
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    config: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    base_version: int = 0
    scales: Scales | None = None
    sha256: str = ""


def read_source(path: Path) -> Source:
    """Reads an adapter.

    Raises:
        PackageError: there is nothing to read, the file is damaged, or adapter_config.json holds absurd values.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise PackageError(f"{path}: there is no such file or folder")
    if path.suffix == ".onnx_adapter":
        file = read_onnx_adapter(path)
        tensors = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in file.tensors.items()}
        return Source(path, "onnx_adapter", tensors, file.dtypes, base_version=file.model_version)
    if path.suffix == ".safetensors":
        if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
            return _read_folder(path.parent)
        return Source(path, "safetensors", *read_safetensors(path))
    raise PackageError(f"{path}: an adapter is a PEFT folder, an .onnx_adapter file or a .safetensors file")


def stated_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json as it stands; {} where there is none or no JSON object, which reading the adapter tells."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter.json beside a PEFT folder's weights; {} where there is none, as other tools leave it.

    Raises:
        PackageError: adapter.json is no JSON object.
    """
    path = Path(folder) / SETTINGS_FILE
    return _read_object(path) if path.is_file() else {}


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Float32 tensors of a safetensors file, and the dtypes that it stores.

    The library checks the header's length, and that the tensors lie side by side within the file; names, shapes and
    sizes that it lets pass are checked here.

    Raises:
        PackageError: the file is damaged, or holds something else than BF16, F16, F32 and F64.
    """
    from safetensors import SafetensorError, deserialize

    if path.stat().st_size > MAX_BYTES:
        raise PackageError(f"{path}: has {path.stat().st_size} bytes, but an adapter has at most {MAX_BYTES}")
    try:
        entries = deserialize(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise PackageError(f"{path}: is no safetensors file, or a damaged one: {error}") from error
    if len(entries) > _MAX_TENSORS:
        raise PackageError(f"{path}: has {len(entries)} tensors, but at most {_MAX_TENSORS} are taken")
    tensors: dict[str, np.ndarray] = {}
    problems = []
    for name, entry in sorted(entries, key=lambda item: item[0]):
        data, kind = bytes(entry["data"]), entry["dtype"]
        try:
            if not name.isprintable() or len(name) > MAX_NAME:
                raise Damaged(f"{name[:80]!r} is no name of a tensor")
            if kind not in _NAMES:
                raise Damaged(f"{name} has dtype {kind}; valid: {', '.join(_NAMES)}")
            if len(entry["shape"]) > 8:
                raise Damaged(f"{name} has {len(entry['shape'])} dimensions")
            check_shape(entry["shape"], name)
        except Damaged as error:
            problems.append(f"{path}: {error}")
            continue
        with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, and inf is named later
            flat = widen_bfloat16(data) if kind == "BF16" else np.frombuffer(data, _FLOATS[kind]).astype(np.float32)
        tensors[name] = flat.reshape(entry["shape"])
    if problems:
        raise PackageError("\n".join(problems[:20]))
    return tensors, {name: _NAMES[entry["dtype"]] for name, entry in entries}


def _read_folder(folder: Path) -> Source:
    config_path, weights_path = folder / CONFIG, folder / WEIGHTS
    for path in (config_path, weights_path):
        if not path.is_file():
            pickled = path == weights_path and (folder / "adapter_model.bin").exists()
            hint = " (adapter_model.bin is a pickle, which is never loaded)" if pickled else ""
            raise PackageError(f"{path}: there is no such file{hint}")
    for path in (config_path, weights_path, folder / SETTINGS_FILE, folder / SCALES_FILE):
        _check_link(path, folder)
    config = _read_object(config_path)
    if problems := value_problems(config):
        raise PackageError("\n".join(f"{config_path}: {p}" for p in problems[:20]))
    tensors, dtypes = read_safetensors(weights_path)
    source = Source(weights_path, "PEFT folder", tensors, dtypes, config, read_settings(folder))
    if not config.get("use_dora") or not (folder / SCALES_FILE).is_file():
        return source
    return replace(source, scales=_read_scales(folder / SCALES_FILE), sha256=file_sha256(weights_path))


def _read_scales(path: Path) -> Scales:
    from safetensors import safe_open

    values, _ = read_safetensors(path)
    with safe_open(path, framework="numpy") as file:
        facts = file.metadata() or {}
    return Scales(values, facts.get("base", ""), facts.get("weights", ""))


def _check_link(path: Path, folder: Path) -> None:
    """A link may stay in the folder, or lead to the blobs of the Hugging Face cache that the folder belongs to."""
    target = path.resolve()
    blobs = folder.resolve().parent.parent / "blobs"
    if not (target.is_relative_to(folder.resolve()) or target.is_relative_to(blobs)):
        raise PackageError(f"{path}: is a link that leaves the folder, to {target}; copy the file")


def _read_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON:
        raise PackageError(f"{path}: has {path.stat().st_size} bytes, but at most {_MAX_JSON} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise PackageError(f"{path}: must hold a JSON object")
    return value
