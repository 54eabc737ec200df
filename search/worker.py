"""A worker: takes the study's trials one after another until none is left, on as many machines as there are workers."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runtime.errors import OlivalError
from search.failure import is_full_disk
from search.kept_packages import drop_beaten_packages
from search.olive_run import olive_run
from search.progress import Progress
from search.providers import absent_targets
from search.records import StudyRecord, TrialRecord
from search.slots import ATTEMPT, SLOT, claim, give_back, heartbeat, is_over, mend, storage_of, values_of
from search.space import Space
from search.study import GRACE_SECONDS, open_study, study_targets
from search.study_record import read_record
from search.trial import RunWorkflow, run_trial

if TYPE_CHECKING:
    import optuna

_WAIT_SECONDS = 1.0  # between looks at other workers' trials, of which one may have to be taken over
MOST_FAILURES = 5  # trials that may fail before any has succeeded, and that may find the disk full one after another


def work(space: Space, run: RunWorkflow = olive_run, most: int | None = None) -> bool:
    """Runs trials until the study is complete (True), or until the space's time limit is over or `most` ran (False).

    A database that does not answer is waited for. SIGTERM, which container systems send, is taken as Ctrl-C.

    Raises:
        OlivalError: the storage or the space is not as it should be, or no trial succeeds: none of the study's first
            MOST_FAILURES, or the disk was full in so many one after another.
        KeyboardInterrupt: after the running trial was stopped and given back.
    """
    study = open_study(space, absent_targets(space))
    storage = storage_of(study)
    with Progress(space, study=read_record(space, study)) as progress, _term_as_ctrl_c():
        storage.wait_and_tell(progress.note)
        for target, why in study_targets(study)[1].items():
            progress.note(f"{target} is built and checked, not measured: {why}")
        try:
            return _work(space, study, run, most, progress)
        except KeyboardInterrupt:
            with _deaf():
                storage.wait_and_tell(None)
                _give_back(study)
            raise


def _work(space: Space, study: optuna.Study, run: RunWorkflow, most: int | None, progress: Progress) -> bool:
    limit = time.monotonic() + space.time_limit_seconds if space.time_limit_seconds is not None else None
    waiting = False
    ended: list[TrialRecord] = []
    while True:
        mend(study)
        if is_over(study, space):
            return True
        if most is not None and len(ended) >= most:
            return False
        if limit is not None and time.monotonic() >= limit:
            progress.note(f"the time limit of {space.time_limit_seconds:g} s is over")
            return False
        trial = claim(study, space)
        if trial is None:
            if not waiting:
                progress.note("no trial is left to take; waiting for those of other workers")
            waiting = True
            time.sleep(_WAIT_SECONDS)
            continue
        waiting = False
        _run_claimed(space, study, trial, run, progress)
        record = read_record(space, study)
        own = next(t for t in record.trials if t.number == trial.number)
        drop_beaten_packages(record)
        progress.trial_finished(own, record)
        ended.append(own)
        if (reason := _nothing_succeeds(space, record, ended)) and not is_over(study, space):
            raise OlivalError(reason)


def _run_claimed(space: Space, study: optuna.Study, trial: optuna.Trial, run: RunWorkflow, progress: Progress) -> None:
    """Until the trial has ended, or another worker has taken it over."""
    from optuna.exceptions import UpdateFinishedTrialError

    try:
        with heartbeat(study, trial) as given_up:
            values = values_of(trial, space)
            progress.trial_started(trial.user_attrs[SLOT], trial.user_attrs[ATTEMPT], values)
            run_trial(space, study, trial, values, run, given_up, progress.stage)
    except UpdateFinishedTrialError:
        given_up.set()
    if given_up.is_set():
        progress.note(
            f"trial {trial.user_attrs[SLOT]} was taken over by another worker: "
            f"this one did not reach the database for {GRACE_SECONDS} s"
        )


def _nothing_succeeds(space: Space, study: StudyRecord, ended: list[TrialRecord]) -> str | None:
    """Why going on would only use the study's trials up; None where it would not."""
    failed = [trial for trial in study.trials if trial.state == "failed"]
    if len(failed) >= MOST_FAILURES and not any(trial.state in ("complete", "pruned") for trial in study.trials):
        return (
            f"none of the study's {len(failed)} trials succeeded, so this worker stops; the last one: "
            f"{failed[-1].reason} ({failed[-1].folder}). After a repair of what is outside the workflow, "
            f"`python -m search run {space.file}` goes on; a changed workflow needs another name or output_dir"
        )
    last = ended[-MOST_FAILURES:]
    if len(last) == MOST_FAILURES and all(trial.state == "failed" and is_full_disk(trial.reason) for trial in last):
        return (
            f"{last[-1].reason}; so it was in the last {MOST_FAILURES} trials, and this worker stops. "
            f"With more room `python -m search run {space.file}` goes on"
        )
    return None


def _give_back(study: optuna.Study) -> None:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        give_back(study)
    except (SQLAlchemyError, StorageInternalError):
        print(f"\nthe database does not answer; in {GRACE_SECONDS} s other workers see that this one is gone",
              file=sys.stderr)  # fmt: skip


@contextmanager
def _term_as_ctrl_c() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with _handlers({signal.SIGTERM: interrupt}):
        yield


@contextmanager
def _deaf() -> Iterator[None]:
    """What is being stopped is not stopped again."""
    with _handlers({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
        yield


@contextmanager
def _handlers(wanted: dict[signal.Signals, Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # there Python allows none
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
