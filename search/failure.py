"""Why a run failed, in a line: from its exit code, the last words of its log, and what the machine had left."""

from __future__ import annotations

import errno
import re
import shutil
import signal
from pathlib import Path

import psutil

_MEMORY = re.compile(r"MemoryError|can't allocate memory|out of memory|bad_alloc|Cannot allocate memory", re.I)
_DISK = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full|ENOSPC", re.I)
_FULL_DISK = "the disk is full"
_ROOM_BYTES = 4_000_000  # with less, a log that says nothing says enough
_TAIL_BYTES = 40_000
_TAIL_LINES = 60  # a traceback of Olive's; what is further up the run has survived
_LONGEST = 2000
_NAMED = re.compile(r"[\w.]+(Error|Exception|Interrupt|Exit)\b")


def failure_reason(code: int, peak_rss_bytes: int, log: Path) -> str:
    """Of a run that ended with `code` (negative: by a signal)."""
    text = _tail(log)
    said = _last_words(text)
    free = shutil.disk_usage(log.parent).free
    if (match := _DISK.search(text)) or (code != 0 and free < _ROOM_BYTES):
        words = match[0] if match else f"exit code {code}"
        return f"{_FULL_DISK} ({words}; {free / 1e9:.3g} GB are free now at {log.parent}): {said}"[:_LONGEST]
    memory = f"its peak was {peak_rss_bytes / 1e9:.1f} GB, the machine has {psutil.virtual_memory().total / 1e9:.1f} GB"
    if _MEMORY.search(text):
        return f"out of memory; {memory}: {said}"[:_LONGEST]
    if code == -signal.SIGTERM or code >= 0:
        return said[:_LONGEST] if said else f"exit code {code}, and the log says nothing"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return f"killed (SIGKILL), which is what the system does when memory runs out; {memory}"
    return f"crashed ({name}); {memory}: {said}"[:_LONGEST]


def no_evaluation_reason(log: Path) -> str:
    """Of a run that ended with exit code 0, as Olive's does after some errors of a pass, and measured nothing."""
    text = _tail(log)
    if _DISK.search(text) or _MEMORY.search(text):
        return failure_reason(0, 0, log)
    words = [line for line in text.splitlines() if line.startswith("error: ") or _NAMED.match(line)]
    why = words[-1] if words else "its workflow needs an evaluator"
    return f"the run wrote no evaluation.json: {why}"[:_LONGEST]


def file_reason(error: OSError, place: Path) -> str:
    """Of a trial whose own files this process could not write or read, or whose run could not be started."""
    words = f"{error.strerror or error}: {error.filename or place}"
    return f"{_FULL_DISK} ({words})" if error.errno in (errno.ENOSPC, errno.EDQUOT) else words


def is_full_disk(reason: str | None) -> bool:
    """Whether a reason of these is that there was no room, which is the machine's fault and no trial's."""
    return reason is not None and _FULL_DISK in reason


def _last_words(text: str) -> str:
    """The error that ends the log: all of its lines where it is this workspace's, else the last line of a traceback."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        said = " ".join(line.strip() for line in lines[starts[-1] :]).removeprefix("error: ")
        return re.sub(r"\S+/trials/\S+/workflow\.json: ", "", said)  # the same mistake reads alike in every trial
    causes = [line.strip() for line in lines if line.startswith("  Value error, ")]
    if causes:  # what Olive's parser says of a workflow
        return "; ".join(dict.fromkeys(cause.removeprefix("Value error, ").partition(" [type=")[0] for cause in causes))
    named = [line for line in lines if _NAMED.match(line)]
    return named[-1] if named else lines[-1] if lines else ""


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
