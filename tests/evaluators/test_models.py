"""The PyTorch side and the package side of a comparison are one interface with one result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.tokenizing import pad_batch
from evaluators.package_model import PackageModel
from evaluators.parity import adapter_logits, parity_scores
from evaluators.torch_model import TorchModel
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def rows(torch_model: TorchModel) -> list[list[int]]:
    """Token ids of sentences of different lengths, one of them a single token."""
    return [[1], *(torch_model.tokenizer(text)["input_ids"] for text in SENTENCES)]


@pytest.mark.parametrize("adapter", [None, "story", "mood"])
def test_logits_agree(
    torch_model: TorchModel, package_model: PackageModel, rows: list[list[int]], adapter: str | None
) -> None:
    batch = pad_batch(rows, pad_id=0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected, measured = (model.logits(ids, mask, adapter) for model in (torch_model, package_model))
    assert expected.dtype == measured.dtype == np.float32 and expected.shape == measured.shape
    real = mask.astype(bool)
    np.testing.assert_allclose(measured[real], expected[real], atol=1e-4)


def test_class_logits_and_labels_agree(
    torch_model: TorchModel, package_model: PackageModel, rows: list[list[int]]
) -> None:
    expected, measured = (model.class_logits(rows, "mood", batch_size=5) for model in (torch_model, package_model))
    assert expected.shape == (len(rows), 3) and expected.dtype == np.float32
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    assert torch_model.labels("mood") == package_model.labels("mood") == ["bad", "good", "none"]


def test_class_logits_do_not_depend_on_the_batch(torch_model: TorchModel, rows: list[list[int]]) -> None:
    together, alone = (torch_model.class_logits(rows, "mood", batch_size=size) for size in (len(rows), 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("adapter", [None, "story"])
def test_streams_give_the_same_tokens_one_by_one(
    torch_model: TorchModel, package_model: PackageModel, adapter: str | None
) -> None:
    """Also where one character takes several tokens: the package's stream is of tokens, not of pieces of text."""
    ids = torch_model.tokenizer("The kettle")["input_ids"]
    expected, measured = (list(model.stream(ids, adapter, 24)) for model in (torch_model, package_model))
    assert len(expected) == 24 and measured == expected


def test_adapters_do_not_leak_into_each_other(torch_model: TorchModel, tiny_llama_path: Path) -> None:
    """Whatever ran before, the base is the base."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.array([[1, 40, 41, 42]])
    mask = np.ones_like(ids)
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    with torch.no_grad():
        expected = plain(torch.from_numpy(ids)).logits.numpy()
    story = torch_model.logits(ids, mask, "story")
    torch_model.class_logits([[1, 40]], "mood")
    np.testing.assert_array_equal(torch_model.logits(ids, mask, None), expected)
    np.testing.assert_array_equal(torch_model.logits(ids, mask, "story"), story)
    assert np.abs(story - expected).max() > 0.01


def test_parity_of_the_two(torch_model: TorchModel, package_model: PackageModel, rows: list[list[int]]) -> None:
    for name, task in (("story", "generation"), ("mood", "classification")):
        reference, measured = (adapter_logits(model, rows, name, task) for model in (torch_model, package_model))
        width = 3 if task == "classification" else torch_model.model.config.vocab_size
        lengths = [1 if task == "classification" else len(row) for row in rows]
        assert [array.shape for array in reference] == [(length, width) for length in lengths]
        scores = parity_scores(reference, measured)
        assert scores["max_abs_difference"] < 1e-4 and abs(scores["kl_divergence"]) < 1e-7
        assert scores["top1_agreement"] == 1.0
