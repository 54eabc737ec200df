"""A worker: takes the study's trials one after another until none is left, on as many machines as there are workers."""

from __future__ import annotations

import sys
import time

from search.kept_packages import drop_beaten_packages
from search.olive_run import olive_run
from search.progress import Progress
from search.providers import absent_targets
from search.slots import INTERRUPTED, claim, heartbeat, is_over, mend
from search.space import Space
from search.study import open_study
from search.study_record import read_record, read_trial
from search.trial import RunWorkflow, run_trial

_WAIT_SECONDS = 1.0  # between looks at other workers' trials, of which one may have to be taken over


def work(space: Space, run: RunWorkflow = olive_run, most: int | None = None) -> bool:
    """Runs trials until the study is complete (True), or until the space's time limit is over or `most` ran (False).

    Raises:
        OlivalError: the storage or the space is not as it should be.
        KeyboardInterrupt: after the running trial was stopped and given back.
    """
    study = open_study(space, absent_targets(space))
    limit = time.monotonic() + space.time_limit_seconds if space.time_limit_seconds is not None else None
    with Progress(space, study=read_record(space, study)) as progress:
        waiting, done = False, 0
        while True:
            mend(study, space)
            if is_over(study, space):
                return True
            if most is not None and done >= most:
                return False
            if limit is not None and time.monotonic() >= limit:
                progress.note(f"the time limit of {space.time_limit_seconds:g} s is over")
                return False
            taken = claim(study, space)
            if taken is None:
                if not waiting:
                    progress.note("no trial is left to take; waiting for those of other workers")
                    waiting = True
                time.sleep(_WAIT_SECONDS)
                continue
            waiting = False
            trial, values = taken
            progress.trial_started(trial.user_attrs["slot"], trial.user_attrs["attempt"], values)
            try:
                with heartbeat(study, trial) as given_up:
                    run_trial(space, study, trial, values, run, given_up, progress.stage)
            except KeyboardInterrupt:
                trial.set_user_attr(INTERRUPTED, True)
                _give_back(study, trial)
                raise
            done += 1
            record = read_record(space, study)
            drop_beaten_packages(record)
            progress.trial_finished(read_trial(space, study, trial.number), record)


def _give_back(study: object, trial: object) -> None:
    from optuna.trial import TrialState

    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)  # type: ignore[attr-defined]
    print("", file=sys.stderr)
