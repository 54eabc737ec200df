"""Both sides of a worker in a process of its own: who starts it and shows its progress, and what it leaves behind."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmark.results import write_json
from runtime.errors import OlivalError

_TAIL = 20_000  # characters of stderr that are kept to find the reason of a failure
_ROOT = Path(__file__).resolve().parents[1]


def write_result(output: Path, measure: Callable[[], Mapping[str, Any]]) -> int:
    """What a worker's command does: measures, and writes the result as JSON.

    Returns:
        The exit code: 0, or 1 after printing an error line; then nothing is written.
    """
    try:
        write_json(output, measure())
    except (OlivalError, OSError, RuntimeError) as error:  # a driver that fails is a RuntimeError of onnxruntime-genai
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class WorkerError(OlivalError):
    """A worker ended without a result; the message is its own error line, or how it ended."""


def run_fresh(command: Sequence[str]) -> None:
    """Runs a command that finds the workspace's modules; its stderr is shown as it comes, its stdout is not.

    When this process is interrupted, the worker is killed.

    Raises:
        WorkerError: the exit code is not 0.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        list(command), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tail = ""
    try:
        while chunk := os.read(process.stderr.fileno(), 4096):
            text = decoder.decode(chunk)
            tail = (tail + text)[-_TAIL:]
            sys.stderr.write(text)
            sys.stderr.flush()
        code = process.wait()
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
        process.stderr.close()
    if code:
        raise WorkerError(_reason(tail, code))


def _reason(stderr: str, code: int) -> str:
    lines = [line.strip() for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        more = takewhile(lambda line: line.startswith("- "), lines[errors[-1] + 1 :])  # an error that lists problems
        return " ".join([lines[errors[-1]].removeprefix("error: "), *more])
    if code < 0:
        memory = ", perhaps for want of memory" if code == -9 else ""
        return f"the worker was killed by signal {-code}{memory}"
    return f"the worker ended with exit code {code}: {lines[-1][:300] if lines else 'it printed nothing'}"
