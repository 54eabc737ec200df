"""Worker processes for tests, forked from one process that has imported everything: each starts in milliseconds.

    with Nursery() as nursery:
        worker = nursery.start(space_file)
        os.kill(worker, signal.SIGKILL)
        assert nursery.wait(worker) == -signal.SIGKILL

A worker is that of `python -m search run` but for what it runs: a function of the modules below by its name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


class Nursery:
    """The process that forks the workers. Those that are left when it ends are killed."""

    def __enter__(self) -> Nursery:
        command = [sys.executable, "-m", "tests.search.fake_worker"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._alive: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self, space: Path, run: str = "fake_run", kill_at: int | None = None, number: int = signal.SIGKILL,
        command_line: bool = False,
    ) -> int:  # fmt: skip
        """The pid of a new worker, whose output goes to worker-PID.txt beside the space file.

        Args:
            run: name of a function in fake_runs.py or failing_runs.py.
            kill_at: of the transactions that write the one before whose end the worker sends itself `number`, from 1.
            command_line: `python -m search run` with all that it prints and does, instead of the worker alone.
        """
        request = {"space": str(space), "run": run, "kill_at": kill_at, "number": int(number),
                   "command_line": command_line}  # fmt: skip
        pid = int(self._ask(request)["pid"])
        self._alive.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """Its exit code; negative: killed by that signal."""
        code = int(self._ask({"wait": pid})["code"])
        self._alive.discard(pid)
        return code

    def run(self, space: Path, run: str = "fake_run", **options: Any) -> int:
        """The exit code of a worker that nobody else disturbs."""
        return self.wait(self.start(space, run, **options))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def output(space: Path, pid: int) -> str:
    """What a worker has printed."""
    file = space.parent / f"worker-{pid}.txt"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The condition's first true value. Raises TimeoutError where there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError(f"{condition} was not true within {seconds} s")


def _serve() -> None:
    """A line of JSON for each request, a line of JSON for each answer."""
    import alembic.command
    import optuna.storages._rdb.storage
    import psycopg
    import sqlalchemy.dialects.postgresql
    import sqlalchemy.dialects.sqlite

    import search.__main__
    import search.progress
    import search.slots
    import search.space_file
    import search.status
    import search.storage
    import search.worker  # noqa: F401

    assert alembic and optuna and psycopg and sqlalchemy
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            answer = {"pid": os.fork()}
            if answer["pid"] == 0:
                _be_worker(**request)
        print(json.dumps(answer), flush=True)


def _be_worker(space: str, run: str, kill_at: int | None, number: int, command_line: bool) -> None:
    """In the forked process, which ends here."""
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background had it ignored
    try:
        log = os.open(Path(space).parent / f"worker-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _trust_the_system()
        _be_full_while_there_is(Path(space).parent / "full")
        _at_transaction(1, lambda: print("reached the database", flush=True))
        if kill_at is not None:
            _at_transaction(kill_at, lambda: os.kill(os.getpid(), number))
        code = _work(Path(space), run, command_line)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(space: Path, run: str, command_line: bool) -> int:
    from search import space_check, worker
    from search.__main__ import main
    from search.space_file import read_space
    from tests.search import failing_runs, fake_runs

    chosen = getattr(fake_runs, run, None) or getattr(failing_runs, run)
    if command_line:
        worker.work.__defaults__ = (chosen, None)
        space_check.check_before_first_trial = lambda space: None  # a fake run's workflow is none of Olive's
        return main(["run", str(space)])
    return 0 if worker.work(read_space(space), chosen) else 2


def _at_transaction(wanted: int, act: Callable[[], object]) -> None:
    """Before the end of one that has written something."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    count, written = 0, False

    def about_to_execute(_: object, __: object, statement: str, *___: object) -> None:
        nonlocal written
        written = written or not statement.startswith(("SELECT", "PRAGMA"))

    def about_to_commit(_: object) -> None:
        nonlocal count, written
        count += written
        if written and count == wanted:
            act()
        written = False

    event.listen(Engine, "before_cursor_execute", about_to_execute)
    event.listen(Engine, "commit", about_to_commit)


def _be_full_while_there_is(file: Path) -> None:
    """SQLite finds no room for more while the file exists."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def taken_from_the_pool(connection: Any, *_: object) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            pages = 1 if file.exists() else 2**30  # at least those that it has
            connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Engine, "checkout", taken_from_the_pool)


def _trust_the_system() -> None:
    """SQLite does not wait for the disk, which loses nothing when a process is killed."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def connected(connection: Any, _: object) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)


if __name__ == "__main__":
    _serve()
