from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError, OlivalError
from runtime.manifest import read_manifest
from search.best import best, decide
from search.records import StudyRecord
from search.remeasure import compared
from tests.search.studies import make_space, make_study, make_trial

QUALITY, SPEED, SIZE = "spam-accuracy", "tpot_p50_ms", "size_on_disk"
Remeasured = dict[str, dict[str, Any]]


def row(quality: float, speed: float, size: float = 3e6) -> dict[str, float]:
    return {QUALITY: quality, SPEED: speed, SIZE: size}


def workflow_of(folder: Path) -> dict[str, object]:
    """Of a recommendation."""
    content: dict[str, object] = json.loads((folder / "workflow.json").read_text(encoding="utf-8"))
    return content


def put_packages(study: StudyRecord, target: str = "target") -> None:
    """Folders that look like packages, each with its workflow and its number in a file."""
    for trial in study.trials:
        folder = trial.package(target, study.space)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text("{}", encoding="utf-8")
        (folder / "slot.txt").write_text(str(trial.slot), encoding="utf-8")
        folder.with_name("workflow.json").write_text(json.dumps({"trial": trial.slot}), encoding="utf-8")


def slot_of(recommended: Path) -> int:
    return int((recommended / "package" / "slot.txt").read_text(encoding="utf-8"))


@pytest.fixture
def study(tmp_path: Path) -> StudyRecord:
    """Trial 1 is as good as trial 0 within a percent, and three times as fast."""
    space = make_space(
        [QUALITY, SPEED], [(SIZE, "<=", 4e6)], output=tmp_path, parameters=["passes.a.rank", "precision"]
    )
    rows = [row(1.0, 3.0), row(0.995, 1.0), row(0.9, 0.9), row(1.0, 0.1, 5e6)]
    trials = [
        make_trial(space, slot, metrics, parameters={"passes.a.rank": 2**slot, "precision": "int4"})
        for slot, metrics in enumerate(rows)
    ]
    study = make_study(space, [*trials, make_trial(space, 4, None, state="failed")])
    put_packages(study)
    return study


def unexpected(*arguments: Any) -> dict[str, Any]:
    raise AssertionError("nothing is to be measured again")


