"""The adapter store: what makes an adapter anew, and what leaves it alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from passes.training.adapter_pass import ATTRIBUTE
from passes.training.store import adapter_key, find_or_make, store_folder
from runtime.errors import OlivalError
from tests.passes.conftest import data_config, mood_data, write_mood_csv, write_story_jsonl


def write(folder: Path, checkpoints: Path | None = None) -> None:
    (folder / "weights").write_text("trained", encoding="utf-8")


def never(folder: Path, checkpoints: Path) -> None:
    raise AssertionError(f"{folder} was made again")


def test_the_key_covers_values_and_not_their_order() -> None:
    parts = {"base": "b", "settings": {"rank": 4, "alpha": 8.0}}
    key = adapter_key(parts)
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")
    assert adapter_key({"settings": {"alpha": 8.0, "rank": 4}, "base": "b"}) == key
    assert adapter_key({**parts, "settings": {"rank": 5, "alpha": 8.0}}) != key
    assert adapter_key({**parts, "validation": None}) != key


def test_the_store_lies_beside_the_workflow_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLIVE_CACHE_DIR", str(tmp_path / "cache" / "quickstart"))
    assert store_folder() == tmp_path / "cache" / "adapters"


def test_the_same_key_is_made_once(tmp_path: Path) -> None:
    folder, reused = find_or_make(tmp_path / "adapters", "spam", "a" * 64, write)
    assert not reused and folder == tmp_path / "adapters" / f"spam-{'a' * 16}"
    assert find_or_make(tmp_path / "adapters", "spam", "a" * 64, never) == (folder, True)
    other, reused = find_or_make(tmp_path / "adapters", "spam", "b" * 64, write)
    assert not reused and other != folder and folder.exists()


def test_what_a_killed_run_left_is_cleared_and_never_taken(tmp_path: Path) -> None:
    nobody = max(psutil.pids()) + 100_000  # no process has this number
    killed = tmp_path / f"spam-{'a' * 16}.unfinished-{nobody}"
    killed_too = tmp_path / f"intent-{'b' * 16}.unfinished-{nobody}"
    alive = tmp_path / f"spam-{'a' * 16}.unfinished-{os.getppid()}"
    for folder in (killed, killed_too, alive):
        folder.mkdir()
        (folder / "weights").write_text("half", encoding="utf-8")
    folder, reused = find_or_make(tmp_path, "spam", "a" * 64, write)
    assert not reused and (folder / "weights").read_text(encoding="utf-8") == "trained"
    assert sorted(os.listdir(tmp_path)) == sorted([folder.name, alive.name])


def test_a_failed_make_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, checkpoints: Path) -> None:
        write(folder)
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        find_or_make(tmp_path, "spam", "a" * 64, fail)
    assert os.listdir(tmp_path) == []


def kept(error: BaseException) -> Callable[[Path, Path], None]:
    """A training that ends with an error after its first checkpoint."""

    def make(folder: Path, checkpoints: Path) -> None:
        (checkpoints / "checkpoint-1").mkdir(parents=True)
        raise error

    return make


def seen(found: list[list[str]]) -> Callable[[Path, Path], None]:
    """A training that notes the checkpoints that it finds."""

    def make(folder: Path, checkpoints: Path) -> None:
        found.append(sorted(p.name for p in checkpoints.glob("checkpoint-*")))
        write(folder)

    return make


def test_checkpoints_are_for_the_same_training_alone(tmp_path: Path) -> None:
    """What was stopped goes on; another training of the same name clears what it left; other names are left alone."""
    found: list[list[str]] = []
    for name, key in (("spam", "a"), ("spam", "b"), ("intent", "a")):
        with pytest.raises(KeyboardInterrupt):
            find_or_make(tmp_path, name, key * 64, kept(KeyboardInterrupt()))
    find_or_make(tmp_path, "spam", "b" * 64, seen(found))
    find_or_make(tmp_path, "spam", "a" * 64, seen(found))
    find_or_make(tmp_path, "intent", "a" * 64, seen(found))
    assert found == [["checkpoint-1"], [], ["checkpoint-1"]]
    assert sorted(os.listdir(tmp_path)) == [f"intent-{'a' * 16}", f"spam-{'a' * 16}", f"spam-{'b' * 16}"]


def test_a_training_that_is_wrong_in_itself_begins_anew(tmp_path: Path) -> None:
    found: list[list[str]] = []
    with pytest.raises(OlivalError, match="diverged"):
        find_or_make(tmp_path, "spam", "a" * 64, kept(OlivalError("diverged")))
    find_or_make(tmp_path, "spam", "a" * 64, seen(found))
    assert found == [[]]


def test_checkpoints_of_a_living_process_are_left_alone(tmp_path: Path) -> None:
    found: list[list[str]] = []
    others = tmp_path / f"spam-{'a' * 16}.checkpoints"
    (others / "checkpoint-1").mkdir(parents=True)
    (others / f"owner-{os.getppid()}").touch()
    folder, _ = find_or_make(tmp_path, "spam", "a" * 64, seen(found))
    assert found == [[]] and sorted(os.listdir(tmp_path)) == [folder.name, others.name]
    assert (others / "checkpoint-1").is_dir()


class Chain:
    """Runs a chain of training passes in which training itself is replaced by a note of its name."""

    def __init__(self, folder: Path, base: Path, run_pass: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.run_pass, self.trained = base, run_pass, []  # type: tuple[Path, Any, list[str]]

        def train_adapter(work: Path, base: Path, settings: Any, *others: Any) -> None:
            self.trained.append(settings.adapter_name)
            write(work)

        monkeypatch.setattr("passes.training.train.train_adapter", train_adapter)
        self.mood_file, self.story_file = folder / "mood.csv", folder / "story.jsonl"
        write_mood_csv(self.mood_file)
        write_story_jsonl(self.story_file)

    def run(self, order: tuple[str, ...] = ("mood", "story"), base: Path | None = None, **mood: Any) -> dict[str, str]:
        """Returns the adapter folders; `mood` changes the options of the classification adapter."""
        from olive.model import HfModelHandler

        story_config = data_config("story", self.story_file, "generation")
        steps = {
            "mood": (
                "ClassificationHead",
                {"adapter_name": "mood", "train_data_config": data_config("mood", self.mood_file), **mood},
            ),
            "story": ("AdapterFineTune", {"adapter_name": "story", "train_data_config": story_config}),
        }
        self.trained.clear()
        handler: Any = HfModelHandler(str(base or self.base))
        for name in order:
            handler = self.run_pass(steps[name][0], handler, steps[name][1])
        folders: dict[str, str] = handler.model_attributes[ATTRIBUTE]
        return folders


@pytest.fixture
def chain(
    tmp_path: Path, tiny_llama_path: Path, run_pass: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Chain:
    return Chain(tmp_path, tiny_llama_path, run_pass, monkeypatch)


def test_a_second_run_trains_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    folders = chain.run()
    assert chain.trained == ["mood", "story"] and "unchanged" not in capsys.readouterr().err
    assert chain.run() == folders and chain.trained == []
    assert capsys.readouterr().err.splitlines() == [
        "train mood: unchanged, kept from an earlier run",
        "train story: unchanged, kept from an earlier run",
    ]


def test_the_order_of_the_chain_does_not_matter(chain: Chain) -> None:
    folders = chain.run()
    assert chain.run(("story", "mood")) == folders and chain.trained == []
    assert chain.run(("story",)) == {"story": folders["story"]} and chain.trained == []


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 5},
        {"alpha": 3.0},
        {"seed": 1},
        {"training_args": {"max_steps": 7}},
        {"quantization": "nf4"},
        {"version": 9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changing_one_adapters_settings_keeps_the_other(chain: Chain, change: dict[str, Any]) -> None:
    before = chain.run()
    after = chain.run(**change)
    assert chain.trained == ["mood"]
    assert after["story"] == before["story"] and after["mood"] != before["mood"]
    assert chain.run() == before and chain.trained == []  # the former one is still there


def test_changing_the_data_trains_again(chain: Chain) -> None:
    before = chain.run()
    rows = mood_data()
    write_mood_csv(chain.mood_file, [*rows.texts[:-1], "Something else."])
    after = chain.run()
    assert chain.trained == ["mood"] and after["mood"] != before["mood"] and after["story"] == before["story"]


def test_changing_the_datas_options_trains_again(chain: Chain, tmp_path: Path) -> None:
    chain.run()
    chain.run(train_data_config=data_config("mood", chain.mood_file, max_length=32))
    assert chain.trained == ["mood"]


def test_other_validation_data_train_again(chain: Chain) -> None:
    chain.run(rank=4)
    assert chain.trained == ["mood", "story"]
    chain.run(rank=4, validation_data_config=data_config("validation", chain.mood_file))
    assert chain.trained == ["mood"]


def test_the_name_of_a_data_file_does_not_matter(chain: Chain, tmp_path: Path) -> None:
    before = chain.run()
    chain.mood_file = chain.mood_file.rename(tmp_path / "renamed.csv")
    assert chain.run() == before and chain.trained == []


def test_another_base_trains_everything_again(chain: Chain, tiny_qwen2_path: Path) -> None:
    before = chain.run()
    after = chain.run(base=tiny_qwen2_path)
    assert chain.trained == ["mood", "story"] and not set(after.values()) & set(before.values())
