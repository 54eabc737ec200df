"""Adds, lists and removes adapters of a finished package: `python -m runtime.adapters {add,list,remove} PACKAGE`."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.adapter_file import HEAD, base_version, stored_base_version, write_adapter
from runtime.conversion import tensors_from_olive_adapter, tensors_from_peft
from runtime.errors import OlivalError, PackageError, nearest
from runtime.manifest import adapter_entry, file_entry, read_manifest, write_manifest
from runtime.prompts import check_template

SETTINGS: dict[str, Any] = {
    "task": "generation",
    "labels": None,
    "template": "{text}",
    "max_length": None,
    "pooling": "last",
    "window_stride": None,
    "metrics": {},
}
TASKS = ("classification", "generation")


def read_settings(source: Path) -> dict[str, Any]:
    """Settings from the adapter.json beside a PEFT folder's weights; {} where there is none, as other tools leave it.

    Raises:
        PackageError: adapter.json is no JSON object.
    """
    path = Path(source) / "adapter.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise PackageError(f"{path}: must hold a JSON object")
    return {key: settings[key] for key in SETTINGS if key in settings}


def install_adapter(
    folder: Path, manifest: Mapping[str, Any], name: str, source: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Converts an adapter and writes adapters/NAME.onnx_adapter; the manifest itself is left to the caller.

    Args:
        folder: the package.
        manifest: its manifest; base and slots are read.
        name: letters, digits, _ and -.
        source: a PEFT folder, or an .onnx_adapter or .safetensors file.
        settings: what is given wins over the source's adapter.json; see SETTINGS.

    Returns:
        The adapter's entry for the manifest.

    Raises:
        PackageError: name, settings or tensors do not fit, each naming file and key.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise PackageError(f"adapter name '{name}': only letters, digits, _ and - are allowed")
    source = Path(source)
    if not source.exists():
        raise PackageError(f"{source}: there is no such file or folder")
    slots, hidden, fingerprint = manifest["slots"], manifest["base"]["hidden_size"], manifest["base"]["fingerprint"]
    if source.is_dir():
        tensors, info = tensors_from_peft(source, slots, hidden)
        given = {**read_settings(source), **settings}
    else:
        stored = stored_base_version(source) if source.suffix == ".onnx_adapter" else 0
        if stored not in (0, 1, base_version(fingerprint)):
            raise PackageError(f"{source}: this adapter says that it was made for another base")
        tensors, info = tensors_from_olive_adapter(source, slots, hidden)
        given = dict(settings)
    entry = _checked_settings(name, given, info["classes"], manifest["base"])
    if entry["task"] == "generation":
        tensors.pop(HEAD, None)
    file = f"adapters/{name}.onnx_adapter"
    if name in manifest["adapters"]:  # the older file stays until the manifest no longer names it
        file = f"adapters/{name}-{secrets.token_hex(4)}.onnx_adapter"
    target = folder / file
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f"{name}.{os.getpid()}.tmp")
    try:
        write_adapter(temporary, tensors, fingerprint)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    facts = {
        "base_fingerprint": fingerprint,
        "rank": info["rank"],
        "target_modules": info["target_modules"],
        "parity": {},
    }
    return {"file": file, **file_entry(target), **entry, **facts}


def add_adapter(
    package: Path, name: str, source: Path, settings: Mapping[str, Any], replace: bool = False
) -> dict[str, Any]:
    """Adds an adapter to a package: its file first, the manifest last, so that a reader never finds half of it.

    Raises:
        PackageError: the package is damaged, the name is taken (and `replace` is false), or the adapter does not fit.
    """
    manifest = read_manifest(package)
    if name in manifest["adapters"] and not replace:
        raise PackageError(
            f"package '{manifest['name']}' already has an adapter '{name}'; --replace puts the new one in its place"
        )
    entry = install_adapter(Path(package), manifest, name, source, settings)
    former = manifest["adapters"].get(name)
    manifest["adapters"][name] = entry
    write_manifest(package, manifest)
    if former is not None:
        (Path(package) / former["file"]).unlink(missing_ok=True)
    return entry


def remove_adapter(package: Path, name: str) -> None:
    """Takes an adapter out: the manifest first, its file last.

    Raises:
        PackageError: there is no adapter of that name; the nearest is named.
    """
    manifest = read_manifest(package, verify=False)
    entry = adapter_entry(manifest, name)
    del manifest["adapters"][name]
    write_manifest(package, manifest)
    (Path(package) / entry["file"]).unlink(missing_ok=True)


def _checked_settings(
    name: str, given: Mapping[str, Any], classes: int | None, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings with defaults, all problems at once; `base` is the manifest's."""
    problems = []
    pooling = base.get("pooling", "last")
    known = {"pooling": pooling, **{key: value for key, value in given.items() if value is not None}}
    if classes is not None and "task" not in known:
        known["task"] = "classification"
    settings = {**SETTINGS, **known}
    labels = settings["labels"]
    if settings["task"] not in TASKS:
        problems.append(f"task is '{settings['task']}'; {nearest(settings['task'], TASKS)}")
    elif settings["task"] == "classification":
        if classes is None:
            problems.append("task is classification, but there is no head (score.weight, class_head.weight)")
        elif not labels or len(labels) != classes:
            problems.append(
                f"labels must name the head's {classes} classes in order, but there are {len(labels or [])}; "
                f"give them as --labels NAME,NAME"
            )
        elif len(set(labels)) != len(labels):
            problems.append(f"labels must differ, but are {labels}")
        if settings["template"] == "chat":
            problems.append("template 'chat' is for generation")
    else:
        settings["labels"] = None
    if settings["task"] == "generation" and not base.get("generates", True):
        problems.append("task is generation, but the base is an encoder, which writes no text; valid: classification")
    if settings["pooling"] != pooling:
        problems.append(
            f"pooling is '{settings['pooling']}', but the graph pools the {pooling} token only; valid: {pooling}"
        )
    for key in ("max_length", "window_stride"):
        if settings[key] is not None and (not isinstance(settings[key], int) or settings[key] < 1):
            problems.append(f"{key} is {settings[key]!r}, but must be a whole number of tokens, at least 1")
    problems += check_template(settings["template"])
    if problems:
        raise PackageError("\n".join(f"adapter '{name}': {p}" for p in problems))
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.adapters", description="Adapters of a package: add, list, remove."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="convert an adapter and put it into the package")
    add.add_argument("package", type=Path)
    add.add_argument("name")
    add.add_argument("path", type=Path, help="PEFT folder, .onnx_adapter or .safetensors file")
    add.add_argument("--task", choices=TASKS)
    add.add_argument(
        "--labels",
        type=lambda text: [label.strip() for label in text.split(",")],
        help="class names in order, separated by commas",
    )
    add.add_argument("--template", help="text around the input, such as '{prompt}', or 'chat'")
    add.add_argument("--max-length", type=int, help="tokens; longer texts are cut")
    add.add_argument("--replace", action="store_true", help="put it in the place of an adapter with this name")
    listing = commands.add_parser("list", help="show the adapters of a package")
    listing.add_argument("package", type=Path)
    remove = commands.add_parser("remove", help="take an adapter out of a package")
    remove.add_argument("package", type=Path)
    remove.add_argument("name")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "add":
            given = {
                "task": options.task,
                "labels": options.labels,
                "template": options.template,
                "max_length": options.max_length,
            }
            settings = {key: value for key, value in given.items() if value is not None}
            entry = add_adapter(options.package, options.name, options.path, settings, options.replace)
            print(f"added {options.name}: {entry['task']}, rank {entry['rank']}, {entry['bytes']:,} bytes")
        elif options.command == "list":
            for name, entry in read_manifest(options.package)["adapters"].items():
                labels = ", ".join(entry["labels"] or [])
                print(f"{name}\t{entry['task']}\trank {entry['rank']}\t{entry['bytes']:,} bytes\t{labels}")
        else:
            remove_adapter(options.package, options.name)
            print(f"removed {options.name}")
    except (OlivalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
