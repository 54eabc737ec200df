"""Keeps finished adapters by the hash of everything that went into them, so that none is trained twice.

A key covers the base, the adapter's own settings and its own data, not the adapter's place in a workflow: changing one
adapter leaves the others in the store, and two workflows with one cache folder share them. An adapter appears in the
store by one rename when its training is complete; a killed run leaves a work folder, which the next run clears, and
the checkpoints of its training, from which the next run of the same training goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from passes.training.out_of_memory import StoppedTraining
from runtime.errors import OlivalError

UNFINISHED = ".unfinished-"  # after an adapter's folder name; the number of the process that trains it ends the name
CHECKPOINTS = ".checkpoints"  # after an adapter's folder name: what its training goes on from
_OWNER = "owner-"  # file in there; before the number of the process that trains


def cache_folder() -> Path:
    """<cache_dir> of the workflow: Olive sets OLIVE_CACHE_DIR to <cache_dir>/<workflow_id>."""
    return Path(os.environ.get("OLIVE_CACHE_DIR", ".olive-cache/default_workflow")).parent


def store_folder() -> Path:
    """`adapters` beside the workflow caches of Olive."""
    return cache_folder() / "adapters"


def adapter_key(parts: dict[str, Any]) -> str:
    """sha256 of `parts` in canonical JSON: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def find_or_make(store: Path, name: str, key: str, make: Callable[[Path, Path], None]) -> tuple[Path, bool]:
    """Returns (the adapter's folder, whether it was there already).

    `make` gets two folders: an empty one, to be filled, and the one of the training's checkpoints, which holds those of
    a killed process that trained the same.
    """
    folder = store / f"{name}-{key[:16]}"
    if folder.exists():
        return folder, True
    _clear_leftovers(store, name, folder)
    work = store / f"{folder.name}{_own_suffix()}"
    work.mkdir(parents=True)
    alone = _claimed(store / f"{folder.name}{CHECKPOINTS}")
    checkpoints = alone or work.with_name(f"{folder.name}{CHECKPOINTS}{_own_suffix()}")
    finished = True
    try:
        make(work, checkpoints)
        if folder.exists():  # another process was faster with the same adapter
            return folder, True
        os.replace(work, folder)
    except BaseException as error:
        if isinstance(error, OlivalError) and not isinstance(error, StoppedTraining):
            raise  # the training is wrong in itself, and would be so again
        finished = not any(checkpoints.glob("checkpoint-*"))
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if finished:
            shutil.rmtree(checkpoints, ignore_errors=True)
    return folder, False


def _claimed(checkpoints: Path) -> Path | None:
    """The folder, which is now this process's; None while another living process trains the same adapter."""
    new = checkpoints.with_name(f"{checkpoints.name}{_own_suffix()}")
    new.mkdir()
    (new / f"{_OWNER}{os.getpid()}").touch()
    try:
        os.rename(new, checkpoints)
        return checkpoints
    except OSError:  # it is there
        shutil.rmtree(new)
    for owner in checkpoints.glob(f"{_OWNER}*"):
        if not _lives(owner.name):
            try:
                os.rename(owner, owner.with_name(f"{_OWNER}{os.getpid()}"))
                return checkpoints
            except FileNotFoundError:  # another process was faster
                return None
    return None


def _clear_leftovers(store: Path, name: str, folder: Path) -> None:
    """Removes the work folders of processes that are no longer there, and their checkpoints of what `name` was."""
    for leftover in store.glob(f"*{UNFINISHED}*"):
        if not _lives(leftover.name):
            shutil.rmtree(leftover)
    for other in store.glob(f"{name}-{'?' * 16}{CHECKPOINTS}"):
        if other.name != f"{folder.name}{CHECKPOINTS}" and not any(_lives(o.name) for o in other.glob(f"{_OWNER}*")):
            print(
                f"train {name}: the checkpoints of an unfinished training of this name with other options or data are "
                "removed",
                file=sys.stderr,
            )
            shutil.rmtree(other)


def _own_suffix() -> str:
    """Of a folder of this process alone; no other one has the name, on machines that share the store neither."""
    return f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{os.getpid()}"


def _lives(name: str) -> bool:
    """Whether another process than this one has the number that a name ends with."""
    process = int(name.rsplit("-", 1)[-1])
    return process != os.getpid() and psutil.pid_exists(process)
