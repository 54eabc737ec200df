"""Files that are written in one step, also by several at once and where the writing fails."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.atomic_file import replacing, write_text


def test_text_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    file.write_text("before", encoding="utf-8")
    seen = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        seen.append((file.read_text(encoding="utf-8"), Path(source).read_text(encoding="utf-8")))
        replace(source, target)

    monkeypatch.setattr("runtime.atomic_file.os.replace", look)
    write_text(file, "after ü")
    assert seen == [("before", "after ü")] and file.read_text(encoding="utf-8") == "after ü"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_writing_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_text(file, "before")
    with pytest.raises(OSError, match="full"), replacing(file) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise OSError("full")
    assert file.read_text(encoding="utf-8") == "before" and os.listdir(tmp_path) == ["x.json"]


def test_threads_of_one_process_may_write_at_once(tmp_path: Path) -> None:
    """A name made of the process's number alone would be theirs together: one takes the other's half-written file."""
    file = tmp_path / "x.json"
    with ThreadPoolExecutor(8) as pool:
        texts = [str(number % 10) * 10_000 for number in range(200)]
        assert len(list(pool.map(lambda text: write_text(file, text), texts))) == 200
    assert file.read_text(encoding="utf-8") in texts and os.listdir(tmp_path) == ["x.json"]
