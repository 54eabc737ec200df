"""Adapters of a finished package: `python -m runtime.adapters {inspect,check,convert,add,list,drop,merge}`."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.adapter_file import HEAD, MAGNITUDE, write_adapter
from runtime.adapter_report import (
    adapters_text,
    check_text,
    describe_package,
    describe_source,
    inspect_text,
    width_text,
)
from runtime.adapter_settings import TASKS, checked_settings
from runtime.adapter_source import Source, read_settings, read_source
from runtime.atomic_file import replacing
from runtime.conversion import fit, slot_tensors
from runtime.errors import OlivalError, PackageError
from runtime.manifest import MANIFEST, Known, adapter_entry, file_entry, read_manifest, write_manifest
from runtime.virtual_tokens import check_room


def install_adapter(
    folder: Path, manifest: Mapping[str, Any], name: str, source: Path | Source, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Converts an adapter and writes adapters/NAME.onnx_adapter; the manifest itself is left to the caller.

    Args:
        folder: the package.
        manifest: its manifest; base and slots are read.
        name: letters, digits, _ and -.
        source: a PEFT folder, or an .onnx_adapter or .safetensors file; or what was read of one.
        settings: what is given wins over the source's adapter.json; see `runtime.adapter_settings.SETTINGS`.

    Returns:
        The adapter's entry for the manifest.

    Raises:
        PackageError: name, settings or tensors do not fit, each naming file and key.
    """
    check_name(name)
    base = manifest["base"]
    fingerprint = base["fingerprint"]
    virtual = manifest.get("virtual_tokens")
    tensors, info = slot_tensors(source, manifest["slots"], base["hidden_size"], fingerprint, virtual)
    own = source.settings if isinstance(source, Source) else read_settings(source) if source.is_dir() else {}
    given = {**own, **settings}
    entry = checked_settings(name, given, info["classes"], base)
    if entry["task"] == "generation":
        tensors.pop(HEAD, None)
    if virtual_tokens := info.get("virtual_tokens"):
        entry["virtual_tokens"] = virtual_tokens
        check_room(name, entry, base.get("context_length"))
    file = f"adapters/{name}.onnx_adapter"
    if name in manifest["adapters"]:  # the older file stays until the manifest no longer names it
        file = f"adapters/{name}-{secrets.token_hex(4)}.onnx_adapter"
    target = folder / file
    _write_in_one_step(target, tensors, fingerprint)
    facts = {
        "base_fingerprint": fingerprint,
        "rank": info["rank"],
        "target_modules": info["target_modules"],
        "parity": {},
    }
    if "bottleneck_size" in info:
        facts["bottleneck_size"] = info["bottleneck_size"]
    if any(tensor.endswith(MAGNITUDE) for tensor in tensors):
        facts["dora"] = True
    return {"file": file, **file_entry(target), **entry, **facts}


def add_adapter(
    package: Path,
    name: str,
    source: Path,
    settings: Mapping[str, Any],
    replace: bool = False,
    known: Known | None = None,
) -> dict[str, Any]:
    """Adds an adapter to a package: its file first, the manifest last, so that a reader never finds half of it.

    `known` as in `read_manifest`: files of the package that need no second reading.

    Raises:
        PackageError: the package is damaged, the name is taken (and `replace` is false), or the adapter does not fit.
    """
    manifest = read_manifest(package, known=known)
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


def drop_adapter(package: Path, name: str) -> None:
    """Takes an adapter out: the manifest first, its file last.

    Raises:
        PackageError: there is no adapter of that name; the nearest is named.
    """
    manifest = read_manifest(package, verify=False)
    entry = adapter_entry(manifest, name)
    del manifest["adapters"][name]
    write_manifest(package, manifest)
    (Path(package) / entry["file"]).unlink(missing_ok=True)


def convert_adapter(source: Path, target: Path, package: Path, replace: bool = False) -> dict[str, Any]:
    """Writes an adapter in the slot form of a package's base as an .onnx_adapter file, in one step.

    Returns:
        {"rank", "target_modules", "classes"} of the adapter.

    Raises:
        PackageError: it does not fit, or `target` is there already (and `replace` is false) or has another ending.
    """
    manifest = read_manifest(package, verify=False)
    base = manifest["base"]
    if target.suffix != ".onnx_adapter":
        raise PackageError(f"{target}: the file that is written must end in .onnx_adapter")
    if target.exists() and not replace:
        raise PackageError(f"{target}: is there already; --replace overwrites it")
    virtual = manifest.get("virtual_tokens")
    tensors, info = slot_tensors(source, manifest["slots"], base["hidden_size"], base["fingerprint"], virtual)
    _write_in_one_step(target, tensors, base["fingerprint"])
    return info


