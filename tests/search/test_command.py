"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.__main__ import main
from search.space_file import read_space
from search.worker import work
from tests.search.fake_runs import fake_run, write_space


def test_a_finished_study_is_shown_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_space(tmp_path)
    work(read_space(file), fake_run)
    assert main(["status", str(file)]) == 0
    assert "6 of 6 trials are over: 6 complete" in capsys.readouterr().out
    assert main(["report", str(file)]) == 0
    page = tmp_path / "results" / "report.html"
    assert str(page) in capsys.readouterr().out and "trials/0003" in page.read_text(encoding="utf-8")
    assert main(["best", str(file), "--target", "cpu"]) == 1  # a fake run leaves no package to copy
    assert "olive run --config" in capsys.readouterr().err


def test_a_grid_that_is_shorter_than_the_space_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {"passes.spam.rank": {"type": "categorical", "choices": [2, 4, 8]}}
    file = write_space(tmp_path, parameters=parameters, sampler={"type": "grid"}, trials=50)
    assert work(read_space(file), fake_run)
    assert "[3/3] trial" in capsys.readouterr().err
    assert main(["status", str(file)]) == 0
    assert "3 of 3 trials are over: 3 complete" in capsys.readouterr().out
    assert main(["report", str(file)]) == 0
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "3: 3 complete" in page and "50: 3 complete" not in page


@pytest.mark.parametrize("command", ["status", "report", "best"])
def test_a_study_that_has_not_begun(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_space(tmp_path)
    assert main([command, str(file)]) == 1 and not (tmp_path / "results").exists()
    assert "the study 'fake' has not begun; `python -m search run" in capsys.readouterr().err


def test_errors_go_to_stderr_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(write_space(tmp_path, trials=0, seed=-1))]) == 1
    assert capsys.readouterr().err.startswith("error: 2 problems:")
    file = write_space(tmp_path)
    work(read_space(file), fake_run, most=1)
    assert main(["best", str(file), "--target", "cdu"]) == 1
    assert "there is no 'cdu'; did you mean 'cpu'?" in capsys.readouterr().err


def test_a_storage_that_cannot_be_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.space_check.check_before_first_trial", lambda space: None)
    file = write_space(tmp_path, storage=f"sqlite:///{tmp_path}/fake.json/study.db")
    assert main(["run", str(file)]) == 1
    assert "fake.json: File exists" in capsys.readouterr().err
