"""What an evaluation looks at: the PyTorch model with its adapters and, after the export, the package beside it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.finished_parts import files_identity
from evaluators.torch_model import TorchModel
from runtime.errors import ProviderError

VERSIONS_OF = ("torch", "transformers", "peft", "bitsandbytes", "olive-ai", "onnxruntime", "onnxruntime-genai")


@dataclass
class Subjects:
    """The models to compare. `package` is None before the export; `folders` maps adapter names to PEFT folders."""

    torch: TorchModel
    package: Any
    base: Path
    folders: dict[str, Path]
    tasks: dict[str, str]
    model_folder: Path | None  # the package's folder, None before the export
    not_executed: str | None = None  # why the package does not run on this machine; then `package` is None

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The package's manifest, None before the export."""
        from runtime.manifest import read_manifest

        return read_manifest(self.model_folder, verify=False) if self.model_folder is not None else None

    def models(self) -> dict[str, Any]:
        """{"pytorch": ..., "package": ...}, the latter only after the export and where it runs."""
        return {"pytorch": self.torch, **({"package": self.package} if self.package is not None else {})}

    def identities(self) -> dict[str, Callable[[str | None], Any]]:
        """What says of each model that it is still the same with an adapter, or with none (see `FinishedParts`)."""

        def pytorch(adapter: str | None) -> Any:
            files = [*self.base.glob("*.safetensors"), *([] if adapter is None else self.folders[adapter].glob("*"))]
            return files_identity(*sorted(files))

        return {"pytorch": pytorch, "package": lambda adapter: package_identity(self.manifest or {}, adapter)}

    def description(self) -> dict[str, Any]:
        """On what and with which versions was measured."""
        manifest = self.manifest
        return {
            **machine_and_versions(),
            "precision": manifest["precision"] if manifest is not None else None,
            "not_executed": self.not_executed,
        }

    def record(self, evaluation: dict[str, Any]) -> None:
        """Writes evaluation.json for the run and, adapter by adapter, the scores into the package's manifest."""
        from runtime.manifest import write_manifest

        text = json.dumps(evaluation, indent=2, ensure_ascii=False, allow_nan=False)
        evaluation_file().parent.mkdir(parents=True, exist_ok=True)
        for file in (evaluation_file(), evaluation_file(self.model_folder)):
            file.write_text(text + "\n", encoding="utf-8")
        manifest = self.manifest
        if self.model_folder is None or manifest is None:
            return
        if not self.not_executed:  # a package from the cache may have been made where its provider was not there
            manifest["target"].pop("not_executed", None)
        for name, info in manifest["adapters"].items():
            rows = [row for row in evaluation["quality"] if row["adapter"] == name]
            columns = ("base", "pytorch", "package")
            info["metrics"] = {row["metric"]: {column: row[column] for column in columns} for row in rows}
        write_manifest(self.model_folder, manifest)


def machine_and_versions() -> dict[str, Any]:
    """When, on what and with which versions something is measured."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: _version(name) for name in VERSIONS_OF},
    }


def package_identity(manifest: Mapping[str, Any], adapter: str | None) -> Any:
    """What says that a package's base, and the adapter if one is named, are still the same."""
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return [files, manifest["adapters"][adapter]["sha256"] if adapter is not None else None]


def evaluation_file(model_folder: Path | None = None) -> Path:
    """Where an evaluation waits for the end of its run: in the workflow's own cache folder of Olive.

    Olive's search makes several packages, `cache/runs/ID/models`, in one run; with such a folder: that package's own.
    """
    name = f"evaluation-{model_folder.parent.name}.json" if model_folder is not None else "evaluation.json"
    return Path(os.environ.get("OLIVE_CACHE_DIR", "")) / name


def open_subjects(model: Any) -> Subjects:
    """Opens what an Olive handler points to: an HfModel with trained adapters, or the package made from one.

    A package for a provider that this machine does not have is not opened; the reason stands in `not_executed`.
    """
    from evaluators.package_model import PackageModel
    from passes.base_model import local_folder
    from passes.training.adapter_pass import ATTRIBUTE, BASE_ATTRIBUTE

    attributes = model.model_attributes or {}
    folders = {name: Path(folder) for name, folder in attributes.get(ATTRIBUTE, {}).items()}
    tasks = {name: _read_json(folder / "adapter.json")["task"] for name, folder in folders.items()}
    if BASE_ATTRIBUTE in attributes:
        base, folder = Path(attributes[BASE_ATTRIBUTE]), Path(model.model_path)
        folder = folder if folder.is_dir() else folder.parent
        package, reason = None, None
        try:
            package = PackageModel(folder)
        except ProviderError as error:
            reason = str(error)
        return Subjects(TorchModel(base, folders), package, base, folders, tasks, folder, reason)
    base = local_folder(model.model_name_or_path)
    return Subjects(TorchModel(base, folders), None, base, folders, tasks, None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
