"""Keeps finished adapters by the hash of everything that went into them, so that none is trained twice.

A key covers the base, the adapter's own settings and its own data, not the adapter's place in a workflow: changing one
adapter leaves the others in the store, and two workflows with one cache folder share them. An adapter appears in the
store by one rename when its training is complete; a killed run leaves only a work folder, which the next run clears.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

UNFINISHED = ".unfinished-"  # between an adapter's folder name and the number of the process that trains it


def store_folder() -> Path:
    """`adapters` beside the workflow caches of Olive, which sets OLIVE_CACHE_DIR to <cache_dir>/<workflow_id>."""
    return Path(os.environ.get("OLIVE_CACHE_DIR", ".olive-cache/default_workflow")).parent / "adapters"


def adapter_key(parts: dict[str, Any]) -> str:
    """sha256 of `parts` in canonical JSON: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def find_or_make(store: Path, name: str, key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """Returns (the adapter's folder, whether it was there already); `make` writes into the empty folder it is given."""
    folder = store / f"{name}-{key[:16]}"
    if folder.exists():
        return folder, True
    _clear_leftovers(store)
    work = store / f"{folder.name}{UNFINISHED}{os.getpid()}"
    work.mkdir(parents=True)
    try:
        make(work)
        if folder.exists():  # another process was faster with the same adapter
            return folder, True
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder, False


def _clear_leftovers(store: Path) -> None:
    """Removes the work folders of processes that are no longer there."""
    for leftover in store.glob(f"*{UNFINISHED}*"):
        process = leftover.name.rsplit("-", 1)[-1]
        if process == str(os.getpid()) or not psutil.pid_exists(int(process)):
            shutil.rmtree(leftover)
