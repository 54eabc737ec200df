"""Samplers by name: conditions hold, a seed decides everything, a grid has every combination once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from search.samplers import GRID, SAMPLERS, draw, grid, grid_trials, make_sampler
from search.space import Parameter, Space
from search.study_record import read_study
from search.worker import work
from tests.search.fake_runs import fake_run, make_space

NUMBERS = {
    "passes.spam.training_args.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "passes.spam.rank": {"type": "int", "low": 2, "high": 32, "step": 2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3},
    "nsga2": {"population_size": 3},
    "cmaes": {"n_startup_trials": 2},
}


@pytest.mark.parametrize("kind", [*SAMPLERS, GRID])
def test_every_sampler_searches(tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"sampler": {"type": kind, **OPTIONS.get(kind, {})}, "trials": 6}
    if kind == "cmaes":
        changes["parameters"] = NUMBERS
    if kind == GRID:
        changes["parameters"] = {"passes.spam.rank": {"type": "int", "low": 2, "high": 32, "step": 2}}
    space = make_space(tmp_path, **changes)
    assert work(space, fake_run)
    trials = read_study(space).trials
    assert [t.state for t in trials] == ["complete"] * 6
    for trial in trials:
        for parameter in space.parameters:
            assert (parameter.name in trial.parameters) == parameter.is_active(trial.parameters)
    assert len({str(t.parameters) for t in trials}) == 6


def drawn(space: Space, slot: int) -> dict[str, Any]:
    study = optuna.create_study(sampler=make_sampler(space, slot))
    return draw(study.ask(), space.parameters)


def test_the_seed_and_the_slot_decide(tmp_path: Path) -> None:
    space = make_space(tmp_path)
    assert [drawn(space, slot) for slot in range(5)] == [drawn(space, slot) for slot in range(5)]
    assert len({str(drawn(space, slot)) for slot in range(5)}) == 5
    assert drawn(space, 0) != drawn(make_space(tmp_path, seed=1), 0)


def test_a_grid_has_every_combination_once() -> None:
    parameters = [
        Parameter("precision", ("a",), "categorical", choices=("int4", "fp32", {"x": 1})),
        Parameter("block", ("b",), "int", low=16, high=48, step=16, when={"precision": ("int4",)}),
        Parameter("drop", ("c",), "float", low=0.0, high=0.3, step=0.1, when={"precision": ("fp32", {"x": 1})}),
    ]
    found = grid(parameters)
    assert [c["block"] for c in found if c["precision"] == "int4"] == [16, 32, 48]
    assert [c["drop"] for c in found if c["precision"] == {"x": 1}] == [0.0, 0.1, 0.2, 0.3]
    assert len(found) == 3 + 4 + 4 and len(grid(parameters, 5)) == 5


def test_a_grid_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    parameters = {"passes.spam.rank": {"type": "int", "low": 2, "high": 32, "step": 2}}
    spaces = [make_space(tmp_path, sampler={"type": "grid"}, parameters=parameters, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([t["passes.spam.rank"] for t in grid_trials(space)] for space in spaces)
    assert first == again != other and sorted(first) == list(range(2, 33, 2)) == sorted(other)
