"""Workers that share a real PostgreSQL, as workers on several machines do."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import pytest

from runtime.errors import OlivalError
from search.records import TrialRecord
from search.space_file import read_space
from search.study_record import read_study
from tests.search.fake_runs import write_space
from tests.search.fake_worker import Nursery, output, wait_for
from tests.search.test_survival import ended


@pytest.fixture
def name() -> str:
    """Of a study that the database does not have yet."""
    return f"study-{uuid.uuid4().hex[:8]}"


def test_four_workers_share_forty_trials_and_one_of_them_dies(
    tmp_path: Path, nursery: Nursery, postgres: str, name: str
) -> None:
    space = write_space(tmp_path, storage=postgres, name=name, trials=40)
    workers = [nursery.start(space) for _ in range(4)]
    wait_for(lambda: len([t for t in _trials(space) if t.state == "complete"]) >= 8)
    os.kill(workers[0], signal.SIGKILL)
    assert [nursery.wait(worker) for worker in workers] == [-signal.SIGKILL, 0, 0, 0], output(space, workers[1])
    found = ended(space)  # each slot complete exactly once
    assert sorted(found) == list(range(40))
    assert sum(trial.attempt for trial in found.values()) <= 1  # of the worker that died
    everything = read_study(read_space(space)).trials
    assert len(everything) == 40 + sum(trial.attempt for trial in found.values())
    pids = {str(trial.worker).rpartition(":")[2] for trial in everything}
    assert len(pids) > 1 and pids <= {str(worker) for worker in workers}
    assert len({trial.parameters["passes.spam.training_args.learning_rate"] for trial in found.values()}) == 40
    assert nursery.run(space) == 0  # a fifth, who finds nothing to do
    assert len(read_study(read_space(space)).trials) == len(everything)


def test_what_a_slot_gets_depends_on_no_worker(tmp_path: Path, nursery: Nursery, postgres: str, name: str) -> None:
    """Four workers on a PostgreSQL and one on a SQLite run the same trials of a random search."""
    (tmp_path / "one").mkdir()
    (tmp_path / "four").mkdir()
    one = write_space(tmp_path / "one", trials=8)
    four = write_space(tmp_path / "four", trials=8, storage=postgres, name=name)
    workers = [nursery.start(four) for _ in range(4)]
    assert nursery.run(one) == 0
    assert [nursery.wait(worker) for worker in workers] == [0] * 4
    alone, together = ended(one), ended(four)
    assert {s: t.parameters for s, t in alone.items()} == {s: t.parameters for s, t in together.items()}


def test_two_studies_in_one_database(tmp_path: Path, nursery: Nursery, postgres: str, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    spaces = [
        write_space(tmp_path / which, storage=postgres, name=f"{name}-{which}", trials=trials)
        for which, trials in (("a", 3), ("b", 5))
    ]
    workers = [nursery.start(space) for space in spaces for _ in range(2)]
    assert [nursery.wait(worker) for worker in workers] == [0] * 4
    assert [sorted(ended(space)) for space in spaces] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def _trials(space: Path) -> tuple[TrialRecord, ...]:
    try:
        return read_study(read_space(space)).trials
    except OlivalError:  # it has not begun
        return ()
