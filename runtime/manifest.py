"""The manifest of a package: package.json, what it must say, and whether the folder holds what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from runtime.adapter_file import base_version, check_fits, read_adapter, stored_base_version
from runtime.atomic_file import write_text
from runtime.errors import PackageError, nearest

FORMAT_VERSION = 2
MANIFEST = "package.json"
_KEYS = ("adapters", "base", "files", "precision", "slots", "target")


# beside its weights, what decides which function of a text a base is
MEANING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


# path -> (size in bytes, time of the last change in ns, sha256) of a file that was compared with its manifest
Known = dict[str, tuple[int, int, str]]


def read_manifest(folder: Path, verify: bool = True, known: Known | None = None) -> dict[str, Any]:
    """Reads package.json.

    Args:
        folder: the package.
        verify: compare every file with its sha256, and every adapter with the base and its slots.
        known: files that an earlier call compared; they are read again only if they changed since. Is brought up to
            date.

    Raises:
        PackageError: one error with everything found, each line naming a file: no manifest, unknown format version, a
            path that leaves the folder, a missing, altered or swapped file, an adapter for another base or of a shape
            that does not fit.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise PackageError(f"{folder}: is no package, it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise PackageError(f"{path}: format_version is {found!r}, but this runtime reads {FORMAT_VERSION}")
    missing = [key for key in _KEYS if key not in manifest]
    if missing:
        raise PackageError(f"{path}: misses {', '.join(missing)}")
    try:
        problems = _path_problems(manifest)
        if verify and not problems:
            known = {} if known is None else known
            problems = [*_file_problems(folder, manifest, known), *_adapter_problems(folder, manifest, known)]
    except (AttributeError, KeyError, TypeError) as error:  # an entry that is not there, or of another kind
        raise PackageError(f"{path}: an entry is malformed: {error!r}") from error
    if problems:
        raise PackageError(f"{folder}: this package cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes package.json in one step: a reader finds the old one or the new one."""
    write_text(Path(folder) / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def base_fingerprint(model_path: Path) -> str:
    """sha256 over a base's weights, config.json and tokenizer: names and contents in sorted order.

    Raises:
        PackageError: the folder has no weight file.
    """
    folder = Path(model_path)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not weights:
        raise PackageError(f"{folder}: has no weights (*.safetensors or *.bin)")
    digest = hashlib.sha256()
    for path in sorted([*weights, *(folder / name for name in MEANING_FILES if (folder / name).is_file())]):
        digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its sha256 and its size in bytes."""
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def adapter_entry(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An adapter's entry.

    Raises:
        PackageError: the package has no adapter of that name; the nearest is named.
    """
    adapters = manifest["adapters"]
    if name not in adapters:
        raise PackageError(
            f"there is no adapter '{name}' in package '{manifest.get('name')}'; {nearest(name, adapters)}"
        )
    return dict(adapters[name])


def _path_problems(manifest: Mapping[str, Any]) -> list[str]:
    paths = [*manifest["files"], *(str(entry.get("file")) for entry in manifest["adapters"].values())]
    return [
        f"{MANIFEST}: path '{p}' must be relative and stay inside the package" for p in paths if not _stays_inside(p)
    ]


def _stays_inside(path: str) -> bool:
    """Both notations count, for a package may be written on one system and read on another."""
    windows = PureWindowsPath(path)
    return not (
        PurePosixPath(path).is_absolute() or windows.drive or windows.root or ".." in windows.parts or path == ""
    )


def _file_problems(folder: Path, manifest: Mapping[str, Any], known: Known) -> list[str]:
    return [p for name, entry in manifest["files"].items() if (p := _file_problem(folder, name, entry, known))]


def _file_problem(folder: Path, name: str, entry: Mapping[str, Any], known: Known) -> str:
    path = folder / name
    if not path.is_file():
        return f"{name}: is missing"
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{name}: is a link that leaves the package"
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    if size != entry["bytes"]:
        return f"{name}: was altered, it has {size} bytes, not {entry['bytes']}"
    if known.get(name) == (size, changed, entry["sha256"]):
        return ""
    if file_sha256(path) != entry["sha256"]:
        return f"{name}: was altered, its sha256 differs from {MANIFEST}"
    known[name] = (size, changed, entry["sha256"])
    return ""


def _adapter_problems(folder: Path, manifest: Mapping[str, Any], known: Known) -> list[str]:
    problems = []
    fingerprint, hidden = manifest["base"]["fingerprint"], manifest["base"]["hidden_size"]
    virtual = manifest.get("virtual_tokens")
    for name, entry in manifest["adapters"].items():
        file = entry["file"]
        if entry["base_fingerprint"] != fingerprint:
            problems.append(
                f"{file}: adapter '{name}' was made for another base: "
                f"{entry['base_fingerprint'][:12]}, not {fingerprint[:12]}"
            )
        problem = _file_problem(folder, file, entry, known)
        if problem and (folder / file).is_file():
            found = file_sha256(folder / file)
            owner = next((n for n, e in manifest["adapters"].items() if e["sha256"] == found and n != name), None)
            problem = f"{file}: was swapped, it is the file of adapter '{owner}'" if owner else problem
        if problem:
            problems.append(problem)
            continue
        tensors = read_adapter(folder / file)
        problems += [f"{file}: {p}" for p in check_fits(tensors, manifest["slots"], hidden, virtual)]
        if stored_base_version(folder / file) not in (0, 1, base_version(fingerprint)):
            problems.append(f"{file}: says itself that it was made for another base")
    return problems
