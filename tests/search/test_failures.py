"""Trials that fail: each is recorded with a reason that a person understands, and the study goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search.records import TrialRecord
from search.space_file import read_space
from search.study_record import read_study
from search.worker import MOST_FAILURES
from tests.search.fake_runs import write_space
from tests.search.fake_worker import Nursery, output

REASONS = {
    "says_error": r"2 problems: passes\.spam\.rank: 0 is no rank passes\.spam\.alpha: is missing",
    "raises_value_error": r"ValueError: a row has no text",
    "ends_silently": r"exit code 3, and the log says nothing",
    "aborts": r"out of memory; its peak was .* GB, the machine has .* GB: terminate called .*std::bad_alloc'.*",
    "segfaults": r"crashed \(SIGSEGV\); its peak was .*",
    "is_killed": r"killed \(SIGKILL\), which is what the system does when memory runs out; its peak was .* GB, the .*",
    "takes_all_memory": r"out of memory; its peak was .*: MemoryError",
    "torch_takes_all_memory": r"out of memory; its peak was .*can't allocate memory",
    "fills_the_disk": r"the disk is full \(No space left on device; .* GB are free now at .*\): OSError: .*",
    "writes_too_much": r"OSError: \[Errno 27\] File too large.*",
    "fills_the_disk_and_exits_0": r"the disk is full \(No space left on device; .*",
    "measures_nothing": r"the run wrote no evaluation\.json: its workflow needs an evaluator",
    "measures_half": r".*evaluation\.json is no JSON: .*",
    "cannot_start": r"the disk is full \(No space left on device: trials/0000/log\.txt\)",
}


def trials(space: Path) -> tuple[TrialRecord, ...]:
    return read_study(read_space(space)).trials


@pytest.mark.parametrize("run", REASONS)
def test_reason(tmp_path: Path, nursery: Nursery, run: str) -> None:
    space = write_space(tmp_path, trials=1)
    worker = nursery.start(space, run)
    assert nursery.wait(worker) == 0, output(space, worker)
    (trial,) = trials(space)
    assert trial.state == "failed"
    assert re.fullmatch(REASONS[run], str(trial.reason)), trial.reason


def test_a_study_with_failing_trials_goes_on_to_its_end(tmp_path: Path, nursery: Nursery) -> None:
    space = write_space(tmp_path, trials=2 * MOST_FAILURES + 2)
    assert nursery.run(space, "every_other") == 0
    assert [t.state for t in trials(space)] == ["complete", "failed"] * (MOST_FAILURES + 1)
    assert {t.reason for t in trials(space)} == {None, "an odd trial"}


def test_a_study_in_which_every_trial_fails_stops(tmp_path: Path, nursery: Nursery) -> None:
    space = write_space(tmp_path, trials=MOST_FAILURES + 5)
    worker = nursery.start(space, "ends_silently", command_line=True)
    assert nursery.wait(worker) == 1
    said = output(space, worker)
    assert f"error: none of the study's {MOST_FAILURES} trials succeeded" in said and "exit code 3" in said
    assert "python -m search run" in said and "Traceback" not in said
    assert [t.state for t in trials(space)] == ["failed"] * MOST_FAILURES
    # one more look, now that it is repaired
    assert nursery.run(space, "fake_run") == 0
    assert [t.state for t in trials(space)] == ["failed"] * MOST_FAILURES + ["complete"] * 5


def test_a_full_disk_stops_the_worker_before_it_uses_the_trials_up(tmp_path: Path, nursery: Nursery) -> None:
    space = write_space(tmp_path, trials=MOST_FAILURES + 5)
    worker = nursery.start(space, "full_after_two", command_line=True)
    assert nursery.wait(worker) == 1
    assert f"so it was in the last {MOST_FAILURES} trials, and this worker stops" in output(space, worker)
    assert [t.state for t in trials(space)] == ["complete"] * 2 + ["failed"] * MOST_FAILURES
