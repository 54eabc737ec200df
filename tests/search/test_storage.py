"""Trials begin and end in one transaction each; a database that does not answer is waited for."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from optuna.trial import TrialState

from runtime.errors import OlivalError
from search.slots import OUTCOME, REASON, claim, give_back, heartbeat, is_over, mend, storage_of, values_of
from search.space_file import read_space
from search.study import open_study
from search.study_record import read_record, read_study
from search.worker_identity import is_dead, this_worker
from tests.search.fake_runs import make_space, write_space
from tests.search.fake_worker import Nursery, output, wait_for
from tests.search.test_survival import ended


def test_workers_that_claim_at_once_get_different_slots(tmp_path: Path) -> None:
    """Eight threads, each with its own connection, at one SQLite."""
    space = make_space(tmp_path, trials=24)
    open_study(space, {})
    taken: list[int] = []
    together = threading.Barrier(8)

    def take() -> None:
        study = open_study(space, {})
        together.wait(60)
        while (trial := claim(study, space)) is not None:
            taken.append(trial.user_attrs["slot"])

    with ThreadPoolExecutor(8) as threads:
        for worker in [threads.submit(take) for _ in range(8)]:
            worker.result()
    assert sorted(taken) == list(range(24))
    assert len(read_study(space).trials) == 24


def test_a_trial_ends_once(tmp_path: Path) -> None:
    space = make_space(tmp_path, trials=1)
    study = open_study(space, {})
    trial = claim(study, space)
    assert trial is not None
    storage = storage_of(study)
    assert storage.end(trial._trial_id, TrialState.COMPLETE, [0.5], {OUTCOME: "complete"}, {"constraints:a": 1.0})
    assert not storage.end(trial._trial_id, TrialState.FAIL, user_attrs={REASON: "its worker died"})
    (kept,) = study.get_trials()
    assert (kept.state, kept.values, kept.constraints) == (TrialState.COMPLETE, [0.5], {"a": 1.0})
    assert REASON not in kept.user_attrs
    assert is_over(study, space) and claim(study, space) is None


@pytest.mark.parametrize("drawn", [False, True])
def test_a_combination_of_a_grid_is_tried_again(tmp_path: Path, drawn: bool) -> None:
    """Also when its worker was lost before it had looked at the values."""
    choices = {"type": "categorical", "choices": ["int4", "int8", "fp32"]}
    parameters = {"passes.export.precision": choices, "passes.spam.rank": {"type": "int", "low": 1, "high": 9}}
    space = make_space(tmp_path, trials=27, parameters=parameters, sampler={"type": "grid"})
    study, expected = open_study(space, {}), []
    for _ in range(5):
        trial = claim(study, space)
        assert trial is not None
        expected.append(dict(trial.params))
        if drawn:
            values_of(trial, space)
    give_back(study)
    again = [claim(study, space) for _ in range(5)]
    assert [trial.params for trial in again if trial is not None] == expected
    assert [values_of(trial, space) for trial in again if trial is not None] == expected
    assert [trial.user_attrs["attempt"] for trial in again if trial is not None] == [1] * 5


def test_a_worker_that_was_given_up_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.slots.HEARTBEAT_SECONDS", 0.01)
    space = make_space(tmp_path, trials=1)
    study = open_study(space, {})
    trial = claim(study, space)
    assert trial is not None
    with heartbeat(study, trial) as given_up:
        other = open_study(space, {})
        assert not given_up.wait(0.1)
        assert give_back(other)
        assert given_up.wait(30)


def test_another_machines_worker_is_lost_when_its_heartbeats_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space(tmp_path, trials=1, retries=1)
    study = open_study(space, {})
    for attempt in (0, 1):
        monkeypatch.setattr("search.slots.this_worker", lambda: {**this_worker(), "host": "another", "pid": 1})
        trial = claim(study, space)
        assert trial is not None and trial.user_attrs["attempt"] == attempt
        drawn = values_of(trial, space)
        mend(study)
        assert claim(study, space) is None, "it has a heartbeat"
        with sqlite3.connect(space.output / "study.db") as database:
            database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-70 seconds')")
        mend(study)
        last = read_record(space, study).trials[-1]
        assert (last.state, last.parameters) == ("lost", drawn)
        assert str(last.reason).endswith(":1 gave no sign of life for 60 s")
    assert claim(study, space) is None and is_over(study, space), "one retry is allowed"
    first, second = read_record(space, study).trials
    assert first.parameters == second.parameters


IDENTITIES: dict[str, tuple[Callable[[dict], dict], bool]] = {
    "this one": (lambda worker: worker, False),
    "its number is another process's now": (lambda worker: {**worker, "started": worker["started"] - 100}, True),
    "no such process": (lambda worker: {**worker, "pid": 2**22 + 1}, True),
    "of another machine": (lambda worker: {**worker, "host": "another", "pid": 2**22 + 1}, False),
    "unknown": (lambda worker: {}, False),
}


@pytest.mark.parametrize("which", IDENTITIES)
def test_is_dead(which: str) -> None:
    change, dead = IDENTITIES[which]
    assert is_dead(change(this_worker())) == dead


def test_a_killed_worker_whom_nobody_has_buried_is_dead() -> None:
    """Its entry stays among the processes where a container's first process buries none."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    wait_for(lambda: " Z " in Path(f"/proc/{child}/stat").read_text(encoding="utf-8"))
    assert is_dead({**this_worker(), "pid": child})
    os.waitpid(child, 0)


