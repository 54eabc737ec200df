"""The PyTorch side and the package side of a comparison are one interface with one result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.tokenizing import pad_batch
from evaluators.package_model import PackageModel
from evaluators.parity import adapter_parity
from evaluators.torch_model import TorchModel
from tests.conftest import SENTENCES

LABELS = ["bad", "good", "none"]


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
        scores = adapter_parity(torch_model, package_model, name, rows, task)
        assert scores["max_abs_difference"] < 1e-4 and abs(scores["kl_divergence"]) < 1e-7
        assert scores["top1_agreement"] == 1.0 and scores["samples"] == len(rows)
        assert scores.get("label_flips") == (0 if name == "mood" else None)


def test_flipped_rows_are_named(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], package_model: PackageModel, rows: list[list[int]]
) -> None:
    """The package against PyTorch with another head: wherever the labels differ, both answers and the text."""
    from scipy.special import softmax  # type: ignore[import-untyped]

    other = TorchModel(tiny_llama_path, {"mood": make_peft_adapter(tiny_llama_path, seed=5, labels=LABELS)})
    scores = adapter_parity(other, package_model, "mood", rows, "classification")
    logits = {"pytorch": other.class_logits(rows, "mood"), "package": package_model.class_logits(rows, "mood")}
    best = {side: values.argmax(axis=1) for side, values in logits.items()}
    differing = [i for i in range(len(rows)) if best["pytorch"][i] != best["package"][i]]
    assert differing and scores["label_flips"] == len(differing)
    assert [flip["row"] for flip in scores["flipped_rows"]] == differing
    for flip in scores["flipped_rows"]:
        assert flip["text"] == other.tokenizer.decode(rows[flip["row"]], skip_special_tokens=True)
        for side, values in logits.items():
            likeliest = best[side][flip["row"]]
            assert flip[side]["label"] == LABELS[likeliest]
            assert flip[side]["probability"] == pytest.approx(softmax(values[flip["row"]])[likeliest], rel=1e-5)


def test_the_reference_computes_in_float32(torch_model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a training left set, and it is set again afterwards."""
    import torch

    seen: list[str] = []
    forward = torch_model.model.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return forward(*args, **kwargs)

    monkeypatch.setattr(torch_model.model, "forward", spy)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        torch_model.logits(np.array([[1, 40]]), np.array([[1, 1]]), "story")
        assert seen == ["ieee"] and matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
    assert next(torch_model.model.parameters()).dtype == torch.float32
