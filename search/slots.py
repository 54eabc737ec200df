"""Which trial a worker runs next, so that none is lost and none runs twice, whoever is killed and whenever.

A study has `trials` slots. A worker takes the first slot that is free: one that no trial was begun for, or whose last
attempt was lost with its worker. It begins a running Optuna trial for it in a transaction of its own, and ends it in
another: at any moment a slot is free, or has a living worker, or a dead one whom the next worker notices, or is done.
A further attempt has the lost one's values and whatever the sampler had noted with them. So samplers see the same
trials in the same order as in a study that nobody disturbed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from search.distributions import distribution
from search.new_values import new_values
from search.samplers import GRID, draw, grid_trials, make_sampler, slots_of
from search.space import Space
from search.study import GRACE_SECONDS, HEARTBEAT_SECONDS
from search.worker_identity import is_dead, this_worker

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from search.storage import Storage

SLOT, ATTEMPT, WORKER, OUTCOME, INTERRUPTED, REASON = "slot", "attempt", "worker", "outcome", "interrupted", "reason"
PARAMETERS = "parameters"  # JSON values, stored when all are drawn


def mend(study: optuna.Study) -> None:
    """Ends what lost workers left running, so that others can take it."""
    from optuna.trial import TrialState

    stale = set(storage_of(study)._get_stale_trial_ids(study._study_id))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER) or {}
        name = f"its worker {worker.get('name')}:{worker.get('pid')}"
        if is_dead(worker):
            _lose(study, trial, f"{name} died")
        elif trial._trial_id in stale:
            _lose(study, trial, f"{name} gave no sign of life for {GRACE_SECONDS} s")


def claim(study: optuna.Study, space: Space) -> optuna.Trial | None:
    """Begins the next free slot's trial; None when there is none. `values_of` draws its values."""
    import optuna

    slots, combinations = slots_of(space), grid_trials(space) if space.sampler["type"] == GRID else []

    def choose(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        tried = _by_slot(trials)
        for slot in range(slots):
            if slot not in tried:
                return _first(space, slot, 0, combinations)
            if _may_go_on(tried[slot], space):
                return _further(space, tried[slot], combinations)
        return None

    begun = storage_of(study).begin(study._study_id, choose)
    if begun is None:
        return None
    study._thread_local.cached_all_trials = None  # which Optuna keeps while a trial is drawn
    frozen = storage_of(study).get_trial(begun)
    study.sampler = make_sampler(space, frozen.user_attrs[SLOT])
    if not frozen.params and (values := new_values(study, space, frozen.user_attrs[SLOT])) is not None:
        storage_of(study).set_trial_system_attr(begun, "fixed_params", values)  # what Optuna takes in place of drawing
    return optuna.Trial(study, begun)


def values_of(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """The JSON value of every active parameter of a claimed trial; what it has no values for the sampler draws."""
    values = draw(trial, space.parameters)
    storage_of(trial.study).keep_drawn(trial._trial_id, {PARAMETERS: values})
    return values


def give_back(study: optuna.Study) -> bool:
    """Ends what this worker has running, for another worker or a later run; whether there was anything."""
    from optuna.trial import TrialState

    ours = this_worker()
    given = [
        _lose(study, trial, "stopped, to be run again", {INTERRUPTED: True})
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if trial.user_attrs.get(WORKER) == ours
    ]
    return any(given)


def by_slot(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """{slot: its attempts in order}."""
    return _by_slot(study.get_trials(deepcopy=False))


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended without its worker having decided anything."""
    from optuna.trial import TrialState

    return trial.state == TrialState.FAIL and trial.user_attrs.get(OUTCOME) is None


def is_over(study: optuna.Study, space: Space) -> bool:
    """Whether no slot is free or running."""
    slots = by_slot(study)
    return all(
        slot in slots and slots[slot][-1].state.is_finished() and not _may_go_on(slots[slot], space)
        for slot in range(slots_of(space))
    )


@contextmanager
def heartbeat(study: optuna.Study, trial: optuna.Trial) -> Iterator[threading.Event]:
    """Tells the storage every few seconds that the trial's worker lives.

    Yields an event that is set when another worker has given the trial up: this one was cut off for too long.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    stop, given_up, storage = threading.Event(), threading.Event(), storage_of(study)

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                if not storage.beat(trial._trial_id):
                    given_up.set()
                    return
            except (SQLAlchemyError, StorageInternalError):
                continue  # the worker's own calls wait for the database and tell of it; the next beat may get through

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield given_up
    finally:
        stop.set()
        thread.join()


def storage_of(study: optuna.Study) -> Storage:
    """The study's storage, which open_study has put there."""
    from search.storage import Storage

    assert isinstance(study._storage, Storage)
    return study._storage


def _by_slot(trials: Iterable[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    slots: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if SLOT in trial.user_attrs:
            slots.setdefault(trial.user_attrs[SLOT], []).append(trial)
    return dict(sorted(slots.items()))


def _may_go_on(tried: Sequence[FrozenTrial], space: Space) -> bool:
    """Whether a slot's last attempt was lost and it may have another; what a person stopped counts as none."""
    return is_lost(tried[-1]) and sum(1 for t in tried if not t.user_attrs.get(INTERRUPTED)) <= space.retries


def _first(space: Space, slot: int, attempt: int, combinations: Sequence[dict[str, Any]]) -> FrozenTrial:
    """Without values, which are drawn next; a grid's are known."""
    params = combinations[slot] if combinations else {}
    return _running(slot, attempt, params, {name: distribution(space.parameter(name)) for name in params}, {})


def _further(space: Space, tried: Sequence[FrozenTrial], combinations: Sequence[dict[str, Any]]) -> FrozenTrial:
    """With the values of the lost attempt, unless it was lost before all of them were drawn."""
    last = tried[-1]
    if PARAMETERS not in last.user_attrs:
        return _first(space, last.user_attrs[SLOT], len(tried), combinations)
    return _running(last.user_attrs[SLOT], len(tried), last.params, last.distributions, last.system_attrs)


def _running(
    slot: int, attempt: int, params: dict[str, Any], distributions: dict[str, Any], noted: dict[str, Any]
) -> FrozenTrial:
    import optuna
    from optuna.trial import TrialState

    return optuna.create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions=distributions,
        user_attrs={SLOT: slot, ATTEMPT: attempt, WORKER: this_worker()},
        system_attrs=noted,
    )


def _lose(study: optuna.Study, trial: FrozenTrial, reason: str, also: dict[str, Any] | None = None) -> bool:
    from optuna.trial import TrialState

    return bool(storage_of(study).end(trial._trial_id, TrialState.FAIL, user_attrs={REASON: reason, **(also or {})}))
