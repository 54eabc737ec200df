"""Puts a finished folder in the place of an older one, so that a reader finds the old or the new one, never a mix."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path

OLD = "-old-"  # between a folder's name and eight random digits while its successor takes its place


def is_result(folder: Path) -> bool:
    """Whether a run wrote this folder: a package, or a model of Olive's with its footprint."""
    olives = (folder / "footprint.json").is_file() and (folder / "model_config.json").is_file()
    return olives or _is_manifest(folder / "package.json")


def _is_manifest(file: Path) -> bool:
    """Other tools write a package.json too; ours says its format version and its slots."""
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and isinstance(manifest.get("format_version"), int) and "slots" in manifest


def replace_folder(new: Path, target: Path) -> None:
    """Moves folder `new` to `target` (same disk). What stood there is moved aside first and removed last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.replace(new, target)
        return
    old = target.with_name(f"{target.name}{OLD}{uuid.uuid4().hex[:8]}")
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Ends what a killed `replace_folder` began: brings the older folder back if no newer one got its place."""
    for old in sorted(target.parent.glob(f"{target.name}{OLD}*")):
        if not re.fullmatch("[0-9a-f]{8}", old.name.removeprefix(target.name + OLD)):
            continue
        if target.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, target)
