"""Who a worker is, so that another on the same machine can see at once that it has died."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_PROC = Path("/proc")


def this_worker() -> dict[str, Any]:
    """{"host", "name", "pid", "started"}; workers of one host can see each other's processes."""
    return {"host": _host(), "name": platform.node(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_dead(worker: Mapping[str, Any]) -> bool:
    """Whether a worker of this host lives no more; False of another host's, which only its heartbeats tell of."""
    if worker.get("host") != _host():
        return False
    return _started(worker["pid"]) != worker["started"]  # a pid is given again, with another start


def _host() -> str:
    """One start of one machine, there one namespace of processes (containers number theirs from 1), and one user, from
    whom others' processes may be hidden."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')} {os.getuid()}"
    except OSError:  # not Linux: a name may be given twice, a network card's number is not
        return f"{platform.node()} {uuid.getnode():x}"


def _started(pid: int) -> float | None:
    """When a process was started, by a clock that nobody sets; None when there is none or it has ended."""
    try:
        # after the name, which may have anything in it: state, then 18 fields, then ticks since the machine's start
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except OSError:
        pass
    if _PROC.is_dir() and (_PROC / "self" / "stat").exists():
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.NoSuchProcess:
        return None
