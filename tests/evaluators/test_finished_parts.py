"""Parts that a killed evaluation left are read, everything else is computed."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from evaluators.finished_parts import FinishedParts, files_identity


def never() -> Any:
    raise AssertionError("computed again")


def test_a_part_is_computed_once_and_comes_back_exactly(tmp_path: Path) -> None:
    key, value = {"adapter": "spam", "rows": 0}, [[math.pi, -1e-300], ["é", None]]
    first = FinishedParts(tmp_path / "parts")
    assert first.get(key, lambda: value) == value and first.read == 0
    second = FinishedParts(tmp_path / "parts")
    assert second.get(key, never) == value and second.read == 1


@pytest.mark.parametrize("other", [{"adapter": "ham", "rows": 0}, {"adapter": "spam", "rows": 256}, {}])
def test_another_key_is_another_part(tmp_path: Path, other: dict[str, Any]) -> None:
    parts = FinishedParts(tmp_path)
    parts.get({"adapter": "spam", "rows": 0}, lambda: 1)
    assert parts.get(other, lambda: 2) == 2


def test_a_part_that_fails_leaves_nothing(tmp_path: Path) -> None:
    parts = FinishedParts(tmp_path / "parts")
    with pytest.raises(AssertionError):
        parts.get({"rows": 0}, never)
    assert not (tmp_path / "parts").exists()


def test_cleared_parts_are_measured_anew(tmp_path: Path) -> None:
    parts = FinishedParts(tmp_path / "parts")
    parts.get({}, lambda: 1)
    parts.clear()
    assert not (tmp_path / "parts").exists() and parts.get({}, lambda: 2) == 2


def test_without_a_folder_nothing_is_kept() -> None:
    parts = FinishedParts(None)
    assert [parts.get({}, lambda value=value: value) for value in (1, 2)] == [1, 2]  # type: ignore[misc]
    parts.clear()


def test_a_changed_file_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"1")
    before = files_identity(file)
    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns + 1))
    assert files_identity(file) != before
