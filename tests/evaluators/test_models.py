"""The PyTorch side and the package side of a comparison are one interface with one result."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.tokenizing import pad_batch
from evaluators import token_scores
from evaluators.package_model import PackageModel
from evaluators.parity import adapter_parity
from evaluators.torch_model import TorchModel
from runtime.errors import OlivalError
from runtime.session import GraphSession
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
    from scipy.special import softmax

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


@pytest.mark.parametrize("adapter", [None, "story", "mood"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_token_scores_are_those_of_peft_row_by_row(
    torch_model: TorchModel, package_model: PackageModel, rows: list[list[int]], adapter: str | None, batch_size: int
) -> None:
    """In the order of the rows, whatever batches they were computed in; rows with nothing to score among them."""
    import torch

    starts = [min(1 + 3 * number, len(row)) for number, row in enumerate(rows)]
    for model in (torch_model, package_model):
        found = model.token_scores(rows, adapter, starts, batch_size)
        for row, start, (values, top) in zip(rows, starts, found, strict=True):
            assert values.dtype == np.float64 and top.dtype == bool and values.shape == top.shape == (len(row) - start,)
            ids = np.array([row])
            logits = torch.from_numpy(torch_model.logits(ids, np.ones_like(ids), adapter)[0, start - 1 : -1]).double()
            expected = torch.log_softmax(logits, -1).numpy()[np.arange(len(row) - start), row[start:]]
            np.testing.assert_allclose(values, expected, atol=2e-4)
            np.testing.assert_array_equal(top, logits.argmax(-1).numpy() == row[start:])


def test_a_row_may_be_one_longer_than_the_context(torch_model: TorchModel, package_model: PackageModel) -> None:
    """Its last token is predicted and never read."""
    row = [1 + i % 250 for i in range(129)]
    expected, measured = (model.token_scores([row], "story", [1])[0][0] for model in (torch_model, package_model))
    assert len(expected) == 128
    np.testing.assert_allclose(measured, expected, atol=2e-4)


def test_only_the_positions_that_are_read_are_computed(
    package_model: PackageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of like length go together, and the vocabulary's logits are those of the last tokens alone."""
    seen = []
    run = GraphSession._run

    def spy(session: GraphSession, output: str, *args: Any) -> np.ndarray:
        result = run(session, output, *args)
        seen.append((args[0].shape, result.shape[:2]))
        return result

    monkeypatch.setattr(GraphSession, "_run", spy)
    rows = [[1, *range(3, 3 + n)] for n in (5, 20, 6, 21)]
    package_model.token_scores(rows, "story", [len(row) - 2 for row in rows], batch_size=2)
    assert sorted(seen) == [((2, 6), (2, 3)), ((2, 21), (2, 3))]


def test_batches_side_by_side_give_the_same(package_folder: Path, rows: list[list[int]]) -> None:
    one, several = (PackageModel(package_folder, side_by_side=flag) for flag in (False, True))
    np.testing.assert_allclose(one.class_logits(rows, "mood", 2), several.class_logits(rows, "mood", 2), atol=1e-6)
    starts = [1] * len(rows)
    for expected, found in zip(*(m.token_scores(rows, "story", starts, 2) for m in (one, several)), strict=True):
        np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
        np.testing.assert_array_equal(found[1], expected[1])
    assert one._for_batches(9)[0] is one.runtime and several._for_batches(9)[0].threads == 1
    assert several._for_batches(1)[0] is several.runtime


def test_batches_keep_within_the_bytes_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_scores, "LOGITS_BYTES", 4 * 100 * 25)  # 25 positions of a vocabulary of 100
    lengths, starts = [11, 11, 11, 41, 2, 3], [1, 1, 1, 1, 2, 1]
    assert token_scores.score_batches(lengths, starts, 16, 100) == [[3], [0, 1], [2, 5]]  # row 4 has nothing to score
    assert token_scores.score_batches(lengths, starts, 1, 100) == [[3], [0], [1], [2], [5]]


def test_numpy_log_probabilities_are_those_of_torch() -> None:
    import torch

    logits = np.random.default_rng(0).normal(0, 30, (50, 400)).astype(np.float32)
    logits[0] += 1e6
    tokens = np.arange(50) * 7
    tokens[:5] = logits[:5].argmax(-1)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()[np.arange(50), tokens]
    best = logits.argmax(-1) == tokens
    values, top = token_scores.log_probabilities(logits.copy(), tokens)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(top, best)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("adapter", [None, "story"])
