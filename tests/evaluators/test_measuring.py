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
