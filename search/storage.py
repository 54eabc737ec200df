"""Optuna's storage with the two changes of state that a search needs, each a single transaction, and with patience.

Optuna begins a trial in one transaction, writes who runs it in the next, and ends it in a third. A worker that is
killed in between leaves half of it, and on SQLite, which locks no rows, two workers can take the same trial. Here a
trial begins (chosen, numbered, with its worker and first heartbeat) and ends (everything measured, the outcome, the
state) in one transaction each, which locks the study or the trial before it looks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.storages._cached_storage import _CachedStorage

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, TrialState

_AGAIN_SECONDS = 2.0  # between tries of a database that does not answer
_REMIND_SECONDS = 60.0  # between messages about it


class Storage(_CachedStorage):
    """A database with studies of several workers. Raises SQLAlchemy's and Optuna's errors until `wait_and_tell`."""

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._tell: Callable[[str], object] | None = None
        self._drawn: dict[int, list[tuple[str, float, BaseDistribution]]] = {}

    def wait_and_tell(self, tell: Callable[[str], object] | None) -> None:
        """From now on a database that does not answer is waited for, and `tell` gets a line about it; None: no more."""
        self._tell = tell

    def begin(self, study_id: int, choose: Callable[[Sequence[FrozenTrial]], FrozenTrial | None]) -> int | None:
        """Adds the running trial that `choose` makes of all trials there are; its id, or None where it makes none.

        No other worker begins a trial of the study meanwhile.
        """
        if choose(self.get_all_trials(study_id, deepcopy=False)) is None:
            return None
        return self._begin(study_id, choose)

    def _begin(self, study_id: int, choose: Callable[[Sequence[FrozenTrial]], FrozenTrial | None]) -> int | None:
        import sqlalchemy
        from optuna.storages._rdb import models

        with sqlalchemy.orm.Session(self._backend.engine) as session, session.begin():
            study = models.StudyModel.__table__
            same = {"study_name": study.c.study_name}  # a write, because SQLite locks by writing only
            session.execute(sqlalchemy.update(study).where(study.c.study_id == study_id).values(same))
            template = choose(super().get_all_trials(study_id, deepcopy=False))  # does not wait while it holds the lock
            if template is None:
                return None
            trial = self._backend._get_prepared_new_trial(study_id, template, session)
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
            session.flush()
            return int(trial.trial_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Remembers a value until `keep_drawn`: a transaction for each would make SQLite's writers wait in line."""
        self._drawn.setdefault(trial_id, []).append((param_name, param_value_internal, distribution))

    def keep_drawn(self, trial_id: int, user_attrs: Mapping[str, Any]) -> None:
        """Stores a trial's values with some attributes. Raises UpdateFinishedTrialError when it was taken over."""
        import sqlalchemy
        from optuna.storages._rdb import models

        with sqlalchemy.orm.Session(self._backend.engine) as session, session.begin():
            for name, value, distribution in self._drawn.get(trial_id, []):
                # the study's space cannot change, so neither can a distribution
                self._backend._set_trial_param_without_commit(
                    session, trial_id, name, value, distribution, distribution
                )
            for key, kept in user_attrs.items():
                self._backend._set_trial_attr_without_commit(
                    session, models.TrialUserAttributeModel, trial_id, key, kept
                )
        self._drawn.pop(trial_id, None)

    def end(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Ends a running trial with all that is to be kept of it; False where it had been ended before."""
        import sqlalchemy
        from optuna.storages._rdb import models
        from optuna.trial import TrialState

        with sqlalchemy.orm.Session(self._backend.engine) as session, session.begin():
            trial = models.TrialModel.__table__
            locked = session.execute(
                sqlalchemy.update(trial)
                .where(trial.c.trial_id == trial_id, trial.c.state == TrialState.RUNNING)
                .values(datetime_complete=datetime.now())
            )
            if locked.rowcount == 0:  # type: ignore[attr-defined]
                return False
            keep = self._backend._set_trial_attr_without_commit
            for key, value in (user_attrs or {}).items():
                keep(session, models.TrialUserAttributeModel, trial_id, key, value)
            for key, value in (system_attrs or {}).items():
                keep(session, models.TrialSystemAttributeModel, trial_id, key, value)
            ended = models.TrialModel.find_or_raise_by_id(trial_id, session)
            for objective, value in enumerate(values or ()):
                self._backend._set_trial_value_without_commit(session, ended, objective, value)
            ended.state = state
        return True

    def beat(self, trial_id: int) -> bool:
        """Tells that the trial's worker lives; False when the trial has been ended, by whomever. Never waits."""
        self._backend.record_heartbeat(trial_id)
        return not self._backend.get_trial(trial_id).state.is_finished()


def cause(error: BaseException) -> str:
    """What the database said, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """Every method is a transaction, so it can be tried again until the database takes it."""

    @functools.wraps(method)
    def call(self: Storage, *args: Any, **kwargs: Any) -> Any:
        told: float | None = None
        while True:
            try:
                result = method(self, *args, **kwargs)
            except Exception as error:
                if self._tell is None or not _passes(error):
                    raise
                if told is None or time.monotonic() - told > _REMIND_SECONDS:
                    told = time.monotonic()
                    self._tell(f"the database does not answer ({cause(error)}); waiting for it")
                time.sleep(_AGAIN_SECONDS)
            else:
                if told is not None and self._tell is not None:
                    self._tell("the database answers again")
                return result

    return call


def _passes(error: Exception) -> bool:
    """Whether an error may go away by itself or by making room: no connection, a lock, a full disk."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, TimeoutError

    source = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(source, DBAPIError) and source.connection_invalidated:
        return True
    if isinstance(source, TimeoutError | PendingRollbackError):  # the latter: cut off within a transaction
        return True
    return isinstance(source, OperationalError | InterfaceError) and "no such table" not in str(source)


for _name in (
    "_begin", "end", "keep_drawn", "get_all_trials", "get_best_trial", "get_study_directions", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_system_attrs", "get_study_user_attrs", "get_trial",
    "get_trial_id_from_study_id_trial_number", "get_trial_system_attrs", "get_trial_user_attrs",
    "set_study_system_attr", "set_study_user_attr", "set_trial_intermediate_value",
    "set_trial_system_attr", "set_trial_user_attr", "_get_stale_trial_ids",
):  # fmt: skip
    setattr(Storage, _name, _patient(getattr(Storage, _name)))
