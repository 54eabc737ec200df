"""Trials that fail: each is recorded with a reason that a person understands, and the study goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from search.records import TrialRecord
from search.space_file import read_space
from search.study_record import read_study
from search.worker import MOST_FAILURES
from tests.search.failing_runs import FAILURES
from tests.search.fake_runs import write_space
from tests.search.fake_worker import Nursery, output

REASONS = {  # in the order of failing_runs.FAILURES
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


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> dict[str, TrialRecord]:
    """{name of the run: its trial} of a study of which one trial succeeds."""
    assert list(REASONS) == [getattr(run, "__name__", None) or _name(run) for run in FAILURES]
    space = write_space(tmp_path_factory.mktemp("failures"), trials=1 + len(FAILURES))
    worker = nursery.start(space, "each_failure")
    assert nursery.wait(worker) == 0, output(space, worker)
    first, *others = trials(space)
    assert first.state == "complete"
    return dict(zip(REASONS, others, strict=True))


@pytest.mark.parametrize("run", REASONS)
def test_reason(failed: dict[str, TrialRecord], run: str) -> None:
    assert failed[run].state == "failed"
    assert re.fullmatch(REASONS[run], str(failed[run].reason)), failed[run].reason


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


def _name(run: Any) -> str:
    """Of a partial of olive_run: that of what runs in the process."""
    return str(run.keywords["main"].__name__).lstrip("_")
