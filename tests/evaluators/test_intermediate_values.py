"""Lines for who watches a run: whole, in order, from many processes, and nothing where no one watches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluators.intermediate_values import VARIABLE, read_from, report, wanted
from runtime.errors import OlivalError

WRITER = """
from evaluators.intermediate_values import report
for number in range(200):
    report({"writer": %d, "number": number, "filling": "x" * 3000})
"""


def test_nothing_is_written_where_no_one_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (None, ""):
        monkeypatch.delenv(VARIABLE, raising=False) if value is None else monkeypatch.setenv(VARIABLE, value)
        report({"stage": "training"})
        assert not wanted() and not list(tmp_path.iterdir())


def test_lines_are_read_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    assert wanted() and read_from(file, 0) == ([], 0)
    report({"adapter": "olá"})
    report({"adapter": "b"})
    lines, offset = read_from(file, 0)
    assert lines == [{"adapter": "olá"}, {"adapter": "b"}] and offset == file.stat().st_size
    assert read_from(file, offset) == ([], offset)
    report({"adapter": "c"})
    assert read_from(file, offset) == ([{"adapter": "c"}], file.stat().st_size)


@pytest.mark.parametrize("cut", [1, 5, 17, 18])  # 18: all but the end of the line
def test_half_a_line_waits_for_the_next_call(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "values.jsonl"
    whole = json.dumps({"a": 1}).encode() + b"\n"
    line = '{"adapter": "olá"}\n'.encode()
    file.write_bytes(whole + line[:cut])
    assert read_from(file, 0) == ([{"a": 1}], len(whole))
    file.write_bytes(whole + line)
    assert read_from(file, len(whole)) == ([{"adapter": "olá"}], len(whole + line))


@pytest.mark.parametrize("broken", [b'{"a": 1', b"[1]", b"\xff\xfe", b"", b"null"])
def test_a_broken_line_costs_no_other(tmp_path: Path, broken: bytes) -> None:
    file = tmp_path / "values.jsonl"
    file.write_bytes(b'{"a": 1}\n' + broken + b'\n{"a": 2}\n')
    assert read_from(file, 0) == ([{"a": 1}, {"a": 2}], file.stat().st_size)


def test_a_value_that_json_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "values.jsonl"))
    with pytest.raises(ValueError):
        report({"values": {"loss": float("nan")}})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing" / "values.jsonl"))
    with pytest.raises(OlivalError, match=r"values\.jsonl \(OLIVAL_INTERMEDIATE_VALUES\): cannot be written: No such"):
        report({"stage": "training"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/dev/full")
    with pytest.raises(OlivalError, match=r"/dev/full .*: cannot be written: No space left"):
        report({"stage": "training"})


def test_lines_of_several_processes_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER % number]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines, offset = read_from(file, 0)
    assert offset == file.stat().st_size and len(lines) == 600
    for number in range(3):
        assert [line["number"] for line in lines if line["writer"] == number] == list(range(200))
