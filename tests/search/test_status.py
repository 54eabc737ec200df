"""`status`: what is said of every kind of study, and that it can be read on narrow terminals and in pipes."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from datetime import timedelta

import pytest

from search.records import StudyRecord
from search.standing import best, best_so_far, failures, finished, latest, seconds_left, state_counts
from search.status import print_status
from tests.search.example_study import SECONDS, START, example_space, example_study, example_trial

NOW = START + timedelta(seconds=29 * SECONDS + 12.5)


def status(study: StudyRecord) -> str:
    stream = io.StringIO()
    print_status(study, NOW, stream)
    return stream.getvalue()


def test_a_running_study() -> None:
    text = status(example_study())
    assert "quickstart: 29 of 30 trials are over: 1 running, 21 complete, 6 pruned, 2 failed" in text
    assert "about 2" in text and "left for one worker" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["spam-accuracy", "0.9767", "10", "learning_rate", "0.001389,", "rank", "28,", "precision", "int8"] in rows
    assert "  trial 29 on box:4242 for 12 s, spam training accuracy 0." in text and "at step 90" in text
    assert "  2 (trials 6, 17): PackageError: models/tiny/model.onnx: no space left on device" in text
    assert "no sign of life" not in text  # it was tried again


def test_nothing_begun() -> None:
    text = status(StudyRecord(example_space(), (), ("target",), {}))
    assert "0 of 30 trials are over: 30 waiting" in text and "no trial is over yet" in text
    assert "no trial yet" in text and "Running" not in text and "Failed" not in text


def test_a_target_that_is_not_measured() -> None:
    space = example_space(targets=("cpu", "directml"))
    text = status(example_study(space, measured=("cpu",), not_measured={"directml": "no [DML] provider"}))
    assert "directml: not measured: no [DML] provider" in text
    assert "spam-accuracy, cpu " in text and "spam-accuracy, directml" in text


def test_a_pipe_gets_whole_lines() -> None:
    study = example_study()
    long = "x" * 300 + " [bold]\nthe end"
    trials = tuple(replace(t, reason=long if t.state == "failed" else t.reason) for t in study.trials)
    text = status(replace(study, trials=trials))
    assert "x" * 300 + " [bold] the end" in text and "\x1b" not in text
    assert len([line for line in text.splitlines() if "learning_rate" in line]) == 2


@pytest.mark.parametrize("columns", [30, 60, 120])
def test_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wider than the terminal, and no digit of a value is lost."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    print_status(example_study(), NOW, stream)
    text = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())  # colours
    assert max(map(len, text.splitlines())) <= columns
    assert "0.9767" in text and "0.432" in text


def test_counts_are_of_slots() -> None:
    """An attempt that was lost and made again counts once; one lost for good is over."""
    space = example_space(trials=4, retries=1)
    lost = example_trial(space, 0, "lost")
    again = example_trial(space, 0, "complete", attempt=1, number=7)
    waiting = example_trial(space, 1, "lost")
    gone = example_trial(space, 2, "lost", attempt=1)
    study = StudyRecord(space, (again, lost, waiting, gone), ("target",), {})
    assert latest(study) == [again, waiting, gone] and finished(study) == [again, gone]
    assert state_counts(study) == {"waiting": 1, "complete": 1, "lost": 2}
    assert failures(study) == {"the worker gave no sign of life for 60 s": [waiting, gone]}


def test_the_best() -> None:
    """Infeasible trials and values that are no numbers are none; of two with the same value the first is the best."""
    space = example_space(bound=None, trials=6)
    values = (float("nan"), 0.9, 0.95, 0.95, 0.99, 0.94)
    trials = [
        example_trial(space, slot, metrics={"target": {"spam-accuracy": value, "tpot_p50_ms": 1.0}})
        for slot, value in enumerate(values)
    ]
    trials[4] = replace(trials[4], violated={"target": ("size_on_disk <= 1",)})
    study = StudyRecord(space, tuple(reversed(trials)), ("target",), {})
    accuracy = space.objectives[0]
    assert best(study, accuracy) is trials[2]
    assert best_so_far(study.complete(), accuracy) == [trials[1], trials[2]]
    assert best(StudyRecord(space, (), ("target",), {}), accuracy) is None


def test_seconds_left() -> None:
    """Trials of 40 s: with two workers 10 s into theirs and four trials to come."""
    space = example_space(trials=8)
    done = [example_trial(space, i, started=START, finished=START + timedelta(seconds=40)) for i in range(2)]
    begun = [example_trial(space, i, "running", started=NOW - timedelta(seconds=10)) for i in range(2, 4)]
    study = StudyRecord(space, (*done, *begun), ("target",), {})
    assert seconds_left(study, NOW) == pytest.approx((30 + 30 + 4 * 40) / 2)
    assert seconds_left(StudyRecord(space, tuple(done), ("target",), {}), NOW) == pytest.approx(6 * 40)
    assert seconds_left(StudyRecord(space, (), ("target",), {}), NOW) is None
    over = tuple(example_trial(space, i) for i in range(8))
    assert seconds_left(StudyRecord(space, over, ("target",), {}), NOW) is None
