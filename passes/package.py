"""Writes a package: the exported base with adapter slots, the adapters and the manifest, all of it or nothing."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from passes.base_model import base_name, context_length, is_encoder, local_folder, pooling_of
from passes.dora import BaseWeights, uses_dora, with_scales
from passes.graph.bottleneck_slots import add_bottleneck_slots
from passes.graph.builder import build_base, usable_cpus
from passes.graph.checks import check_base, check_engine, check_precision, engine_of
from passes.graph.head import add_class_head
from passes.graph.head_padding import head_layout, mark_slots
from passes.graph.slots import add_slots
from passes.graph.virtual_tokens import IS_VIRTUAL, PREFIX_SLOTS, VIRTUAL_BASES, add_virtual_tokens, wanted_slots
from runtime.adapter_source import read_settings, read_source, stated_config
from runtime.adapters import install_adapter
from runtime.atomic_folder import is_result, replace_folder
from runtime.bottleneck import BOTTLENECK, PEFT_TYPE
from runtime.dora import DORA
from runtime.errors import OlivalError, PackageError
from runtime.manifest import FORMAT_VERSION, base_fingerprint, file_entry, read_manifest, write_manifest

_TOOLS = ("olive-ai", "onnx", "onnxruntime", "onnxruntime-genai", "peft", "torch", "transformers")


def write_package(
    folder: Path,
    *,
    base_path: str | Path,
    adapter_folders: Mapping[str, Path],
    precision: str,
    execution_provider: str,
    quantization: dict[str, Any] | None = None,
    threads: int | None = None,
    adapter_precision: str = "float",
    workflow: dict[str, Any] | None = None,
    pooling: str | None = None,
    name: str,
) -> dict[str, Any]:
    """Builds a package beside `folder`, checks it as its reader will, and only then puts it in the place of `folder`.

    Args:
        folder: the package; an older package there is replaced, any other content is refused.
        base_path: base model folder, or the name of a Hugging Face repository.
        adapter_folders: trained adapters by name (PEFT folders, with adapter.json or without); may be empty.
        precision, execution_provider, quantization, threads: see `passes.graph.builder.build_base`.
        adapter_precision: "float", or "int8" for the CPU; see `passes.graph.slots.add_slots`.
        workflow: the resolved workflow, recorded as it is.
        pooling: what its heads read of the final states, see `passes.graph.head`; None is what its classification
            adapters were trained with, and else what the base's kind is known for.
        name: name of the package.

    Returns:
        The manifest.

    Raises:
        ConfigError: base, precision or quantization is unfit; nothing was built.
        PackageError: adapters do not fit the base (all of them in one error) or pool in different ways, or `folder`
            holds something else.
        OlivalError: the export failed. In every case an older package stays as it was.
    """
    folder = Path(folder).resolve()
    base = local_folder(str(base_path))
    check_base(base)
    options = check_precision(precision, execution_provider, quantization)
    check_engine(base, precision, execution_provider, quantization)
    check_replaceable(folder)
    new = folder.with_name(f"{folder.name}-new-{uuid.uuid4().hex[:8]}")
    new.mkdir(parents=True)
    try:
        described, engine = _describe_base(base), engine_of(base)
        described["pooling"] = pooling or _pooling_of_adapters(adapter_folders) or described["pooling"]
        if engine == "onnxruntime":
            from passes.graph.torch_export import export_base

            modules, layout = export_base(base, new, precision, options), None
        else:
            build_base(base, new, precision, execution_provider, quantization, threads)
            modules, layout = [], head_layout(json.loads((base / "config.json").read_text(encoding="utf-8")))
        virtual_kinds = wanted_slots(adapter_folders.values())
        if virtual_kinds and engine == "onnxruntime":
            raise PackageError(f"a {described['architecture']} takes no virtual tokens; {VIRTUAL_BASES}")

        def add_virtual(model: Any) -> Any:
            return add_virtual_tokens(model, base, layout, PREFIX_SLOTS in virtual_kinds) if virtual_kinds else None

        extra = [*_extra_slots(adapter_folders), *virtual_kinds]
        pooled = described["pooling"]
        slots, virtual = _operate(new / "model.onnx", adapter_precision, modules, pooled, extra, add_virtual)
        mark_slots(slots, layout)
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "engine": engine,
            "base": described,
            "target": {"execution_provider": execution_provider, "threads": threads or usable_cpus()},
            "precision": precision,
            "quantization": options or None,
            "slots": slots,
            **({"extra_slots": extra} if extra else {}),
            **({"virtual_tokens": virtual} if virtual else {}),
            "files": {p.relative_to(new).as_posix(): file_entry(p) for p in sorted(new.rglob("*")) if p.is_file()},
            "versions": _versions(),
            "workflow": workflow,
            "adapters": {},
        }
        manifest["adapters"] = _install_all(new, manifest, adapter_folders, base)
        write_manifest(new, manifest)
        read_manifest(new)
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return manifest


def check_replaceable(folder: Path) -> None:
    """Raises PackageError when `folder` holds something else than a package, which a new package would replace."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_result(folder)):
        raise PackageError(f"{folder}: holds something that is no package; it is left as it is, choose another folder")


