"""What the tests share: a package with adapters, a process that forks workers, and a real PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluators.conftest import adapter_folders, package_folder
from tests.search.fake_worker import Nursery

__all__ = ["adapter_folders", "package_folder"]  # "mood" (classification) and "story" (generation) on the tiny Llama


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL: the one that TEST_POSTGRES_URL names, else a private one of the system's package."""
    if url := os.environ.get("TEST_POSTGRES_URL"):
        yield url
        return
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    found = programs[-1] if programs else shutil.which("initdb")
    if found is None:
        pytest.skip("there is no PostgreSQL: neither TEST_POSTGRES_URL nor a package (apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        yield from _private_postgres(Path(found).parent, Path(folder))


def _private_postgres(programs: Path, folder: Path) -> Iterator[str]:
    user = None
    if os.getuid() == 0:  # as which PostgreSQL refuses to run
        user = _ordinary_user()
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, log = folder / "data", folder / "log.txt"

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(data), *arguments]
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"

    call("initdb", "--username=olival", "--auth=trust", "--encoding=UTF8", "--no-sync")
    options = f"-F -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    call("pg_ctl", "-w", "-l", str(log), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://olival@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-w", "-m", "immediate", "stop")


def _ordinary_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
