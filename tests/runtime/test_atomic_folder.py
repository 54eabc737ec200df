from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime.atomic_folder import OLD, recover_folder, replace_folder


def make(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "file.txt").write_text(text, encoding="utf-8")
    return folder


def read(folder: Path) -> str:
    return (folder / "file.txt").read_text(encoding="utf-8")


def test_a_new_folder_takes_its_place_and_an_older_one_goes(tmp_path: Path) -> None:
    target = tmp_path / "not" / "yet" / "there"
    replace_folder(make(tmp_path / "one", "one"), target)
    assert read(target) == "one" and not (tmp_path / "one").exists()
    (target / "only-in-the-first.txt").touch()
    replace_folder(make(tmp_path / "two", "two"), target)
    assert read(target) == "two" and os.listdir(target) == ["file.txt"]
    assert os.listdir(target.parent) == ["there"]


def test_when_the_new_folder_cannot_be_moved_the_older_one_stays(tmp_path: Path) -> None:
    target = make(tmp_path / "target", "old")
    with pytest.raises(OSError):
        replace_folder(tmp_path / "missing", target)
    assert read(target) == "old" and os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_kill_at_every_step_leaves_a_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Step 0: before the older folder is moved aside. 1: before the new one takes its place. 2: before the older one
    is removed. KeyboardInterrupt stands for the kill: replace_folder handles OSError only."""
    target, new = make(tmp_path / "target", "old"), make(tmp_path / "new", "new")
    calls = 0

    def killed(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("runtime.atomic_folder.os.replace", killed(os.replace))
        patch.setattr("runtime.atomic_folder.shutil.rmtree", killed(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            replace_folder(new, target)
    assert calls == step + 1
    recover_folder(target)
    assert read(target) == ("new" if step == 2 else "old")
    assert sorted(os.listdir(tmp_path)) == (["target"] if step == 2 else ["new", "target"])


def test_recovering_prefers_the_newer_folder_and_leaves_strangers_alone(tmp_path: Path) -> None:
    target = make(tmp_path / "out", "new")
    make(tmp_path / f"out{OLD}01234567", "old")
    make(tmp_path / f"other{OLD}01234567", "stranger")
    make(tmp_path / "out-of-order", "stranger")
    recover_folder(target)
    assert read(target) == "new"
    assert sorted(os.listdir(tmp_path)) == [f"other{OLD}01234567", "out", "out-of-order"]


def test_recovering_brings_the_older_folder_back(tmp_path: Path) -> None:
    make(tmp_path / f"out{OLD}01234567", "old")
    recover_folder(tmp_path / "out")
    assert read(tmp_path / "out") == "old" and os.listdir(tmp_path) == ["out"]


def test_recovering_where_nothing_happened_changes_nothing(tmp_path: Path) -> None:
    recover_folder(tmp_path / "nowhere" / "out")
    assert not (tmp_path / "nowhere").exists()
    target = make(tmp_path / "out", "text")
    recover_folder(target)
    assert read(target) == "text" and os.listdir(tmp_path) == ["out"]
