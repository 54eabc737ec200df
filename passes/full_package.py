"""A package of a full fine-tuning: its base is the tuned model, and its one adapter names task, template and head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from passes.full_weights import replaces_base
from passes.merge import add_merged
from passes.package import write_package
from runtime.adapter_settings import checked_settings
from runtime.adapter_source import HEAD_KEY, read_settings
from runtime.errors import PackageError
from runtime.manifest import base_fingerprint


def full_adapter(adapters: Mapping[str, Path]) -> str | None:
    """The adapter that changes the base itself, None where none does.

    Raises:
        PackageError: another adapter beside it, which was trained on the base as it was.
    """
    found = [name for name, folder in adapters.items() if replaces_base(folder)]
    if found and len(adapters) > 1:
        others = ", ".join(name for name in adapters if name != found[0])
        raise PackageError(
            f"adapter '{found[0]}' is a full fine-tuning, whose weights take the place of the base's, so {others} "
            "cannot live beside it in one package; export each alone"
        )
    return found[0] if found else None


def write_full_package(folder: Path, base: Path, tuned: Path, adapter: str, source: Path, **options: Any) -> None:
    """Writes a package of `tuned`, a base of `passes.full_weights.write_full_base`, with the one adapter `adapter`.

    Args:
        folder: see `passes.package.write_package`, as for `options`, without the package's adapters.
        base: the base before its fine-tuning.
        source: folder of the adapter.

    Raises:
        PackageError: the adapter's settings do not fit.
        OlivalError: the export failed.
    """
    from safetensors.numpy import load_file

    settings = read_settings(source)
    pooling = settings.get("pooling") if settings.get("task") == "classification" else None
    built = write_package(folder, base_path=tuned, adapter_folders={}, pooling=pooling, **options)
    head = load_file(source / "adapter_model.safetensors").get(HEAD_KEY)
    if head is not None:
        dtype = next(iter(built["slots"].values()))["dtype"]
        head = np.ascontiguousarray(head.T, dtype)[None]
    given = checked_settings(adapter, settings, None if head is None else head.shape[2], built["base"])
    add_merged(folder, built, adapter, head, given, base_fingerprint(base))
