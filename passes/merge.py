"""Merges one adapter into its base and builds a package of its own: for deployments that serve a single task."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from passes.base_model import local_folder
from passes.merged_base import Change, changes_from_peft, changes_from_slots, weight_shapes, write_merged_base
from passes.package import check_replaceable, write_package
from runtime.adapter_file import HEAD, read_adapter, write_adapter
from runtime.adapter_settings import SETTINGS, checked_settings
from runtime.adapter_source import read_source
from runtime.adapters import check_name, install_adapter
from runtime.atomic_folder import replace_folder
from runtime.errors import PackageError
from runtime.manifest import adapter_entry, base_fingerprint, read_manifest, write_manifest
from runtime.virtual_tokens import NO_WEIGHTS, count


def merge_adapter(
    package: Path,
    adapter: str,
    base: str | Path,
    folder: Path,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> str:
    """Writes a package with one adapter in its base, at the precision and for the target of `package`.

    The new package has one adapter, named as before, so that it is used as before: a classifier keeps its head as an
    adapter of rank 0; a generation adapter keeps its template, in a file whose matrices are empty.

    Args:
        package: the package; it stays as it is.
        adapter: name of an adapter in it, or a PEFT folder (LoRA or DoRA) that was trained on the same base.
        base: the float base that the package was made from: a folder, or the name of a Hugging Face repository.
        folder: the new package; any content but an older package is refused.
        name: the adapter's name in the new package; needed with a PEFT folder.
        settings: task, labels, template, max_length in the place of the adapter's own.
        replace: put it in the place of an older package.

    Returns:
        The adapter's name.

    Raises:
        PackageError: no such adapter, another base, one that torch exports (its weights have names and layouts of
            their own), or a folder that is no package; nothing was written.
        OlivalError: the build failed; an older package in `folder` stays as it was.
    """
    package, folder = Path(package).resolve(), Path(folder).resolve()
    manifest = read_manifest(package)
    if manifest.get("engine") == "onnxruntime":
        raise PackageError(
            f"{package}: its base is a {manifest['base'].get('architecture')}; merging is for the bases that "
            "onnxruntime-genai's builder knows"
        )
    if folder == package:
        raise PackageError(f"{folder}: is the package that is merged; choose another folder")
    check_replaceable(folder)
    if folder.exists() and any(folder.iterdir()) and not replace:
        raise PackageError(f"{folder}: there is a package already; --replace puts the new one in its place")
    source = local_folder(str(base))
    if (found := base_fingerprint(source)) != manifest["base"]["fingerprint"]:
        raise PackageError(
            f"{source}: is not the base of package '{manifest['name']}': fingerprint {found[:12]}, "
            f"not {manifest['base']['fingerprint'][:12]} ({manifest['base'].get('name')})"
        )
    name, changes, head, own = _adapter(package, manifest, adapter, name, source)
    check_name(name)
    classes = None if head is None else head.shape[2]
    given = checked_settings(name, {**own, **(settings or {})}, classes, manifest["base"])
    if given["task"] == "generation":
        head = None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="merge-") as work:
        merged = Path(work) / f"{source.name}-{name}"
        write_merged_base(source, merged, changes)
        new = Path(work) / "package"
        built = write_package(
            new,
            base_path=merged,
            adapter_folders={},
            precision=manifest["precision"],
            execution_provider=manifest["target"]["execution_provider"],
            quantization=manifest.get("quantization"),
            threads=manifest["target"].get("threads"),
            pooling=manifest["base"].get("pooling"),
            name=f"{manifest['name']}-{name}",
        )
        add_merged(new, built, name, head, given, manifest["base"]["fingerprint"])
        read_manifest(new)
        shutil.rmtree(merged)
        replace_folder(new, folder)
    return name


def add_merged(
    package: Path,
    built: dict[str, Any],
    name: str,
    head: np.ndarray | None,
    settings: Mapping[str, Any],
    fingerprint: str,
) -> None:
    """Gives a package whose base has an adapter in it that adapter's name, settings and head; writes its manifest.

    Args:
        built: the manifest, which has no adapters.
        head: float (1, hidden, classes), None where text is generated.
        fingerprint: of the base before the adapter was merged.
    """
    with tempfile.TemporaryDirectory(dir=package.parent, prefix="merge-") as work:
        file = Path(work) / f"{name}.onnx_adapter"
        write_adapter(file, {HEAD: head} if head is not None else _nothing(built["slots"]))
        built["adapters"][name] = install_adapter(package, built, name, file, settings)
    built["base"]["merged"] = {"adapter": name, "base_fingerprint": fingerprint}
    write_manifest(package, built)


def _adapter(
    package: Path, manifest: Mapping[str, Any], adapter: str, name: str | None, base: Path
) -> tuple[str, dict[str, Change], np.ndarray | None, dict[str, Any]]:
    """(name, changes of the base's weights, head (1, hidden, classes) or None, settings) of an adapter."""
    if adapter not in manifest["adapters"] and Path(adapter).is_dir():
        if name is None:
            raise PackageError(f"{adapter}: is a folder; --name says what the adapter is called in the new package")
        source = read_source(Path(adapter))
        changes, head = changes_from_peft(source, manifest["base"]["hidden_size"])
        dtype = next(iter(manifest["slots"].values()))["dtype"]
        return name, changes, None if head is None else head[None].astype(dtype), source.settings
    entry = adapter_entry(manifest, adapter)
    if count(entry):
        raise PackageError(f"adapter '{adapter}' has virtual tokens, {NO_WEIGHTS}")
    tensors = read_adapter(package / entry["file"])
    head = tensors.get(HEAD)
    own = {key: entry.get(key) for key in SETTINGS}
    return name or adapter, changes_from_slots(tensors, manifest["slots"], set(weight_shapes(base))), head, own


def _nothing(slots: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Tensors of rank 0, which leave the base as it is: an adapter file must hold something."""
    slot, entry = next(iter(slots.items()))
    return {
        f"{slot}.lora_A.weight": np.zeros((1, entry["in"], 0), entry["dtype"]),
        f"{slot}.lora_B.weight": np.zeros((1, 0, entry["out"]), entry["dtype"]),
    }
