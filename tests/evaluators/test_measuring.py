"""Rows through models in parts: the numbers of one go, also after a kill; logits that are no numbers stop it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.examples import ClassificationData, GenerationData
from evaluators import measuring as module
from evaluators.finished_parts import FinishedParts
from evaluators.intermediate_values import VARIABLE, read_from
from evaluators.measuring import Measuring
from evaluators.package_model import PackageModel
from evaluators.token_scores import NotFiniteError
from evaluators.torch_model import TorchModel
from tests.conftest import SENTENCES

LABELS = ["bad", "good", "none"]
MOODS = ClassificationData(SENTENCES, (LABELS * 4), LABELS, max_length=64, source="moods.csv")
WINDOWS = ClassificationData([" ".join(SENTENCES[:4]), *SENTENCES[:3]], ["bad"] * 4, LABELS, "{text}", 24, 12, "long")
STORIES = GenerationData([text[:9] for text in SENTENCES], [text[9:] for text in SENTENCES], source="stories.jsonl")


class Killed(BaseException):
    """What a kill is to the code that it hits."""


class Dying:
    """A model that works for some calls and is killed then; None for good. Counts the rows that it computed."""

    def __init__(self, model: PackageModel, calls: int | None) -> None:
        self.model, self.calls, self.rows = model, calls, 0

    def _count(self, rows: Sequence[Any]) -> None:
        if self.calls == 0:
            raise Killed
        self.calls = None if self.calls is None else self.calls - 1
        self.rows += len(rows)

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int) -> np.ndarray:
        self._count(rows)
        return self.model.class_logits(rows, adapter, batch_size)

    def token_scores(self, rows: Any, adapter: str | None, starts: Any, batch_size: int) -> Any:
        self._count(rows)
        return self.model.token_scores(rows, adapter, starts, batch_size)

    def generate(self, prompts: Any, adapter: str | None, most: int, stop: Any, batch_size: int) -> list[str]:
        self._count(prompts)
        return self.model.generate(prompts, adapter, most, stop, batch_size)


def measure(model: Any, torch_model: TorchModel, folder: Path | None) -> Measuring:
    return Measuring(
        {"package": model}, {"package": lambda adapter: 1}, torch_model.tokenizer, FinishedParts(folder), 4
    )


def all_of(measuring: Measuring) -> list[Any]:
    logits = measuring.class_logits("package", "mood", MOODS)
    likelihood = measuring.likelihood("package", "story", STORIES)
    return [logits.tolist(), likelihood, measuring.answers("package", "story", STORIES, 4)]


def test_a_killed_measurement_goes_on(
    package_model: PackageModel, torch_model: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 rows in 3 kinds, 5 rows a part: killed after each number of parts, no finished row is computed again."""
    monkeypatch.setattr(module, "PART_ROWS", 5)
    whole = all_of(measure(package_model, torch_model, None))
    for calls in range(9):
        folder = tmp_path / str(calls)
        first = Dying(package_model, calls)
        with pytest.raises(Killed):
            all_of(measure(first, torch_model, folder))
        second = Dying(package_model, None)
        assert all_of(measure(second, torch_model, folder)) == whole
        assert first.rows + second.rows == 3 * len(SENTENCES) and len(list(folder.iterdir())) == 9


def test_the_rows_of_parts_are_those_of_one_go(
    package_model: PackageModel, torch_model: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = measure(package_model, torch_model, None)
    whole = all_of(measuring), measuring.class_logits("package", "mood", WINDOWS)
    monkeypatch.setattr(module, "PART_ROWS", 1)
    parts = all_of(measuring), measuring.class_logits("package", "mood", WINDOWS)
    np.testing.assert_allclose(parts[0][0], whole[0][0], atol=1e-5)
    for one, other in zip(parts[0][1], whole[0][1], strict=True):
        assert one.tokens == other.tokens and one.text_bytes == other.text_bytes
        assert one.negative_log_likelihood == pytest.approx(other.negative_log_likelihood, rel=1e-5)
    assert parts[0][2] == whole[0][2]
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)


def test_windows_of_a_document_are_averaged(package_model: PackageModel, torch_model: TorchModel) -> None:
    from data.tokenizing import encode_windows

    windows = encode_windows(torch_model.tokenizer, WINDOWS.texts[0], 24, 12)
    assert len(windows) > 2
    mean = torch_model.class_logits(windows, "mood").mean(axis=0)
    measured = measure(package_model, torch_model, None).class_logits("package", "mood", WINDOWS)
    assert measured.shape == (4, 3)
    np.testing.assert_allclose(measured[0], mean, atol=1e-4)


def test_bytes_are_those_of_the_responses(package_model: PackageModel, torch_model: TorchModel) -> None:
    rows = measure(package_model, torch_model, None).likelihood("package", None, STORIES)
    assert [row.text_bytes for row in rows] == [len(text.encode("utf-8")) for text in STORIES.responses]


class NoNumbers:
    """Gives NaN for one text, found by its ids."""

    def __init__(self, model: PackageModel, ids: list[int]) -> None:
        self.model, self.ids = model, ids

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int) -> np.ndarray:
        if self.ids in rows:
            raise NotFiniteError(adapter, rows.index(self.ids))
        return self.model.class_logits(rows, adapter, batch_size)


@pytest.mark.parametrize("row", [0, 5, 11])
def test_logits_that_are_no_numbers_name_adapter_and_row(
    package_model: PackageModel, torch_model: TorchModel, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 5)
    broken = NoNumbers(package_model, torch_model.encode(SENTENCES[row]))
    with pytest.raises(
        NotFiniteError, match=rf"moods\.csv, package: adapter 'mood', row {row + 1}: the logits are not"
    ):
        measure(broken, torch_model, None).class_logits("package", "mood", MOODS)