def test_a_locked_database_is_waited_for(tmp_path: Path, nursery: Nursery) -> None:
    database = tmp_path / "study.db"
    space = write_space(tmp_path, trials=6, storage=f"sqlite:///{database}?timeout=0.2")
    worker = nursery.start(space, "slow")
    wait_for(lambda: len(complete(space)) >= 1)
    with sqlite3.connect(database, isolation_level=None, timeout=60) as other:
        other.execute("BEGIN EXCLUSIVE")
        wait_for(lambda: "the database does not answer (database is locked)" in output(space, worker))
        other.execute("ROLLBACK")
    assert nursery.wait(worker) == 0, output(space, worker)
    assert "the database answers again" in output(space, worker)
    assert sorted(ended(space)) == list(range(6))


def test_a_full_database_is_waited_for(tmp_path: Path, nursery: Nursery) -> None:
    space = write_space(tmp_path, trials=6)
    worker = nursery.start(space, "slow")
    wait_for(lambda: len(complete(space)) >= 1)
    (tmp_path / "full").touch()
    wait_for(lambda: "the database does not answer (database or disk is full)" in output(space, worker))
    (tmp_path / "full").unlink()
    assert nursery.wait(worker) == 0, output(space, worker)
    assert sorted(ended(space)) == list(range(6))


def test_cut_connections_are_made_again(tmp_path: Path, nursery: Nursery, postgres: str) -> None:
    space = write_space(tmp_path, trials=12, storage=postgres, name=f"study-{uuid.uuid4().hex[:8]}")
    workers = [nursery.start(space, "slow") for _ in range(2)]
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    for least in (2, 4, 6):
        wait_for(lambda least=least: len(complete(space)) >= least)  # type: ignore[misc]
        with engine.connect() as connection:
            connection.execute(
                sqlalchemy.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
    engine.dispose()
    assert [nursery.wait(worker) for worker in workers] == [0, 0], [output(space, w) for w in workers]
    assert sorted(ended(space)) == list(range(12))


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    space = make_space(tmp_path, storage="postgresql+psycopg://olival:secret@127.0.0.1:1/none")
    with pytest.raises(OlivalError, match=r"olival:\*\*\*@127\.0\.0\.1:1/none cannot be opened: .*refused"):
        open_study(space, {})


def complete(space: Path) -> list[int]:
    try:
        return [t.slot for t in read_study(read_space(space)).trials if t.state == "complete"]
    except OlivalError:  # not begun, or not to be reached
        return []