def test_the_recommended_package_is_shown_and_copied(
    study: StudyRecord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.best.remeasure", unexpected)
    folder = study.space.output / "recommended" / "target"
    for _ in range(2):  # the second takes the first one's place
        assert best(study, None, {}) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["package", "recommendation.json", "workflow.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["target"]
    assert slot_of(folder) == 1 and workflow_of(folder) == {"trial": 1, "output_dir": str(folder / "package")}
    found = json.loads((folder / "recommendation.json").read_text(encoding="utf-8"))
    assert (found["study"], found["target"], found["trial"], found["pareto_front"]) == ("study", "target", 1, [0, 1, 2])
    assert found["parameters"] == {"passes.a.rank": 2, "precision": "int4"} and found["metrics"] == row(0.995, 1.0)
    assert found["lost"] == {"0": "slower: 3 ms", "2": "quality 10 % lower", "3": "breaks size_on_disk <= 4e+06"}
    assert found["measured_again"] is None
    shown = capsys.readouterr().out
    assert "target: 5 of 30 trials: 4 complete, 1 failed; 3 with size_on_disk <= 4 MB" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["0", "1.000", "3", "1", "slower:", "3", "ms"] in lines
    assert ["*", "1", "0.995", "1", "2", "recommended"] in lines
    assert "the same in all of them: precision int4" in shown and "Recommended: trial 1" in shown
    assert found["rule"] == [line.strip() for line in shown.splitlines() if line.startswith("  ") and ": " in line][-3:]
    assert f"Written to {folder}" in shown


def tied(tmp_path: Path) -> StudyRecord:
    space = make_space([QUALITY, SPEED], output=tmp_path)
    study = make_study(space, [row(1.0, 1.0), row(1.0, 1.1), row(1.0, 9.0)])
    put_packages(study)
    return study


def test_ties_are_measured_again_once_and_the_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, calls = tied(tmp_path), []

    def measured(study: StudyRecord, target: str, metric: str, slots: tuple[int, ...]) -> dict[str, Any]:
        calls.append((target, metric, slots))
        return {"metric": metric, "missing": {}, **compared({"0": [1.0] * 30, "1": [0.8] * 30})}

    monkeypatch.setattr("search.best.remeasure", measured)
    remeasured: Remeasured = {}
    assert best(study, None, remeasured) == 0
    assert calls == [("target", SPEED, (0, 1))] and slot_of(tmp_path / "recommended" / "target") == 1
    stored: Remeasured = json.loads(json.dumps(remeasured))
    assert best(study, ["target"], stored) == 0 and len(calls) == 1 and stored == remeasured
    file = tmp_path / "recommended" / "target" / "recommendation.json"
    assert json.loads(file.read_text(encoding="utf-8"))["measured_again"] == stored["target"]
    stored["target"]["missing"] = {"1": "was not here"}  # it is here now
    del stored["target"]["seconds_median"]["1"], stored["target"]["ratios"]["1"]
    assert best(study, None, stored) == 0 and len(calls) == 2 and stored == remeasured


def test_where_ties_cannot_be_measured_again_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tied(tmp_path)
    shutil.rmtree(study.trials[1].package("target", study.space))
    remeasured: Remeasured = {}
    monkeypatch.setattr("search.remeasure.read_manifest", lambda folder: {})
    assert best(study, None, remeasured) == 0 and remeasured == {}
    shown = capsys.readouterr().out
    assert "Noise: trial 1 may be as fast, and was not measured again." in shown
    assert "trials 0, 1 cannot be measured again: trial 1: " in shown and "removed, or on another machine" in shown


def test_packages_of_this_machine_are_measured_again(package_folder: Path, tmp_path: Path) -> None:
    metric = "mood-classify_p50_ms"
    study = make_study(make_space([QUALITY, metric], output=tmp_path), [{QUALITY: 1.0, metric: 1.0, SIZE: 1.0}] * 2)
    for trial in study.trials:
        shutil.copytree(package_folder, trial.package("target", study.space))
        (trial.folder / "workflow.json").write_text("{}", encoding="utf-8")
    remeasured: Remeasured = {}
    assert best(study, None, remeasured) == 0
    assert set(remeasured["target"]["ratios"]) == {"0", "1"}
    assert read_manifest(tmp_path / "recommended" / "target" / "package")["name"] == "tiny"
    recommendation = decide(study, "target", json.loads(json.dumps(remeasured)))
    assert recommendation.remeasured == remeasured["target"]


def test_what_was_not_measured_is_not_recommended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = make_space([QUALITY, SPEED], targets=["cpu", "cuda"], output=tmp_path)
    values = row(0.9, 1.0)
    trials = [make_trial(space, slot, None, metrics={"cpu": values}) for slot in range(3)]
    study = make_study(space, [trials[0]], not_measured={"cuda": "no NVIDIA driver"})
    for target in space.workflows:
        put_packages(study, target)
    assert best(study, None, {}) == 0
    assert [path.name for path in (tmp_path / "recommended").iterdir()] == ["cpu"]
    shown = capsys.readouterr()
    where = tmp_path / "trials" / "0000" / "cuda" / "package"
    assert "cuda: not measured: no NVIDIA driver" in shown.out and shown.err == ""
    assert "What was not measured cannot be recommended." in shown.out
    assert f"Built and checked: 1 package, {where}." in shown.out
    assert best(study, ["cuda"], {}) == 1
    assert capsys.readouterr().err == "error: cuda: nothing to recommend, it was not measured\n"


def test_unknown_targets_are_all_named(study: StudyRecord) -> None:
    with pytest.raises(ConfigError) as caught:
        best(study, ["targt", "target", "dml"], {})
    assert caught.value.problems == [
        "--target: there is no 'targt'; did you mean 'target'? Valid: target",
        "--target: there is no 'dml'; Valid: target",
    ]
    assert not (study.space.output / "recommended").exists()


def test_without_a_feasible_trial_nothing_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = make_space([QUALITY, SPEED], [(QUALITY, ">=", 0.93)], output=tmp_path)
    assert best(make_study(space, [row(0.92, 1.0)]), None, {}) == 1
    shown = capsys.readouterr()
    assert "Nearest is trial 0: spam-accuracy is 0.92, 0.01 below 0.93." in shown.out
    assert shown.err == "error: target: nothing to recommend\n" and not (tmp_path / "recommended").exists()


def no_package(study: StudyRecord, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(study.trials[1].package("target", study.space))


def full_disk(study: StudyRecord, patch: pytest.MonkeyPatch) -> None:
    def copy(source: str, destination: str, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr("search.best.shutil.copytree", partial(shutil.copytree, copy_function=copy))


def other_folder(study: StudyRecord, patch: pytest.MonkeyPatch) -> None:
    (study.space.output / "recommended" / "target" / "recommendation.json").unlink()


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (no_package, "is not here (removed, or on another machine); `olive run --config"),
        (full_disk, "recommended/target: [Errno 28] No space left on device"),
        (other_folder, "is no recommendation of a search, and is left as it is"),
    ],
)
def test_a_copy_that_fails_leaves_what_was_there(
    study: StudyRecord,
    break_it: Callable[[StudyRecord, pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert best(study, None, {}) == 0
    break_it(study, monkeypatch)
    before = {path: path.read_bytes() for path in (study.space.output / "recommended").rglob("*") if path.is_file()}
    assert best(study, None, {}) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: target: ") and reason in error
    assert {
        path: path.read_bytes() for path in (study.space.output / "recommended").rglob("*") if path.is_file()
    } == before
    assert [path.name for path in (study.space.output / "recommended").iterdir()] == ["target"]


def test_wide_tables_lose_no_digit_and_brackets_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"passes.{adapter}.training_args.a_long_name_of_an_option" for adapter in "abcdef"]
    space = make_space([QUALITY, "intent-f1_macro", SPEED, SIZE], output=tmp_path, parameters=names)
    rows = [{**row(0.9 + 0.01 * slot, 1.0 + slot), "intent-f1_macro": 0.7654} for slot in range(2)]
    trials = [
        make_trial(space, slot, metrics, parameters={name: ["[red]", slot] for name in names})
        for slot, metrics in enumerate(rows)
    ]
    study = make_study(space, trials)
    put_packages(study)
    assert best(study, None, {}) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown and shown.count('["[red]", 1]') == 6 and "f.training_args.a_long_name_of_an_option" in shown
    assert "quality" in shown and "% of best" in shown


def test_the_recommended_trial_is_shown_though_a_front_does_not_hold_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(make_space([QUALITY], output=tmp_path), [row(1.0, 3.0), row(0.995, 1.0)])
    put_packages(study)
    assert best(study, None, {}) == 0
    shown = capsys.readouterr().out
    assert "Pareto front: 1 of 2; the recommended trial is not on it" in shown
    assert "Speed (no objective asks for speed): trial 1 has the best tpot_p50_ms of them, 1 ms." in shown


def test_an_error_of_the_measurement_is_no_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any) -> dict[str, Any]:
        raise OlivalError("trials 0, 1 could not be measured again: the worker was killed by signal 9")

    monkeypatch.setattr("search.best.remeasure", fails)
    assert best(tied(tmp_path), None, {}) == 0
    assert "Noise: trials 0, 1 could not be measured again: the worker was killed" in capsys.readouterr().out
