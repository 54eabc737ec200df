"""The workflow check before a search's first trial: which values it is given, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.__main__ import main
from search.space_check import check_before_first_trial, each_alone
from search.space_file import read_space
from search.worker import work
from tests.passes.conftest import workflow
from tests.search.fake_runs import fake_run, make_space

PRECISION = {"path": "passes.export.precision", "type": "categorical", "choices": ["int8", "int4"]}
BLOCK = {"type": "categorical", "choices": [16, 64], "when": {"precision": "int4"}, "inactive": "remove"}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            {"passes.spam.rank": {"type": "categorical", "choices": [4, 8, 0]}},
            [(None, {"passes.spam.rank": 8}), ("passes.spam.rank", {"passes.spam.rank": 4}),
             ("passes.spam.rank", {"passes.spam.rank": 0})],
        ),
        (  # what the workflow has is no value of the space; the upper bound is one that a step reaches
            {"passes.spam.rank": {"type": "int", "low": 10, "high": 21, "step": 4}},
            [(None, {"passes.spam.rank": 10}), ("passes.spam.rank", {"passes.spam.rank": 18})],
        ),
        (
            {"passes.spam.rank": {"type": "int", "low": 8, "high": 8}},
            [(None, {"passes.spam.rank": 8})],
        ),
        (
            {"passes.spam.training_args.learning_rate": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}},
            [(None, {"passes.spam.training_args.learning_rate": 0.001}),
             ("passes.spam.training_args.learning_rate", {"passes.spam.training_args.learning_rate": 1e-4}),
             ("passes.spam.training_args.learning_rate", {"passes.spam.training_args.learning_rate": 0.1})],
        ),
        (  # a value that counts under another one alone
            {"precision": PRECISION, "passes.export.quantization.block_size": BLOCK},
            [(None, {"precision": "int4", "passes.export.quantization.block_size": 16}),
             ("precision", {"precision": "int8"}),
             ("passes.export.quantization.block_size",
              {"precision": "int4", "passes.export.quantization.block_size": 64})],
        ),
        (
            {"precision": {**PRECISION, "choices": ["int8", "fp32", "int4"]},
             "passes.spam.rank": {"type": "categorical", "choices": [2, 3], "when": {"precision": ["fp32", "int8"]}}},
            [(None, {"precision": "int4"}),
             ("precision", {"precision": "int8", "passes.spam.rank": 2}),
             ("precision", {"precision": "fp32", "passes.spam.rank": 2}),
             ("passes.spam.rank", {"precision": "fp32", "passes.spam.rank": 3})],
        ),
    ],
    ids=["choices", "steps", "one value", "bounds", "when", "when of another"],
)  # fmt: skip
def test_each_value_is_looked_at_once_beside_the_usual_ones(
    tmp_path: Path, parameters: dict[str, Any], expected: list[Any]
) -> None:
    space = make_space(tmp_path, parameters=parameters)
    found = each_alone(space, next(iter(space.workflows)))
    assert found == expected


def write(folder: Path, base: Path, change: Callable[[dict[str, Any]], object], **parameters: Any) -> Path:
    content = workflow(folder / "files", base)
    content["passes"]["mood"] |= {"dropout": 0.1}
    change(content)
    (folder / "tiny.json").write_text(json.dumps(content), encoding="utf-8")
    space = {
        "workflow": str(folder / "tiny.json"), "objectives": [{"metric": "mood-accuracy"}], "trials": 3,
        "output_dir": str(folder / "results"), "parameters": parameters,
    }  # fmt: skip
    (folder / "space.json").write_text(json.dumps(space), encoding="utf-8")
    return folder / "space.json"


def test_what_a_pass_refuses_is_said_before_the_first_trial(
    tmp_path: Path, tiny_llama_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All at once; nothing is written, and the workflow's own faults are said once."""
    file = write(
        tmp_path, tiny_llama_path, lambda w: w["passes"]["story"].update(alpha=-1.0), **{
            "passes.mood.rank": {"type": "categorical", "choices": [4, 0, 8]},
            "passes.mood.dropout": {"type": "float", "low": 0.0, "high": 1.5},
            "precision": {**PRECISION, "choices": ["fp32", "int9"]},
        },
    )  # fmt: skip
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["run", str(file)]) == 1
    lines = [line.strip(" -") for line in capsys.readouterr().err.splitlines()]
    assert lines[1].startswith("error: 4 problems")
    for start in (
        f"{tmp_path / 'tiny.json'}: passes.story.alpha: must be above 0, but got -1",
        f"{file}: parameters.passes.mood.rank: 0: passes.mood.rank: must be 1 or more, but got 0",
        f"{file}: parameters.passes.mood.dropout: 1.5: passes.mood.dropout: 0 <= dropout < 1 must hold, but got 1.5",
        f"{file}: parameters.precision: \"int9\": passes.export.precision is 'int9', which cpu cannot run",
    ):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_right_space_passes(tmp_path: Path, tiny_llama_path: Path) -> None:
    ranks = {"type": "categorical", "choices": [4, 8]}
    file = write(tmp_path, tiny_llama_path, lambda w: None, **{"passes.mood.rank": ranks, "precision": PRECISION})
    check_before_first_trial(read_space(file))
    assert not (tmp_path / "results").exists()


def test_a_workflow_that_olive_cannot_read(tmp_path: Path) -> None:
    """The fake workflow has no input model."""
    space = make_space(tmp_path)
    with pytest.raises(ValueError, match=r"fake\.json: ValidationError: .*input_model"):
        check_before_first_trial(space)


def test_a_study_that_has_begun_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = make_space(tmp_path)
    work(space, fake_run, most=1)
    monkeypatch.setattr("search.space_check.olive_run", None)  # calling it would fail
    check_before_first_trial(space)
