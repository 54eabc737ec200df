"""Why a run failed, in a line: from its exit code, the last words of its log, and what the machine had left."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import psutil

_MEMORY = re.compile(r"MemoryError|can't allocate memory|out of memory|bad_alloc|Cannot allocate memory", re.I)
_DISK = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full", re.I)
_TAIL_BYTES = 40_000
_LONGEST = 2000


def failure_reason(code: int, peak_rss_bytes: int, log: Path) -> str:
    """Of a run that ended with `code` (negative: by a signal)."""
    text = _tail(log)
    said = _last_words(text)
    if match := _DISK.search(text):
        free = shutil.disk_usage(log.parent).free
        return f"the disk is full ({match[0]}; {free / 1e9:.1f} GB are free now at {log.parent}): {said}"[:_LONGEST]
    memory = f"its peak was {peak_rss_bytes / 1e9:.1f} GB, the machine has {psutil.virtual_memory().total / 1e9:.1f} GB"
    if _MEMORY.search(text):
        return f"out of memory; {memory}: {said}"[:_LONGEST]
    if code == -signal.SIGTERM or code >= 0:
        return said[:_LONGEST] if said else f"exit code {code}, and the log says nothing"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return f"killed (SIGKILL), which is what the system does when memory runs out; {memory}"
    return f"crashed ({name}); {memory}: {said}"[:_LONGEST]


def _last_words(text: str) -> str:
    """The error that ends the log: all of its lines where it is this workspace's, else the last line of a traceback."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        return " ".join(line.strip() for line in lines[starts[-1] :]).removeprefix("error: ")
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)]
    return named[-1] if named else lines[-1] if lines else ""


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
