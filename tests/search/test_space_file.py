"""Every mistake in a space file is found before anything runs, all in one error."""

# ruff: noqa: E501, of the table of mistakes a row is a line
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError
from search.space import Constraint, Objective
from search.space_file import read_space
from tests.search.fake_runs import make_space, write_space

RATE = "passes.spam.training_args.learning_rate"
FLOAT = {"type": "float", "low": 0.001, "high": 0.1}


def problems(folder: Path, **changes: Any) -> list[str]:
    file = write_space(folder, **changes)
    with pytest.raises(ConfigError) as error:
        read_space(file)
    return [problem.removeprefix(f"{file}: ") for problem in error.value.problems]


def one_parameter(**changes: Any) -> dict[str, Any]:
    return {"parameters": {RATE: {k: v for k, v in (FLOAT | changes).items() if v is not None}}}


def test_a_space_is_read_with_defaults(tmp_path: Path) -> None:
    space = make_space(tmp_path, sampler=None, constraints=["spam-accuracy >= 0.93", "size_on_disk<=3e6"])
    assert space.parameters[0].name == RATE and space.parameters[-1].when == {"precision": ("int4",)}
    assert space.objectives == (Objective("spam-accuracy", "maximize", "cpu"),)
    assert space.constraints == (
        Constraint("spam-accuracy", ">=", 0.93, "cpu"), Constraint("size_on_disk", "<=", 3e6, "cpu"),
    )  # fmt: skip
    assert (space.sampler, space.pruners, space.seed, space.retries) == ({"type": "tpe"}, (), 0, 3)
    assert space.storage == f"sqlite:///{tmp_path}/results/study.db"
    assert space.constraints[0].excess(0.9) == pytest.approx(0.03) and space.constraints[1].excess(2e6) < 0


