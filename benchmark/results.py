"""results.json of the benchmark: how it is read and written, and what it says of machine and versions."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark.results_schema import RESULTS, SCHEMA_VERSION, problems
from runtime.atomic_file import write_text
from runtime.errors import DataError

VERSIONS_OF = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "onnxruntime-genai-directml",
    "numpy",
)


def read_json(path: Path) -> Any:
    """A JSON file; NaN and Infinity are no JSON, nor is a number that overflows to infinity.

    Raises:
        DataError: the file is not there or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """Reads results.json.

    Raises:
        DataError: no such file, no JSON, another schema_version, or everything that breaks the schema, at once.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise DataError(f"{path}: is no results.json of the benchmark, it has no schema_version")
    if content["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema_version is {content['schema_version']!r}, but this version reads {SCHEMA_VERSION}"
        )
    if found := problems(content, RESULTS):
        raise DataError(f"{path}: is damaged: " + "; ".join(found))
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON in one step. Raises ValueError on NaN or infinity, which are no JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def machine() -> dict[str, Any]:
    """On what is measured: system, processor (its architecture), model (its name), cores, memory_bytes, gpus."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "model": _processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that compute; each flavour of onnxruntime has its own name."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """The workspace's commit, and whether tracked files differ from it; (None, None) outside a git repository."""
    where = Path(folder or Path(__file__).resolve().parent)
    head = _output(["git", "-C", str(where), "rev-parse", "HEAD"])
    changes = _output(["git", "-C", str(where), "status", "--porcelain", "--untracked-files=no"])
    return (None, None) if head is None or changes is None else (head, changes != "")


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs, where their driver's tool is there to tell."""
    output = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return output.splitlines() if output else []


def _output(command: list[str]) -> str | None:
    """What a tool prints; None where it is not installed, fails, or hangs (as nvidia-smi does with a broken driver)."""
    if shutil.which(command[0]) is None:
        return None
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value