def test_logits_that_are_no_numbers_fail_and_name_adapter_and_row(
    torch_model: TorchModel,
    package_model: PackageModel,
    rows: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    adapter: str | None,
) -> None:
    """One bad logit of another token is enough; one in front of what is scored, or in the padding, does no harm."""
    import torch

    victim = rows[3]
    run, forward = GraphSession._run, torch_model.model.forward

    def spoil(ids: Any, logits: Any) -> Any:
        for place, row in enumerate(ids.tolist()):
            if row[: len(victim) - 1] == victim[:-1]:
                logits[place, -len(victim) :, 7] = value
        return logits

    def bad_run(session: GraphSession, output: str, ids: np.ndarray, *args: Any) -> np.ndarray:
        return np.array(spoil(ids, run(session, output, ids, *args)))

    def bad_forward(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(input_ids=input_ids, **kwargs)
        output.logits = spoil(input_ids, output.logits)
        return output

    monkeypatch.setattr(GraphSession, "_run", bad_run)
    monkeypatch.setattr(torch_model.model, "forward", bad_forward)
    name = "the base without adapter" if adapter is None else "adapter 'story'"
    for model in (torch_model, package_model):
        assert model.token_scores(rows[4:], adapter, [1] * len(rows[4:]))
        with pytest.raises(OlivalError, match=f"{name}, row 4: the logits are not finite"):
            model.token_scores(rows, adapter, [1] * len(rows))


def test_class_logits_that_are_no_numbers_fail(
    torch_model: TorchModel, package_model: PackageModel, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GraphSession._run

    def bad_run(session: GraphSession, output: str, ids: np.ndarray, *args: Any) -> np.ndarray:
        result = run(session, output, ids, *args).copy()
        result[[row[: len(rows[2])] == rows[2] for row in ids.tolist()], 1] = np.nan
        return result

    monkeypatch.setattr(GraphSession, "_run", bad_run)
    with pytest.raises(OlivalError, match="adapter 'mood', row 3: the logits are not finite"):
        package_model.class_logits(rows, "mood", batch_size=4)
    head = torch_model.heads["mood"].clone()
    head[0, 0] = np.inf
    monkeypatch.setitem(torch_model.heads, "mood", head)
    with pytest.raises(OlivalError, match="adapter 'mood', row 1: the logits are not finite"):
        torch_model.class_logits(rows, "mood")


@pytest.mark.parametrize(("starts", "message"), [([1, 0], "row 1: .*start=0"), ([3, 1], "row 0: .*start=3, 2")])
def test_starts_outside_their_rows_are_named(torch_model: TorchModel, starts: list[int], message: str) -> None:
    with pytest.raises(OlivalError, match=message):
        torch_model.token_scores([[1, 40], [1, 41]], None, starts)


PROMPTS = ["The kettle", "A short letter came from the", "She", "Please answer by Friday, or", "Two plus two"]


@pytest.mark.parametrize("adapter", [None, "story"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_generated_texts_are_those_of_transformers_alone(
    torch_model: TorchModel, package_model: PackageModel, adapter: str | None, batch_size: int
) -> None:
    """Against plain generate of PEFT's model, prompt by prompt; a stop string ends a text before it."""
    import torch

    prompts = [torch_model.encode(prompt) for prompt in PROMPTS]
    expected = []
    with torch.no_grad(), torch_model._active(adapter):
        for prompt in prompts:
            ids = torch.tensor([prompt])
            output = torch_model.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20
            )
            expected.append(torch_model.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
    stop = [expected[0][4:6], expected[1][7:9]]
    cut = [re.split("|".join(map(re.escape, stop)), text)[0] for text in expected]
    for model in (torch_model, package_model):
        assert model.generate(prompts, adapter, 20, batch_size=batch_size) == expected
        assert model.generate(prompts, adapter, 20, stop, batch_size) == cut
        assert model.generate([], adapter, 20) == []


def test_a_text_ends_with_end_of_text_or_with_the_context(
    torch_model: TorchModel, package_model: PackageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt gets what the context has left, and shortens no other's answer."""
    long = [1, *(3 + i % 200 for i in range(119))]
    texts = [model.generate([long, [1, 40, 41]], "story", 20) for model in (torch_model, package_model)]
    assert texts[0] == texts[1]
    tokens = list(package_model.runtime.tokens(long, "story", 20, stop_at_eos=False))
    assert len(tokens) == 8 and texts[0][0] == package_model.runtime.tokenizer.decode(tokens)
    alone = list(package_model.runtime.tokens([1, 40, 41], "story", 20, stop_at_eos=False))
    # what stands at the sixth place is made the end of texts
    for config in (torch_model.model.config, torch_model.model.get_base_model().config):
        monkeypatch.setattr(config, "eos_token_id", alone[5])
    first = alone.index(alone[5])
    (text,) = torch_model.generate([[1, 40, 41]], "story", 20)
    assert text == torch_model.tokenizer.decode(alone[: first + 1], skip_special_tokens=True)


def test_prompts_that_do_not_fit_are_named(torch_model: TorchModel, package_model: PackageModel) -> None:
    for model in (torch_model, package_model):
        with pytest.raises(OlivalError, match="the prompt has 128 tokens, but must have 1 to 127") as error:
            model.generate([[1, 2], [3] * 128, []], "story", 4)
        assert "0 tokens" in str(error.value)


def test_tokenizers_agree(torch_model: TorchModel, package_model: PackageModel) -> None:
    for special in (None, True, False):
        for text in SENTENCES[:3]:
            assert torch_model.encode(text, special) == package_model.encode(text, special)
    assert torch_model.encode("a")[:1] == [1] and torch_model.encode("a", False)[:1] != [1]
    for model in (torch_model, package_model):
        assert model.special_token("bos") == ("<s>", 1) and model.special_token("eos") == ("</s>", 2)
        assert model.special_token("cls") is None
        assert model.context_length == 128
