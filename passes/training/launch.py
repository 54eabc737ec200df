"""Trains an adapter in several processes, which `accelerate launch` starts and which end with this one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data.examples import ClassificationData, GenerationData
from passes.training.head_settings import HeadSettings
from passes.training.out_of_memory import OutOfMemory, StoppedTraining
from passes.training.processes import launch_settings
from passes.training.settings import AdapterSettings
from runtime.errors import OlivalError

JOB, CONFIG, ERROR = "job.pickle", "accelerate.json", "error-{}.json"
KILLED = "Killed"  # in place of the type of an error
END_SECONDS = 15  # that processes have to end before they are killed


@dataclass(frozen=True)
class Job:
    """What `passes.training.train.train_adapter` is to be called with; see there."""

    folder: Path
    base: Path
    settings: AdapterSettings
    train_data: ClassificationData | GenerationData
    validation_data: ClassificationData | GenerationData | None
    head: HeadSettings | None
    checkpoints: Path
    start: Path | None = None


def train_in_processes(job: Job) -> None:
    """Does what `train_adapter` does, in the processes that job.settings asks for.

    The first of them writes the adapter, talks and reports; on several machines the first one of each writes it.

    Raises:
        OutOfMemory: as `train_adapter`.
        StoppedTraining: a process failed in a way that is not foreseen, or was killed.
        OlivalError: as `train_adapter`.
    """
    launch = launch_settings(job.settings)
    assert launch is not None
    here = max(1, int(launch["num_processes"]) // int(launch["num_machines"]))
    cores = _cores()
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, (int(given) if given.isdigit() else cores) // here)
    threads = int(launch.get("num_cpu_threads_per_process") or threads)
    name = job.settings.adapter_name
    if here > cores:
        print(f"warning: train {name}: {here} processes share {cores} core{'s' * (cores > 1)}", file=sys.stderr)
    print(f"train {name}: {launch['num_processes']} processes", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=job.folder, prefix="launch-") as work:
        with open(Path(work) / JOB, "wb") as stream:
            pickle.dump(job, stream)
        (Path(work) / CONFIG).write_text(json.dumps(launch), encoding="utf-8")
        surroundings = {**os.environ, "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
        if launch.get("use_cpu"):
            surroundings["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", "passes.training.launcher", work, str(threads), str(os.getpid())]
        launcher = subprocess.Popen(command, env=surroundings, stdin=subprocess.DEVNULL)
        try:
            code = launcher.wait()
        finally:
            end(launcher)
        if code:
            raise _reason(Path(work), name, code)


def end(launcher: subprocess.Popen[Any]) -> None:
    """Asks a process that still runs to end, and kills it and what it has started where it has not in time."""
    if launcher.poll() is not None:
        return
    started: list[psutil.Process] = []
    try:
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(launcher.pid).children(recursive=True)
        launcher.terminate()
        launcher.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.kill()
        launcher.wait()


def _cores() -> int:
    """Which this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(work: Path, name: str, code: int) -> OlivalError:
    """What the processes left behind. Those that wait for one that failed fail too, later: its own words count."""
    files = sorted(work.glob(ERROR.format("*")), key=lambda file: file.stat().st_mtime_ns)
    said = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for kind, type_ in (("OutOfMemory", OutOfMemory), ("OlivalError", OlivalError)):
        for error in said:
            if error["kind"] == kind:
                return type_(error["message"])
    if said:
        said.sort(key=lambda error: error["kind"] != KILLED)  # stable: the earliest first
        return StoppedTraining(f"adapter '{name}': {said[0]['message']}")
    return StoppedTraining(f"adapter '{name}': the training's processes ended with exit code {code} and said nothing")
