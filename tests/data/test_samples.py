"""Our own sample data: workflows read all of it, and what the quickstart reads is balanced and split cleanly."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.examples import ClassificationData, GenerationData, load_data
from data.splits import count_repeats, find_duplicates

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS: dict[str, dict[str, Any]] = {
    config["name"]: config
    for config in json.loads((REPOSITORY / "workflows" / "quickstart.json").read_text(encoding="utf-8"))["data_configs"]
}
TASKS = sorted({name.removesuffix("_train").removesuffix("_validation") for name in CONFIGS})


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ClassificationData | GenerationData:
    monkeypatch.chdir(REPOSITORY)  # the workflow's paths start there
    return load_data(CONFIGS[name])


def texts_of(data: ClassificationData | GenerationData) -> list[str]:
    return data.texts if isinstance(data, ClassificationData) else data.prompts


def test_every_sample_file_is_read_by_a_workflow() -> None:
    workflows = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "workflows").rglob("*.json")]
    configs = [config for text in workflows for config in json.loads(text)["data_configs"]]
    used = {Path(config["load_dataset_config"].get("data_files", "")).name for config in configs}
    files = {file.name for file in (REPOSITORY / "data" / "samples").iterdir() if file.suffix in (".csv", ".jsonl")}
    assert files <= used and len(files) >= 8
    assert TASKS == ["blurbs", "intent", "spam"]


@pytest.mark.parametrize("task", TASKS)
def test_sizes_and_splits(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = (load(f"{task}_{part}", monkeypatch) for part in ("train", "validation"))
    assert 300 <= len(train) + len(held_out) <= 600
    assert 0.1 <= len(held_out) / (len(train) + len(held_out)) <= 0.2
    assert find_duplicates(texts_of(train), texts_of(held_out)) == []
    assert count_repeats(texts_of(train)) == count_repeats(texts_of(held_out)) == 0
    assert all(text.strip() for data in (train, held_out) for text in texts_of(data))


@pytest.mark.parametrize(("task", "labels"), [("spam", 2), ("intent", 5)])
def test_labels(task: str, labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class stands in both parts, and no class is twice as frequent as another."""
    names = []
    for part in ("train", "validation"):
        data = load(f"{task}_{part}", monkeypatch)
        assert isinstance(data, ClassificationData)
        counts = Counter(data.labels)
        assert set(counts) == set(data.label_names) and len(counts) == labels
        assert max(counts.values()) <= 2 * min(counts.values()), counts
        names.append(data.label_names)
    assert names[0] == names[1]


def test_blurbs_have_different_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [load(f"blurbs_{part}", monkeypatch) for part in ("train", "validation")]
    responses = [data.responses for data in parts if isinstance(data, GenerationData)]
    assert len(responses) == 2
    assert find_duplicates(*responses) == [] and count_repeats(responses[0]) == 0
    assert all(": " in response and "\nBest for: " in response for part in responses for response in part)
