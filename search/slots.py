"""Which trial a worker runs next, so that none is lost and none runs twice, whoever is killed and whenever.

A study has `trials` slots. Each is an Optuna trial that waits; a worker takes one by a single atomic change of its
state. When a worker is lost its trial fails, and the slot gets a further attempt. Every worker mends the study before
it takes a trial, and all decide alike from what is stored: of two trials with the same slot and attempt (two workers
mended at once) the one with the lower number counts, and the other is never run.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from search.new_values import new_values
from search.samplers import GRID, draw, grid_trials, make_sampler
from search.space import Space
from search.study import HEARTBEAT_SECONDS

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

SLOT, ATTEMPT, WORKER, OUTCOME, VALUES, INTERRUPTED = "slot", "attempt", "worker", "outcome", "values", "interrupted"


def mend(study: optuna.Study, space: Space) -> None:
    """Ends what lost workers left running, and adds the slots and further attempts that are missing."""
    import optuna
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _worker_is_dead(trial.user_attrs.get(WORKER)):
            end(study, trial)
    optuna.storages.fail_stale_trials(study)
    attempts = by_slot(study)
    fixed = grid_trials(space) if space.sampler["type"] == GRID and len(attempts) < slots_of(space) else []
    for slot in range(slots_of(space)):
        tried = attempts.get(slot, [])
        if not tried:
            _add(study, slot, 0, fixed[slot] if fixed else None)
        elif is_lost(tried[-1]) and sum(1 for t in tried if not t.user_attrs.get(INTERRUPTED)) <= space.retries:
            complete = bool(tried[-1].user_attrs.get("parameters"))  # else the sampler had not finished
            keep = complete or space.sampler["type"] == GRID
            _add(study, slot, len(tried), _fixed(tried[-1]) if keep else None)


def slots_of(space: Space) -> int:
    """How many trials the study has: a grid ends when it has no further combination."""
    return min(space.trials, len(grid_trials(space))) if space.sampler["type"] == GRID else space.trials


def claim(study: optuna.Study, space: Space) -> tuple[optuna.Trial, dict[str, Any]] | None:
    """Takes the next waiting trial: (trial, JSON value of every active parameter); None when there is none."""
    import optuna
    from optuna.trial import TrialState

    storage = study._storage
    for tried in by_slot(study).values():
        waiting = tried[-1]
        if waiting.state != TrialState.WAITING or waiting.user_attrs[SLOT] >= slots_of(space):
            continue
        # both before the trial runs: whenever this worker dies, others can tell
        storage.record_heartbeat(waiting._trial_id)  # type: ignore[attr-defined]
        storage.set_trial_user_attr(waiting._trial_id, WORKER, _this_worker())
        try:
            if not storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
                continue
        except optuna.exceptions.UpdateFinishedTrialError:
            continue
        storage.set_trial_user_attr(
            waiting._trial_id, WORKER, _this_worker()
        )  # another worker may have written it last
        study.sampler = make_sampler(space, waiting.user_attrs[SLOT])
        study._thread_local.cached_all_trials = None
        if "fixed_params" not in waiting.system_attrs:
            values = new_values(study, space, waiting.user_attrs[SLOT])
            if values is not None:
                storage.set_trial_system_attr(waiting._trial_id, "fixed_params", values)
        trial = optuna.Trial(study, waiting._trial_id)
        values = draw(trial, space.parameters)
        trial.set_user_attr("parameters", values)
        return trial, values
    return None


def end(study: optuna.Study, trial: FrozenTrial) -> None:
    """Gives a running trial the state that its worker had decided on; without a decision it is lost."""
    import optuna
    from optuna.trial import TrialState

    outcome = trial.user_attrs.get(OUTCOME)
    try:
        if outcome == "complete":
            study.tell(trial.number, trial.user_attrs[VALUES], skip_if_finished=True)
        else:
            state = TrialState.PRUNED if outcome == "pruned" else TrialState.FAIL
            study.tell(trial.number, state=state, skip_if_finished=True)
    except optuna.exceptions.UpdateFinishedTrialError:
        return  # another worker was faster with the same


def by_slot(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """{slot: its attempts in order}, without the doubles that workers made who mended at once."""
    found: dict[tuple[int, int], FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if SLOT in trial.user_attrs:
            found.setdefault((trial.user_attrs[SLOT], trial.user_attrs[ATTEMPT]), trial)
    slots: dict[int, list[FrozenTrial]] = {}
    for (slot, _), trial in sorted(found.items(), key=lambda item: item[0]):
        slots.setdefault(slot, []).append(trial)
    return slots


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended without its worker having decided anything."""
    from optuna.trial import TrialState

    return trial.state == TrialState.FAIL and trial.user_attrs.get(OUTCOME) is None


def is_over(study: optuna.Study, space: Space) -> bool:
    """Whether no slot waits or runs."""
    slots = by_slot(study)
    return all(slot in slots and slots[slot][-1].state.is_finished() for slot in range(slots_of(space)))


@contextmanager
def heartbeat(study: optuna.Study, trial: optuna.Trial) -> Iterator[threading.Event]:
    """Tells the storage every few seconds that the trial's worker lives.

    Yields an event that is set when another worker has given the trial up: this one was cut off for too long.
    """
    stop, given_up = threading.Event(), threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
                if study._storage.get_trial(trial._trial_id).state.is_finished():
                    given_up.set()
                    return
            except Exception as error:  # the database may be back by the next beat; each has errors of its own
                print(f"heartbeat of trial {trial.number}: {error}", flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield given_up
    finally:
        stop.set()
        thread.join()


def _add(study: optuna.Study, slot: int, attempt: int, fixed: dict[str, Any] | None) -> None:
    import optuna
    from optuna.trial import TrialState

    attributes = {SLOT: slot, ATTEMPT: attempt}
    if fixed is not None:
        study.enqueue_trial(fixed, user_attrs=attributes)
    else:
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))


def _fixed(trial: FrozenTrial) -> dict[str, Any]:
    """The values that an attempt was to have."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params") or dict(trial.params)
    return fixed


def _this_worker() -> dict[str, Any]:
    return {"host": _host(), "name": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _host() -> str:
    """Of workers with the same one each can see whether the other's process lives."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"  # containers number their processes from 1
    except OSError:
        return platform.node()


def _worker_is_dead(worker: dict[str, Any] | None) -> bool:
    if worker is None or worker["host"] != _host():
        return False
    try:
        return abs(psutil.Process(worker["pid"]).create_time() - worker["started"]) > 1
    except psutil.NoSuchProcess:
        return True