def check_name(name: str) -> None:
    """Raises PackageError where a name could not be a file's."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise PackageError(f"adapter name '{name}': only letters, digits, _ and - are allowed")


def _write_in_one_step(target: Path, tensors: Mapping[str, Any], fingerprint: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        write_adapter(temporary, tensors, fingerprint)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.adapters", description="Adapters and packages of them.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str, *places: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help)
        for place in places:
            known = {"package": "folder of a package", "path": "PEFT folder, .onnx_adapter or .safetensors file"}
            added.add_argument(place, type=str if place in ("name", "adapter") else Path, help=known.get(place))
        return added

    inspect = command("inspect", "say what an adapter or a package is", "path")
    inspect.add_argument("--json", action="store_true", help="for programs")
    check = command("check", "say tensor by tensor whether an adapter fits a package's base", "package", "path")
    check.add_argument("--json", action="store_true", help="for programs")
    convert = command("convert", "write an adapter in the form that a package's base takes", "path", "out")
    convert.add_argument("--for", dest="package", type=Path, required=True, help="the package")
    convert.add_argument("--replace", action="store_true", help="overwrite the file")
    add = command("add", "convert an adapter and put it into a package", "package", "name", "path")
    add.add_argument("--replace", action="store_true", help="put it in the place of an adapter with this name")
    command("list", "show the adapters of a package", "package")
    command("drop", "take an adapter out of a package", "package", "name")
    merge = command("merge", "make a package of its own, with one adapter merged into the base", "package", "adapter")
    merge.add_argument("out", type=Path, help="folder of the new package")
    merge.add_argument("--base", required=True, help="the float base that the package was made from")
    merge.add_argument("--replace", action="store_true", help="put it in the place of an older package in OUT")
    merge.add_argument("--name", help="name in the new package, where ADAPTER is a PEFT folder")
    for settled in (add, merge):
        settled.add_argument("--task", choices=TASKS)
        settled.add_argument(
            "--labels",
            type=lambda text: [label.strip() for label in text.split(",")],
            help="class names in order, separated by commas",
        )
        settled.add_argument("--template", help="text around the input, such as '{prompt}', or 'chat'")
        settled.add_argument("--max-length", type=int, help="tokens; longer texts are cut")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error; `check` returns 1 for what does not fit."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (OlivalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    keys = ("task", "labels", "template", "max_length")
    settings = {key: value for key in keys if (value := getattr(options, key, None)) is not None}
    if options.command == "inspect":
        is_package = (options.path / MANIFEST).is_file()
        facts = describe_package(options.path) if is_package else describe_source(read_source(options.path))
        print(json.dumps(facts, indent=2) if options.json else inspect_text(facts))
    elif options.command == "check":
        manifest, source = read_manifest(options.package, verify=False), read_source(options.path)
        base = manifest["base"]
        virtual = manifest.get("virtual_tokens")
        result = fit(source, manifest["slots"], base["hidden_size"], base["fingerprint"], virtual)
        print(check_text(source, result, manifest, options.json))
        return 0 if result.fits else 1
    elif options.command == "convert":
        info = convert_adapter(options.path, options.out, options.package, options.replace)
        labels = f"; `add` wants --labels for its {info['classes']} classes" if info["classes"] else ""
        print(f"wrote {options.out}: {width_text(info)}, {', '.join(info['target_modules']) or 'no LoRA'}{labels}")
    elif options.command == "add":
        entry = add_adapter(options.package, options.name, options.path, settings, options.replace)
        print(f"added {options.name}: {entry['task']}, {width_text(entry)}, {entry['bytes']:,} bytes")
    elif options.command == "list":
        print(adapters_text(read_manifest(options.package)["adapters"]))
    elif options.command == "drop":
        drop_adapter(options.package, options.name)
        print(f"dropped {options.name}")
    else:
        try:
            from passes.merge import merge_adapter
        except ImportError as error:
            raise PackageError(
                "merge builds a package, which needs the whole workspace: in the repository, "
                f'pip install -c constraints.txt -e ".[cpu]" ({error})'
            ) from error
        places = (options.package, options.adapter, options.base, options.out)
        name = merge_adapter(*places, options.name, settings, options.replace)
        print(f"wrote {options.out}: {options.adapter} merged into the base, as adapter '{name}'")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
