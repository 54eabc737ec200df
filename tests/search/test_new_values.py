"""No values are tried twice while there are others: drawn slot by slot on a study in memory, where some trials fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.new_values import new_values
from search.samplers import draw, grid, make_sampler
from search.space import Objective, Parameter, Space

PARAMETERS = (
    Parameter("precision", ("a",), "categorical", choices=("int4", "int8", "fp32")),
    Parameter("block", ("b",), "categorical", choices=(16, 32, 64), when={"precision": ("int4",)}),
    Parameter("rank", ("c",), "int", low=4, high=8, step=4),
)
CONTINUOUS = Parameter("rate", ("d",), "float", low=1e-4, high=1e-2, log=True)


def space(parameters: tuple[Parameter, ...] = PARAMETERS, **changes: Any) -> Space:
    return Space(
        name="x", file=Path("x.json"), workflows={"cpu": Path("w.json")}, parameters=parameters,
        objectives=(Objective("loss", "minimize", "cpu"),), constraints=(), sampler={"type": "tpe"}, pruners=(),
        trials=10, seed=changes.pop("seed", 0), storage="", output=Path("out"), **changes,
    )  # fmt: skip


def search(space: Space, slots: int) -> list[dict[str, Any]]:
    """The values of each slot; every third trial fails."""
    study = optuna.create_study(direction="minimize")
    found = []
    for slot in range(slots):
        study.sampler = make_sampler(space, slot)
        if (fixed := new_values(study, space, slot)) is not None:
            study.enqueue_trial(fixed)
        trial = study.ask()
        values = draw(trial, space.parameters)
        trial.set_user_attr("parameters", values)
        found.append(values)
        if slot % 3 == 1:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, float(slot))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_every_combination_is_tried_once(sampler: str) -> None:
    every = grid(PARAMETERS)
    asked = replace(space(), sampler={"type": sampler})
    found = search(asked, len(every) + 2)
    assert len(every) == 10
    assert sorted(map(str, found[: len(every)])) == sorted(map(str, every))
    assert all(values in every for values in found[len(every) :])  # nothing is left, so they may be repeated


def test_the_seed_decides() -> None:
    assert search(space(seed=3), 8) == search(space(seed=3), 8) != search(space(seed=4), 8)


@pytest.mark.parametrize(
    "other", [space((*PARAMETERS, CONTINUOUS)), replace(space(), sampler={"type": "grid"})], ids=["continuous", "grid"]
)
def test_others_are_left_to_their_sampler(other: Space) -> None:
    study = optuna.create_study()
    assert new_values(study, other, 0) is None
    assert set(new_values(study, space(), 0) or {}) >= {"precision", "rank"}
    assert study.trials == []  # only a copy is asked
