"""Lines of a running trial become curves, and pruners judge the right one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import optuna

from search.slots import ATTEMPT, SLOT
from search.space import Space
from search.watch import CURVES, GIVEN_UP, Watch
from tests.search.fake_runs import make_space, write_space


def write(file: Path, *lines: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def rows(start: int, values: list[int]) -> dict[str, Any]:
    pairs = [[start + i, value] for i, value in enumerate(values)]
    return {"stage": "evaluation", "adapter": "spam", "model": "package", "metric": "accuracy", "rows": pairs, "of": 64}


def watching(space: Space, study: optuna.Study, slot: int, shown: list[str] | None = None) -> tuple[Watch, Any]:
    trial = study.ask()
    trial.set_user_attr(SLOT, slot)
    trial.set_user_attr(ATTEMPT, 0)
    return Watch(space, study, trial, threading.Event(), (shown if shown is not None else []).append), trial


def test_what_is_shown_and_stored(tmp_path: Path) -> None:
    space, study, shown = make_space(tmp_path), optuna.create_study(direction="maximize"), list[str]()
    watch, _ = watching(space, study, 0, shown)
    file = tmp_path / "values.jsonl"
    watch.follow(file, "cpu")
    assert watch.poll() is None  # no file yet
    write(file, {"stage": "training", "adapter": "spam", "progress": [5, 60]})
    write(file, {"stage": "training", "adapter": "spam", "step": 1, "values": {"accuracy": 0.75, "loss": None}})
    write(file, {"stage": "training", "adapter": "spam", "progress": [30, 60]}, rows(0, [1, 1, 0, 1]))
    assert watch.poll() is None
    assert shown == [
        "train spam 5/60",
        "train spam 30/60, accuracy 0.750, loss nan",
        "evaluate spam 4/64, accuracy 0.750",
    ]
    stored = study.trials[0].user_attrs[CURVES]
    assert stored["spam training accuracy"] == {"1": 0.75} and stored["spam training loss"] == {"1": None}
    assert stored["spam evaluation accuracy"] == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0}
    assert study.trials[0].intermediate_values == {1: 0.75}


def test_an_evaluation_that_cannot_win_stops(tmp_path: Path) -> None:
    space = make_space(tmp_path, pruner={"type": "wilcoxon", "p_threshold": 0.1})
    study = optuna.create_study(direction="maximize")
    watch, trial = watching(space, study, 0)
    watch.follow(tmp_path / "best.jsonl", "cpu")
    write(tmp_path / "best.jsonl", rows(0, [1] * 32), rows(32, [1] * 30 + [0] * 2))
    assert watch.poll() is None
    watch.write()
    trial.set_user_attr("outcome", "complete")
    study.tell(trial, 0.97)
    for slot, values, stops in ((1, [1] * 29 + [0] * 3, False), (2, [1, 0] * 16, True)):
        watch, _ = watching(space, study, slot)
        file = tmp_path / f"{slot}.jsonl"
        watch.follow(file, "cpu")
        write(file, rows(0, values))
        reason = watch.poll()
        assert (reason is not None) == stops
        if stops:
            assert reason == "wilcoxon pruner: spam's accuracy is 0.500 on 32 rows, worse than the best trial's there"


def test_rows_of_another_target_are_not_compared(tmp_path: Path) -> None:
    write_space(tmp_path)
    files = {"cpu": str(tmp_path / "fake.json"), "cuda": str(tmp_path / "fake.json")}
    space = make_space(tmp_path, workflow=files, pruner={"type": "wilcoxon"})
    watch, _ = watching(space, optuna.create_study(directions=["maximize", "maximize"]), 0)
    for target, curves in (("cuda", 0), ("cpu", 1)):
        file = tmp_path / f"{target}.jsonl"
        write(file, rows(0, [1, 0]))
        watch.follow(file, target)
        assert watch.poll() is None and len(watch.curves) == curves


def test_a_trial_that_another_worker_has_taken_over(tmp_path: Path) -> None:
    study, given_up = optuna.create_study(), threading.Event()
    watch = Watch(make_space(tmp_path), study, study.ask(), given_up, print)
    watch.follow(tmp_path / "values.jsonl", "cpu")
    assert watch.poll() is None
    given_up.set()
    assert watch.poll() == GIVEN_UP
