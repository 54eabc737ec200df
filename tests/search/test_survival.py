"""Workers that are killed at any moment: no trial is lost or counts twice, the study ends as an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from search.records import TrialRecord
from search.space_file import read_space
from search.study_record import read_study
from tests.search.fake_runs import write_space
from tests.search.fake_worker import Nursery, output, wait_for

GRID = {
    "parameters": {
        "passes.spam.rank": {"type": "int", "low": 2, "high": 32, "step": 5},
        "precision": {"path": "passes.export.precision", "type": "categorical", "choices": ["int4", "int8", "fp32"]},
    }
}
NUMBERS = {
    "parameters": {
        "passes.spam.training_args.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "passes.spam.rank": {"type": "int", "low": 2, "high": 32, "step": 2},
    }
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"sampler": {"type": "tpe", "n_startup_trials": 5}},
    "random": {"sampler": {"type": "random"}},
    "grid": {"sampler": {"type": "grid"}, **GRID},
    "nsga2": {"sampler": {"type": "nsga2", "population_size": 2}},
    "cmaes": {"sampler": {"type": "cmaes", "n_startup_trials": 1, "popsize": 3}, **NUMBERS},
}
OFTEN = {"retries": 1000}


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def ended(space: Path) -> dict[int, TrialRecord]:
    """{slot: its last attempt}; every slot has exactly one that did not get lost."""
    study = read_study(read_space(space))
    last = {trial.slot: trial for trial in study.trials}
    for slot, trial in last.items():
        attempts = [t for t in study.trials if t.slot == slot]
        assert [t.attempt for t in attempts] == list(range(len(attempts)))
        assert [t.state for t in attempts] == ["lost"] * trial.attempt + ["complete"]
        assert all(t.reason for t in attempts[:-1])
    return last


def has_begun(space: Path, worker: int) -> bool:
    return "reached the database" in output(space, worker)


def assert_same(disturbed: dict[int, TrialRecord], undisturbed: dict[int, TrialRecord]) -> None:
    assert disturbed.keys() == undisturbed.keys()
    for slot, trial in undisturbed.items():
        assert disturbed[slot].parameters == trial.parameters, slot
        assert disturbed[slot].metrics == trial.metrics
    assert best_value(disturbed) == best_value(undisturbed)


def best_value(trials: dict[int, TrialRecord]) -> float:
    return max(trial.metrics["cpu"]["spam-accuracy"] for trial in trials.values())


def two_spaces(folder: Path, **changes: Any) -> tuple[Path, Path]:
    (folder / "calm").mkdir()
    (folder / "rough").mkdir()
    return write_space(folder / "calm", **changes), write_space(folder / "rough", **changes, **OFTEN)


@pytest.mark.parametrize("sampler", ["tpe", *slow("random", "grid", "nsga2", "cmaes")])
def test_twenty_kills_change_nothing(tmp_path: Path, nursery: Nursery, sampler: str) -> None:
    calm, rough = two_spaces(tmp_path, trials=18, **SAMPLERS[sampler])
    assert nursery.run(calm) == 0
    undisturbed = ended(calm)
    seconds = statistics.median(trial.seconds or 0.0 for trial in undisturbed.values())
    moments = random.Random(0)
    for kills in range(20):
        worker = nursery.start(rough)
        wait_for(partial(has_begun, rough, worker))
        time.sleep(moments.uniform(0, 2 * seconds))
        os.kill(worker, signal.SIGKILL)
        assert nursery.wait(worker) == -signal.SIGKILL, f"the study was over after {kills} kills"
    assert nursery.run(rough) == 0
    found = ended(rough)
    assert any(trial.attempt for trial in found.values()), "no kill hit a running trial"
    assert_same(found, undisturbed)


@pytest.mark.parametrize("sampler", slow("nsga2", "cmaes", "tpe", "grid"))
def test_a_kill_at_every_transaction(tmp_path: Path, nursery: Nursery, sampler: str) -> None:
    """Each worker is killed one transaction later than the one before it, until one reaches the study's end."""
    calm, rough = two_spaces(tmp_path, trials=5, **SAMPLERS[sampler])
    codes = [nursery.run(rough, kill_at=1)]
    for moment in count(2):
        if codes[-1] != -signal.SIGKILL:
            break
        codes.append(nursery.run(rough, kill_at=moment))
    assert codes[-1] == 0, codes
    assert len(codes) > 15
    assert nursery.run(calm) == 0
    assert_same(ended(rough), ended(calm))
