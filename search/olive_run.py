"""Runs one workflow by Olive's own command line in a process of its own, which can be watched and stopped.

Where the system can fork, the process comes from a server that has imported torch, transformers and Olive once: each
run starts at once instead of after ten seconds, and none sees what another did to its memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from evaluators.intermediate_values import VARIABLE

PRELOADED: tuple[str, ...] = (
    "torch", "transformers", "peft", "bitsandbytes", "datasets", "sklearn", "onnxruntime_genai", "optuna",
    "olive.workflows", "olive.cli.launcher",
)  # fmt: skip
POLL_SECONDS = 0.2
STOP_SECONDS = 15  # that a run has to clean up before it is killed


@dataclass(frozen=True)
class Exit:
    """How a run ended: exit code (negative: by that signal), why it was stopped if it was, peak resident bytes."""

    code: int
    stopped: str | None
    peak_rss_bytes: int


def olive_run(
    workflow: Path, log: Path, values: Path, stop: Callable[[], str | None], main: Callable[[str], object] | None = None
) -> Exit:
    """`olive run --config WORKFLOW`; its output goes to `log`, its intermediate values to `values`.

    `stop` is asked a few times a second; a text that it returns ends the run. The run and whatever it has started also
    end when this process dies. `main` is what runs in the new process, given the workflow: Olive.

    Raises:
        OSError: no process could be started.
    """
    context = _context()
    lifeline, held = context.Pipe(duplex=False)
    surroundings = os.environ | {VARIABLE: str(values)}
    run = context.Process(target=_run, args=(main or _olive, str(workflow), str(log), lifeline, dict(surroundings)))
    try:
        run.start()
    except EOFError:
        raise OSError("the server that starts runs has died") from None
    finally:
        lifeline.close()
    stopped, peak = None, 0
    try:
        while run.is_alive():
            run.join(POLL_SECONDS)
            peak = max(peak, _resident(run.pid))
            stopped = stop()
            if stopped is not None and run.is_alive():
                break
            stopped = None
    finally:  # also when `stop` raises, such as on Ctrl-C
        try:
            if run.is_alive():
                _end(run)
        finally:
            _signal(run, "SIGKILL")  # what it has left behind, too
            held.close()
    return Exit(run.exitcode if run.exitcode is not None else -1, stopped, peak)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the server inherits: Ctrl-C is the worker's
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


def _run(
    main: Callable[[str], object], workflow: str, log: str, lifeline: Connection, environment: dict[str, str]
) -> None:
    """In the new process."""
    if hasattr(os, "setsid"):
        os.setsid()  # what this starts is stopped with it
    threading.Thread(target=_die_with_worker, args=(lifeline,), daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()  # the server's is that of its start
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(workflow)


def _olive(workflow: str) -> None:
    sys.argv = ["olive", "run", "--config", workflow]
    from olive.cli.launcher import main

    main()


def _die_with_worker(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end(run: Any) -> None:
    """Asks the run to end, and ends it when it has not cleaned up in time; at once on a further Ctrl-C."""
    try:
        _signal(run, "SIGTERM")
        run.join(STOP_SECONDS)
    finally:
        if run.is_alive():
            _signal(run, "SIGKILL")
            run.join()


def _signal(run: Any, name: str) -> None:
    """To the run and to what it has started."""
    if not hasattr(os, "killpg"):  # Windows, which has no SIGKILL either
        run.terminate()
        return
    number = getattr(signal, name)
    try:
        os.killpg(run.pid, number)
    except (ProcessLookupError, PermissionError):  # it has just ended, or is so new that it has no group yet
        if run.is_alive():
            os.kill(run.pid, number)


def _resident(pid: int | None) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