def test_objectives_count_for_every_target_that_none_names(tmp_path: Path) -> None:
    write_space(tmp_path)
    files = {"cpu": str(tmp_path / "fake.json"), "cuda": str(tmp_path / "fake.json")}
    objectives = [{"metric": "spam-accuracy"}, {"metric": "tpot_p50_ms", "target": "cuda"}]
    space = make_space(tmp_path, workflow=files, objectives=objectives, constraints=["cpu: size_on_disk <= 1"])
    assert [(o.metric, o.target, o.direction) for o in space.objectives] == [
        ("spam-accuracy", "cpu", "maximize"), ("spam-accuracy", "cuda", "maximize"), ("tpot_p50_ms", "cuda", "minimize"),
    ]  # fmt: skip
    assert [c.target for c in space.constraints] == ["cpu"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trails": 3}, "trails: unknown key; did you mean 'trials'? Valid: "),
    ({"trials": None}, "trials: is required"),
    ({"trials": 0}, "trials: must be a whole number from 1, but got 0"),
    ({"trials": True}, "trials: must be a whole number from 1, but got True"),
    ({"seed": -1}, "seed: must be a whole number from 0, but got -1"),
    ({"time_limit_seconds": "1h"}, "time_limit_seconds: must be a number of seconds, but got '1h'"),
    ({"name": "a/b"}, "name: 'a/b' may have letters"),
    ({"workflow": "nowhere.json"}, "workflow: nowhere.json: the workflow cannot be read: No such file"),
    ({"workflow": ["a"]}, "workflow: must be a file, or"),
    ({"parameters": {}}, "parameters: must be an object"),
    ({"parameters": {"passes.spam.training_args.learning_rat": FLOAT}}, "passes.spam.training_args has no 'learning_rat'; did you mean 'learning_rate'?"),
    ({"parameters": {"passes.spam.rank.deep": FLOAT}}, "passes.spam.rank is 8, which has nothing in it"),
    ({"parameters": {"x": {**FLOAT, "paths": [RATE, "passes.nowhere.rank"]}}}, "passes has no 'nowhere'"),
    ({"parameters": {"x": {**FLOAT, "path": RATE, "paths": [RATE]}}}, "parameters.x: has both path and paths"),
    ({"parameters": {RATE: FLOAT, "y": {**FLOAT, "path": RATE}}}, f"parameters.y: sets {RATE}, and so does parameters.{RATE}"),
    (one_parameter(type="flaot"), "type: 'flaot' is unknown; did you mean 'float'?"),
    (one_parameter(low=None), "low: is required"),
    (one_parameter(low=0.5), "low must not be above high, but 0.5 > 0.1"),
    (one_parameter(low="1"), "low: must be a number, but got '1'"),
    (one_parameter(low=0, log=True), "low: must be above 0 where log is true"),
    (one_parameter(step=0.1, log=True), "step: cannot stand beside log"),
    (one_parameter(step=0), "step: must be above 0"),
    (one_parameter(log="yes"), "log: must be true or false, but got 'yes'"),
    (one_parameter(choices=[1]), "choices: unknown key of type float"),
    (one_parameter(type="int"), "low: must be a whole number, but got 0.001"),
    (one_parameter(inactive="drop"), "inactive: 'drop' is unknown"),
    ({"parameters": {RATE: {"type": "categorical", "choices": []}}}, "choices: must be a list with at least one value"),
    ({"parameters": {RATE: {"type": "categorical", "choices": [1, 1]}}}, "choices: 1 stands there twice"),
    (one_parameter(when={"precisoin": "int4"}), "there is no other parameter 'precisoin'"),
    ({"parameters": {RATE: {**FLOAT, "when": {"p": "int2"}}, "p": {"path": "passes.export.precision", "type": "categorical", "choices": ["int4"]}}}, "when.p: p never is 'int2'"),
    ({"parameters": {RATE: {**FLOAT, "when": {"passes.spam.rank": 4}}, "passes.spam.rank": {"type": "int", "low": 1, "high": 8, "when": {RATE: 0.01}}}}, "go round in a circle"),
    ({"objectives": []}, "objectives: must be a list such as"),
    ({"objectives": [{"metric": "spam-acuracy"}]}, "objectives.0: the workflow measures no 'spam-acuracy'; did you mean 'spam-accuracy'?"),
    ({"objectives": [{"metric": "spam-accuracy", "direction": "minimize"}]}, "spam-accuracy is better higher, so right is 'maximize'"),
    ({"objectives": [{"metric": "spam-accuracy", "direction": "up"}]}, "direction: 'up' is unknown"),
    ({"objectives": [{"metric": "spam-accuracy", "target": "gpu"}]}, "there is no target 'gpu'"),
    ({"objectives": [{"metric": "spam-accuracy"}] * 2}, "is an objective already"),
    ({"objectives": [{"metrics": "x"}]}, "metrics: unknown key; did you mean 'metric'?"),
    ({"constraints": ["spam-accuracy > 0.9"]}, "constraints.0: 'spam-accuracy > 0.9' must read METRIC >= NUMBER"),
    ({"constraints": ["spam-accuracy >= much"]}, "constraints.0: 'spam-accuracy >= much' must read"),
    ({"constraints": ["speed >= 3"]}, "constraints.0: the workflow measures no 'speed'"),
    ({"constraints": "spam-accuracy >= 1"}, "constraints: must be a list of texts"),
    ({"sampler": {"type": "tpee"}}, "sampler.type: 'tpee' is unknown; did you mean 'tpe'?"),
    ({"sampler": {"type": "tpe", "n_startup": 3}}, "sampler.n_startup: unknown option of tpe; did you mean 'n_startup_trials'?"),
    ({"sampler": {"type": "nsga2", "population_size": 1}}, "sampler: `population_size`"),
    ({"sampler": {"type": "grid"}}, f"parameters.{RATE}: a grid needs choices or a step"),
    ({"sampler": {"type": "cmaes"}}, "cmaes takes numbers only, but precision"),
    ({"sampler": {"type": "cmaes"}, **one_parameter(), "objectives": [{"metric": "spam-accuracy"}, {"metric": "tpot_p50_ms"}]}, "cmaes takes one objective, but there are 2"),
    ({"pruner": {"type": "medina"}}, "pruner.type: 'medina' is unknown; did you mean 'median'?"),
    ({"pruner": [{"type": "median"}, {"type": "median", "n_startup": 1}]}, "pruner.1.n_startup: unknown option"),
    ({"pruner": {"type": "median", "adapter": "spma"}}, "pruner.adapter: there is no adapter 'spma'; did you mean 'spam'?"),
    ({"pruner": {"type": "median", "adapter": "blurbs", "metric": "accuracy"}}, "pruner.metric: 'accuracy' does not fit"),
    ({"storage": "postgres//x"}, "storage: 'postgres//x' is no database URL"),
    ({"storage": "oracle+cx_oracle://x"}, "storage: oracle+cx_oracle://x: its driver is not installed"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    found = problems(tmp_path, **changes)
    assert any(said in problem for problem in found), found


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    changes = {"trials": 0, "seed": "x", "objectives": [{"metric": "no"}], "sampler": {"type": "no"}}
    found = problems(tmp_path, **changes, parameters={"no.path": FLOAT})
    assert [p.partition(":")[0] for p in found] == [
        "parameters.no.path", "objectives.0", "sampler.type", "trials", "seed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON"), ("[1]", "must be a JSON object"), (None, "cannot be read")]
)
def test_a_file_that_is_no_space(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "space.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_space(file)


@pytest.mark.parametrize("file", sorted(Path("search/spaces").glob("*.json")), ids=lambda f: f.stem)
def test_the_spaces_that_come_with_the_workspace_are_right(file: Path) -> None:
    assert read_space(file).name == file.stem and json.loads(file.read_text(encoding="utf-8"))["trials"] > 0