def _extra_slots(sources: Mapping[str, Path]) -> list[str]:
    """Kinds of slots beside LoRA's and virtual tokens' that adapters need; who installs them refuses the unreadable."""
    kinds = set()
    for source in sources.values():
        if uses_dora(source):
            kinds.add(DORA)
        if stated_config(source).get("peft_type") == PEFT_TYPE:
            kinds.add(BOTTLENECK)
    return sorted(kinds)


def _operate(
    graph: Path,
    adapter_precision: str,
    modules: Collection[str],
    pooling: str,
    extra: Collection[str],
    add_virtual: Callable[[Any], Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Adds slots and head to a saved graph. Its weights stay in their own file, which is not read.

    Returns the slot table, and what `add_virtual` gives for the graph: the layout of virtual tokens or None.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    slots = add_slots(model, adapter_precision, modules, dora=DORA in extra)
    if BOTTLENECK in extra:
        add_bottleneck_slots(model, slots)
    virtual = add_virtual(model)
    add_class_head(model, pooling, IS_VIRTUAL if virtual else None)
    onnx.save(model, graph)
    return slots, virtual


def _pooling_of_adapters(sources: Mapping[str, Path]) -> str | None:
    """How the heads of trained adapters pool; None where none says so.

    Raises PackageError when they differ: a graph pools in one way.
    """
    found = {}
    for name, source in sources.items():
        settings = read_settings(source) if Path(source).is_dir() else {}
        if settings.get("task") == "classification" and settings.get("pooling"):
            found[name] = str(settings["pooling"])
    if len(set(found.values())) > 1:
        listed = ", ".join(f"'{name}' by {pooling}" for name, pooling in found.items())
        raise PackageError(f"all heads of one package pool in one way, but these adapters do not: {listed}")
    return next(iter(found.values()), None)


def _install_all(folder: Path, manifest: Mapping[str, Any], sources: Mapping[str, Path], base: Path) -> dict[str, Any]:
    entries, problems = {}, []
    weights = BaseWeights(base, manifest["base"]["fingerprint"])
    for name, path in sources.items():
        try:
            source = with_scales(read_source(path), weights) if uses_dora(path) else Path(path)
            entries[name] = install_adapter(folder, manifest, name, source, {})
        except OlivalError as error:
            problems.append(f"adapter '{name}': {error}")
    if problems:
        raise PackageError("\n".join(problems))
    return entries


def _describe_base(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation_path = folder / "generation_config.json"
    generation = json.loads(generation_path.read_text(encoding="utf-8")) if generation_path.is_file() else {}
    tokens = {key: generation.get(key, config.get(key)) for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    known = AutoConfig.from_pretrained(folder)  # config.json of GPT-2 and DistilBERT has other names for the sizes
    sizes = {key: getattr(known, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
    facts: dict[str, Any] = {"name": base_name(folder), "fingerprint": base_fingerprint(folder)}
    facts |= {"architecture": config["architectures"][0]}
    facts |= {"generates": not is_encoder(folder), "pooling": pooling_of(known.model_type)}
    return {**facts, **sizes, "context_length": context_length(folder), **tokens}


def _versions() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found
