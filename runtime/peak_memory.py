"""How much memory this process has used at most."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes() -> int:
    """Largest resident memory of this process since it began its program."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss also counts what the parent process held when it started this one
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def resident_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)