def test_a_model_that_overflows_is_stopped(torch_model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real check, on a head that is infinite."""
    import torch

    monkeypatch.setitem(torch_model.heads, "mood", torch.full_like(torch_model.heads["mood"], torch.inf))
    measuring = Measuring(
        {"pytorch": torch_model}, {"pytorch": lambda _: 1}, torch_model.tokenizer, FinishedParts(None)
    )
    with pytest.raises(
        NotFiniteError, match=r"moods\.csv, pytorch: adapter 'mood', row \d+: the logits are not finite"
    ):
        measuring.class_logits("pytorch", "mood", MOODS)


class ByRow:
    """Logits that depend on a row's ids and on nothing else; keeps the order in which rows came."""

    def __init__(self, seen: list[str], name: str) -> None:
        self.seen, self.name = seen, name

    def labels(self, adapter: str) -> list[str]:
        return LABELS

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int) -> np.ndarray:
        self.seen.append(self.name)
        return np.stack([np.random.default_rng(ids).normal(size=3).astype(np.float32) for ids in rows])


MANY = ClassificationData(
    [f"{number} {'boat ' * (number % 9)}" for number in range(100)], LABELS * 33 + ["bad"], LABELS, source="many.csv"
)


def watch(monkeypatch: pytest.MonkeyPatch, file: Path) -> Path:
    monkeypatch.setenv(VARIABLE, str(file))
    return file


@pytest.mark.parametrize("data", [MOODS, WINDOWS], ids=["texts", "windows"])
def test_watching_changes_no_result(
    package_model: PackageModel,
    torch_model: TorchModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: ClassificationData,
) -> None:
    """Other neighbours in a batch are float32's noise to real models, and nothing to one that has no such noise."""
    monkeypatch.setattr(module, "WATCHED_PART_ROWS", 5)
    models = {"rows": ByRow([], "rows"), "pytorch": torch_model, "package": package_model}
    for name, model in models.items():
        measuring = Measuring({name: model}, {name: lambda _: 1}, torch_model.tokenizer, FinishedParts(None), 4)
        monkeypatch.delenv(VARIABLE, raising=False)
        plain = measuring.class_logits(name, "mood", data)
        file = watch(monkeypatch, tmp_path / f"{name}.jsonl")
        watched = measuring.class_logits(name, "mood", data)
        assert read_from(file, 0)[0]
        np.testing.assert_allclose(watched, plain, atol=0 if name == "rows" else 1e-5, rtol=0)
        assert (watched.argmax(axis=1) == plain.argmax(axis=1)).all()


def test_rows_are_reported_as_they_finish(
    torch_model: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of 32 in shuffled order, each row once, right where its label is found; the same again from the parts."""
    measuring = Measuring(
        {"package": ByRow([], "")}, {"package": lambda _: 1}, torch_model.tokenizer, FinishedParts(tmp_path / "parts")
    )
    for run in range(2):
        file = watch(monkeypatch, tmp_path / f"{run}.jsonl")
        logits = measuring.class_logits("package", "mood", MANY)
        lines, _ = read_from(file, 0)
        assert [len(line["rows"]) for line in lines] == [32, 32, 32, 4]
        for line in lines:
            fields = {"stage": "evaluation", "adapter": "mood", "model": "package", "metric": "accuracy", "of": 100}
            assert {key: value for key, value in line.items() if key != "rows"} == fields
        rows = [row for line in lines for row, _ in line["rows"]]
        assert sorted(rows) == list(range(100)) and rows == module.shuffled(MANY.fingerprint, 100)
        found = dict(pair for line in lines for pair in line["rows"])
        chosen = [LABELS[i] for i in logits.argmax(axis=1)]
        assert [found[row] for row in range(100)] == [int(a == b) for a, b in zip(chosen, MANY.labels, strict=True)]
        assert 10 < sum(found.values()) < 90
    # parts of one order never answer for those of another
    monkeypatch.delenv(VARIABLE)
    before = len(list((tmp_path / "parts").iterdir()))
    measuring.class_logits("package", "mood", MANY)
    assert before == 4 and len(list((tmp_path / "parts").iterdir())) == 5


def test_the_order_is_that_of_the_data_alone() -> None:
    assert module.shuffled("00000000000000ff" * 4, 8) == np.random.default_rng(255).permutation(8).tolist()
    early = np.array(module.shuffled(MANY.fingerprint, 100))[:32]
    assert 30 < early.mean() < 70 and len(set(early % 9)) == 9  # rows of all places and lengths


@pytest.mark.parametrize("names", [["pytorch"], ["pytorch", "package"]])
def test_the_final_model_is_measured_first_and_alone_reported(
    torch_model: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    from evaluators.quality import classification_quality

    seen: list[str] = []
    models = {name: ByRow(seen, name) for name in names}
    measuring = Measuring(models, dict.fromkeys(names, lambda _: 1), torch_model.tokenizer, FinishedParts(None))
    plain = classification_quality(measuring, "mood", MANY, ["accuracy", "f1_macro"])
    assert seen == names
    seen.clear()
    file = watch(monkeypatch, tmp_path / "values.jsonl")
    watched = classification_quality(measuring, "mood", MANY, ["accuracy", "f1_macro"])
    assert seen[:4] == [names[-1]] * 4 and seen[4:] == names[:-1]
    assert {line["model"] for line in read_from(file, 0)[0]} == {names[-1]}
    assert watched == plain and list(watched.scores["accuracy"]) == names
    assert list(watched.details) == list(plain.details)
