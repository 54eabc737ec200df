"""Runs in place of `olive run` that go wrong, each in a real process of its own, and some that wait."""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from search import olive_run
from search.olive_run import Exit
from tests.search.fake_runs import fake_run

olive_run.PRELOADED = ()  # in the process that imports this: nothing here needs torch


def _in_process(main: Callable[[str], object]) -> Callable[..., Exit]:
    return functools.partial(olive_run.olive_run, main=main)


def _measure(workflow: str) -> None:
    place = Path(workflow).parent
    fake_run(Path(workflow), place / "log.txt", Path(os.environ["OLIVAL_INTERMEDIATE_VALUES"]), lambda: None)


def _says_error(_: str) -> None:
    print("Traceback (most recent call last):\n  ...", file=sys.stderr)
    print("error: 2 problems:\n  passes.spam.rank: 0 is no rank\n  passes.spam.alpha: is missing", file=sys.stderr)
    sys.exit(1)


def _raises_value_error(_: str) -> None:
    raise ValueError("a row has no text")


def _ends_silently(_: str) -> None:
    sys.exit(3)


def _aborts(_: str) -> None:
    print("terminate called after throwing an instance of 'std::bad_alloc'", flush=True)
    os.abort()


def _segfaults(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _is_killed(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the system's out-of-memory killer does it


def _takes_all_memory(_: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3,) * 2)
    held = [bytearray(256 * 1024**2) for _ in range(100)]
    print(len(held))


def _torch_takes_all_memory(_: str) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory")


def _fills_the_disk(_: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as file:
        file.write("a package")


def _writes_too_much(workflow: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    (Path(workflow).parent / "model.onnx").write_bytes(bytes(200_000))


def _fills_the_disk_and_exits_0(workflow: str) -> None:
    try:
        _fills_the_disk(workflow)
    except OSError as error:
        print(f"[ERROR] [engine.py] Pass run failed.\nOSError: {error}", file=sys.stderr)


def _measures_nothing(_: str) -> None:
    pass


def _measures_half(workflow: str) -> None:
    _measure(workflow)
    file = Path(workflow).parent / "package" / "evaluation.json"
    file.write_text(file.read_text(encoding="utf-8")[:50], encoding="utf-8")


def _waits(workflow: str) -> None:
    place = Path(workflow).parent
    child = os.fork()
    if child == 0:
        time.sleep(120)
        os._exit(0)
    (place / "pids.tmp").write_text(f"{os.getpid()} {child}", encoding="utf-8")
    (place / "pids.tmp").rename(place / "pids.txt")
    time.sleep(120)


def _waits_and_will_not_stop(workflow: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _waits(workflow)


measure = _in_process(_measure)
says_error = _in_process(_says_error)
raises_value_error = _in_process(_raises_value_error)
ends_silently = _in_process(_ends_silently)
aborts = _in_process(_aborts)
segfaults = _in_process(_segfaults)
is_killed = _in_process(_is_killed)
takes_all_memory = _in_process(_takes_all_memory)
torch_takes_all_memory = _in_process(_torch_takes_all_memory)
fills_the_disk = _in_process(_fills_the_disk)
writes_too_much = _in_process(_writes_too_much)
fills_the_disk_and_exits_0 = _in_process(_fills_the_disk_and_exits_0)
measures_nothing = _in_process(_measures_nothing)
measures_half = _in_process(_measures_half)
waits = _in_process(_waits)
waits_and_will_not_stop = _in_process(_waits_and_will_not_stop)


def cannot_start(*_: object) -> Exit:
    """The worker's own OSError."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "trials/0000/log.txt")


def slow(workflow: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
    """Long enough for a test to see that there is more to come."""
    time.sleep(0.4)
    return fake_run(workflow, log, values, stop)


def full_after_two(workflow: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
    """The disk is full from the third trial on."""
    if int(workflow.parent.name[:4]) >= 2:
        log.write_text("OSError: [Errno 28] No space left on device: 'model.onnx.data'\n", encoding="utf-8")
        return Exit(1, None, 1)
    return fake_run(workflow, log, values, stop)


def each_failure(workflow: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
    """Every trial fails in its own way, but for the first."""
    slot = int(workflow.parent.name[:4])
    return (fake_run, *FAILURES)[slot](workflow, log, values, stop)


FAILURES = (
    says_error, raises_value_error, ends_silently, aborts, segfaults, is_killed, takes_all_memory,
    torch_takes_all_memory, fills_the_disk, writes_too_much, fills_the_disk_and_exits_0, measures_nothing,
    measures_half, cannot_start,
)  # fmt: skip
