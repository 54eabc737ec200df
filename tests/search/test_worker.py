"""What a worker makes of a study: values in the workflows, pruned trials, constraints, equal values, packages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError
from search.olive_run import Exit
from search.status import print_status
from search.study import open_study
from search.study_record import read_study
from search.trial_files import trial_workflow
from search.worker import work
from tests.search.fake_runs import fake_run, make_space, scores, workflow, write_evaluation

RANK = {"passes.spam.rank": {"type": "int", "low": 2, "high": 6, "step": 2}}


def run_with(**found: float) -> Callable[..., Exit]:
    """A run that measures what `found` says."""

    def run(file: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
        content = json.loads(file.read_text(encoding="utf-8"))
        write_evaluation(content, scores(content) | found)
        return Exit(0, None, 1)

    return run


def test_values_stand_in_the_trial_s_workflow(tmp_path: Path) -> None:
    parameters = {
        "tied": {
            "paths": ["passes.spam.rank", "passes.blurbs.rank"], "type": "categorical", "choices": [4, {"a": [1]}],
        },
        "precision": {"path": "passes.export.precision", "type": "categorical", "choices": ["int4", "fp32"]},
        "passes.export.quantization": {
            "type": "categorical", "choices": [{"block_size": 16}], "when": {"precision": "int4"}, "inactive": "remove",
        },
        "data_configs.spam_train.max_samples": {"type": "int", "low": 1, "high": 5, "when": {"precision": "fp32"}},
    }  # fmt: skip
    space = make_space(tmp_path, parameters=parameters)
    quantization = "passes.export.quantization"
    one = trial_workflow(space, "cpu", {"tied": {"a": [1]}, "precision": "int4", quantization: {"block_size": 16}})
    assert one["passes"]["spam"]["rank"] == one["passes"]["blurbs"]["rank"] == {"a": [1]}
    assert one["passes"]["export"]["quantization"] == {"block_size": 16}
    assert one["data_configs"][0]["max_samples"] == 10  # inactive: as the workflow has it
    other = trial_workflow(space, "cpu", {"tied": 4, "precision": "fp32", "data_configs.spam_train.max_samples": 3})
    assert "quantization" not in other["passes"]["export"] and other["data_configs"][0]["max_samples"] == 3
    kept = workflow()
    for key in kept.keys() - {"passes", "data_configs", "evaluators", "cache_dir"}:
        assert other[key] == kept[key]
    assert "goal" in str(kept["evaluators"]) and "goal" not in str(other["evaluators"])


def test_a_study_ends_with_files_that_reproduce_its_trials(tmp_path: Path) -> None:
    space = make_space(tmp_path)
    assert work(space, fake_run, most=2) is False and work(space, fake_run) is True
    study = read_study(space)
    assert [(t.slot, t.state, t.folder.name) for t in study.trials] == [(i, "complete", f"{i:04d}") for i in range(6)]
    for trial in study.trials:
        content = json.loads((trial.folder / "workflow.json").read_text(encoding="utf-8"))
        assert trial.metrics["cpu"]["spam-accuracy"] == scores(content)["accuracy"]
        assert content["output_dir"] == str(trial.folder / "package")
        assert trial.intervals["cpu"]["spam-accuracy"] == (0.1, 1.0)
        assert trial.curves["spam training accuracy"].keys() == {1, 2, 3}


def test_hopeless_trials_are_pruned_and_the_sampler_learns_of_them(tmp_path: Path) -> None:
    space = make_space(tmp_path, trials=12, pruner={"type": "median", "n_startup_trials": 3})
    work(space, fake_run)
    study = read_study(space)
    pruned = [t for t in study.trials if t.state == "pruned"]
    assert 2 <= len(pruned) <= 9 and all(
        "median pruner: spam's validation accuracy is" in str(t.reason) for t in pruned
    )
    assert all(not (t.folder / "package").exists() and len(t.curves["spam training accuracy"]) < 4 for t in pruned)
    optuna_trials = {t.user_attrs["slot"]: t for t in open_study(space).get_trials()}
    for trial in pruned:
        assert optuna_trials[trial.slot].intermediate_values == trial.curves["spam training accuracy"]


def test_several_objectives_are_pruned_too(tmp_path: Path) -> None:
    objectives = [{"metric": "spam-accuracy"}, {"metric": "size_on_disk"}]
    space = make_space(tmp_path, trials=12, objectives=objectives, pruner={"type": "median", "n_startup_trials": 3})
    work(space, fake_run)
    assert {t.state for t in read_study(space).trials} == {"complete", "pruned"}


def test_constraints_reach_optuna(tmp_path: Path) -> None:
    space = make_space(tmp_path, constraints=["size_on_disk <= 9e6", "spam-accuracy >= 0.2"], trials=8)
    work(space, fake_run)
    study = read_study(space)
    broken = {t.slot for t in study.trials if t.violated["cpu"]}
    assert broken and broken == {t.slot for t in study.trials if t.metrics["cpu"]["size_on_disk"] > 9e6}
    for trial in open_study(space).get_trials():
        infeasible = any(value > 0 for value in trial.constraints.values())
        assert len(trial.constraints) == 2 and infeasible == (trial.user_attrs["slot"] in broken)


def test_values_that_were_measured_are_not_run_again(tmp_path: Path) -> None:
    runs = []

    def run(*args: Any) -> Exit:
        runs.append(args)
        return fake_run(*args)

    space = make_space(tmp_path, parameters=RANK, trials=5)
    work(space, run)
    trials = read_study(space).trials
    assert len(runs) == 3 and [t.state for t in trials] == ["complete"] * 5
    assert all("same values as trial" in str(t.reason) and t.metrics for t in trials[3:])


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_with(accuracy=math.nan), "no number: spam-accuracy of cpu"),
        (lambda *_: Exit(0, None, 1), "wrote no evaluation.json"),
    ],
)
def test_a_trial_that_measures_nothing_fails(tmp_path: Path, run: Callable[..., Exit], said: str) -> None:
    space = make_space(tmp_path, trials=1)
    work(space, run)
    (trial,) = read_study(space).trials
    assert trial.state == "failed" and said in str(trial.reason)


def test_packages_that_are_beaten_lose_their_model_files(tmp_path: Path) -> None:
    def run(file: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
        ended = fake_run(file, log, values, stop)
        package = Path(json.loads(file.read_text(encoding="utf-8"))["output_dir"])
        (package / "model.onnx").write_bytes(b"0")
        (package / "adapters").mkdir()
        return ended

    space = make_space(tmp_path, trials=8)
    work(space, run)
    study = read_study(space)
    best = max(t.metrics["cpu"]["spam-accuracy"] for t in study.trials)
    for trial in study.trials:
        here = (trial.folder / "package" / "model.onnx").exists() and (trial.folder / "package" / "adapters").exists()
        assert here == (trial.metrics["cpu"]["spam-accuracy"] >= best * 0.99)
        assert (trial.folder / "package" / "evaluation.json").exists()


def test_a_changed_space_is_another_study(tmp_path: Path) -> None:
    work(make_space(tmp_path, trials=2), fake_run)
    assert work(make_space(tmp_path, trials=3), fake_run)  # more trials are the same study
    with pytest.raises(
        ConfigError,
        match=r"parameters.precision.name: the study 'fake' was begun with .* and this is null; .* needs another",
    ):
        work(make_space(tmp_path, parameters=RANK), fake_run)
    space = make_space(tmp_path)
    (tmp_path / "fake.json").write_text(json.dumps(workflow(workflow_id="changed")), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"workflow.cpu: the study 'fake' was begun with .*fake.json with sha256"):
        work(space, fake_run)


def test_a_study_without_a_measurement_begins_anew(tmp_path: Path) -> None:
    failing = make_space(tmp_path, trials=1)
    work(failing, lambda *_: Exit(3, None, 1))
    assert [t.state for t in read_study(failing).trials] == ["failed"]
    repaired = make_space(tmp_path, trials=2, parameters=RANK)
    assert work(repaired, fake_run)
    assert [t.state for t in read_study(repaired).trials] == ["complete"] * 2


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    work(make_space(tmp_path, trials=1), fake_run)
    with pytest.raises(ConfigError, match=r"output_dir: .*results belongs to the study 'fake', and this is 'other'"):
        work(make_space(tmp_path, name="other"), fake_run)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: .*file is a file, not a folder"):
        work(make_space(tmp_path, output_dir=str(tmp_path / "file")), fake_run)


def test_a_study_can_be_looked_at_while_a_trial_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = make_space(tmp_path, trials=2)

    def run(file: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
        rows = [[row, row % 2] for row in range(100)]
        line = {"stage": "evaluation", "adapter": "spam", "metric": "accuracy", "rows": rows, "of": 100}
        values.write_text(json.dumps(line) + "\n", encoding="utf-8")
        stop()
        print_status(read_study(space))
        return fake_run(file, log, values, stop)

    work(space, run)
    shown = capsys.readouterr().out
    assert "trial 0 on" in shown and "trial 1 on" in shown
    for trial in read_study(space).trials:
        curve = trial.curves["spam evaluation accuracy"]
        assert max(curve) == 100 and curve[100] == 0.5 and curve[2] == 0.5 and len(curve) == 50
