"""Workers that are stopped: what they run ends with them, and the trial goes on later."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from search.space_file import read_space
from search.study_record import read_study
from tests.search.fake_runs import write_space
from tests.search.fake_worker import Nursery, output, wait_for


def running(space: Path) -> list[psutil.Process]:
    """The run's process and the one that it has started, as soon as both are there."""
    file = space.parent / "results" / "trials" / "0000" / "pids.txt"
    wait_for(file.exists)
    return [psutil.Process(int(pid)) for pid in file.read_text(encoding="utf-8").split()]


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    except psutil.NoSuchProcess:
        return True


def states(space: Path) -> list[tuple[int, int, str]]:
    return [(t.slot, t.attempt, t.state) for t in read_study(read_space(space)).trials]


@pytest.mark.parametrize("run", ["waits", "waits_and_will_not_stop"])
def test_a_killed_workers_run_dies_with_it(tmp_path: Path, nursery: Nursery, run: str) -> None:
    space = write_space(tmp_path, trials=1)
    worker = nursery.start(space, run)
    processes = running(space)
    os.kill(worker, signal.SIGKILL)
    nursery.wait(worker)
    wait_for(lambda: all(map(is_gone, processes)), seconds=30)
    assert nursery.run(space, "measure") == 0
    assert states(space) == [(0, 0, "lost"), (0, 1, "complete")]
    assert str(read_study(read_space(space)).trials[0].reason).endswith("died")


STOPS = {  # signals one after another, seconds apart
    "Ctrl-C": ("waits", [signal.SIGINT]),
    "SIGTERM": ("waits", [signal.SIGTERM]),
    "Ctrl-C twice": ("waits_and_will_not_stop", [signal.SIGINT, signal.SIGINT]),
    "Ctrl-C and SIGTERM": ("waits_and_will_not_stop", [signal.SIGINT, signal.SIGTERM]),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_worker_gives_its_trial_back(tmp_path: Path, nursery: Nursery, stop: str) -> None:
    run, signals = STOPS[stop]
    space = write_space(tmp_path, trials=2, retries=0)
    worker = nursery.start(space, run, command_line=True)
    processes = running(space)
    for number in signals:
        os.kill(worker, number)
        time.sleep(0.5)  # long enough for the first to be heard before the second, however busy the machine is
    assert nursery.wait(worker) == 130
    wait_for(lambda: all(map(is_gone, processes)), seconds=30)
    said = output(space, worker)
    assert f"stopped; `python -m search run {space}` goes on from here" in said and "Traceback" not in said
    assert states(space) == [(0, 0, "lost")]
    assert read_study(read_space(space)).trials[0].reason == "stopped, to be run again"
    assert nursery.run(space, "measure") == 0  # although the space allows no retries
    assert states(space) == [(0, 0, "lost"), (0, 1, "complete"), (1, 0, "complete")]


@pytest.mark.parametrize("moment", [1, 4, 8, 12])
def test_ctrl_c_before_the_run(tmp_path: Path, nursery: Nursery, moment: int) -> None:
    """While the study is opened, the trial is begun, or its values are drawn."""
    space = write_space(tmp_path, trials=1, retries=0)
    assert nursery.run(space, "fake_run", kill_at=moment, number=signal.SIGINT, command_line=True) == 130
    assert nursery.run(space) == 0
    assert states(space)[-1][2] == "complete"
