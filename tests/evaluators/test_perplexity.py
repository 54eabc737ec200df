from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.examples import GenerationData
from data.tokenizing import encode_generation
from evaluators.package_model import PackageModel
from evaluators.perplexity import log_softmax, perplexity, summary, text_perplexity, text_scores, windows, word_count
from evaluators.torch_model import TorchModel
from runtime.errors import OlivalError
from tests.conftest import SENTENCES

PROMPTS, RESPONSES = SENTENCES[:6], SENTENCES[6:]
TEXTS = [" ".join(SENTENCES), SENTENCES[3], " ".join(SENTENCES[4:8]) + "\n"]
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


class KnownModel:
    """Gives token t the probability of its number, wherever it stands; remembers what it was asked."""

    def __init__(self, probabilities: dict[int, float]) -> None:
        self.probabilities = probabilities
        self.asked: list[tuple[list[int], int]] = []

    def token_scores(
        self, rows: Sequence[Sequence[int]], adapter: str | None, starts: Sequence[int], batch_size: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        self.asked += [(list(row), start) for row, start in zip(rows, starts, strict=True)]
        values = [np.log([self.probabilities[t] for t in row[start:]]) for row, start in zip(rows, starts, strict=True)]
        return [(value, np.zeros(len(value), bool)) for value in values]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_it_equals_a_hand_written_loop_over_response_tokens(
    torch_model: TorchModel, tiny_llama_path: Path, batch_size: int
) -> None:
    """One row at a time, without padding: exp of the summed loss over the summed count of response tokens and EOS."""
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    tokenizer = torch_model.tokenizer
    total, count = 0.0, 0
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        start = tokenizer(prompt)["input_ids"]
        ids = start + tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = base(torch.tensor([ids])).logits[0].double()
        wanted = torch.tensor(ids[len(start) :])
        total += float(torch.nn.functional.cross_entropy(logits[len(start) - 1 : -1], wanted, reduction="sum"))
        count += len(wanted)
    examples = encode_generation(tokenizer, GenerationData(PROMPTS, RESPONSES))
    assert perplexity(torch_model, examples, None, batch_size) == pytest.approx(math.exp(total / count), rel=1e-6)


def test_plain_text_agrees_with_the_loss_of_transformers(torch_model: TorchModel, tiny_llama_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    (example,) = encode_generation(torch_model.tokenizer, GenerationData([""], SENTENCES[:1]))
    ids = torch.tensor([example[0]])
    with torch.no_grad():
        loss = base(ids, labels=ids).loss
    assert perplexity(torch_model, [example], None) == pytest.approx(math.exp(loss), rel=1e-5)


def test_tokens_weigh_the_same_and_prompts_nothing() -> None:
    """Two examples of one and three counted tokens; the probabilities are known. Packed prompts count nothing too."""
    model = KnownModel({0: 0.9, 1: 0.5, 2: 0.25, 3: 0.125})
    examples = [([0, 0, 1], [-100, -100, 1]), ([0, 1, 2, 3], [-100, 1, 2, 3])]
    losses = [-math.log(model.probabilities[token]) for token in (1, 1, 2, 3)]
    assert perplexity(model, examples, None, 1) == pytest.approx(math.exp(sum(losses) / 4), rel=1e-12)
    packed = [([0, 1, 0, 0, 3], [-100, 1, -100, -100, 3])]
    assert perplexity(model, packed, None) == pytest.approx(math.sqrt(2 * 8), rel=1e-12)
    # the first token has nothing before it that could predict it
    assert perplexity(model, [([3, 1], [3, 1])], None) == pytest.approx(2.0, rel=1e-12)


def test_nothing_to_count_is_an_error(torch_model: TorchModel) -> None:
    for examples in ([], [([0, 1], [-100, -100])], [([5], [5])]):
        with pytest.raises(ValueError, match="at least one counted token"):
            perplexity(torch_model, examples, None)


@pytest.mark.parametrize(("max_length", "stride"), [(8, 8), (8, 1), (8, 3), (5, 4), (64, 64), (64, 10), (1, 1)])
@pytest.mark.parametrize("length", [2, 5, 8, 9, 10, 17, 40])
def test_windows_are_those_of_the_harness(length: int, max_length: int, stride: int) -> None:
    """Against lm-evaluation-harness's own functions: the same tokens read, the same predicted, each once."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids = list(range(100, 100 + length))
    pairs = list(get_rolling_token_windows(ids[1:], ids[0], max_length, max_length - stride + 1))
    expected = []
    for context, predicted in map(make_disjoint_window, pairs):
        expected.append((context + predicted, len(context)))
    found = [(list(row), start) for row, start in windows(ids, max_length, stride)]
    assert [row[start:] for row, start in found] == [row[start:] for row, start in expected]
    assert found[0] == expected[0] and [token for row, start in found for token in row[start:]] == ids[1:]
    for (row, start), (context, predicted) in zip(found[1:], pairs[1:], strict=True):
        assert row[:-1] == context and row[start:] == predicted


@pytest.mark.parametrize(("prefix", "stride"), [(1, None), (None, 7)])
def test_text_equals_a_hand_written_loop(
    torch_model: TorchModel, package_model: PackageModel, stride: int | None, prefix: int | None
) -> None:
    """Token by token through PEFT's own model: at window k a token sees what the definition says, and nothing else."""
    max_length = 24
    step = stride or max_length
    encoded = [torch_model.tokenizer(text, add_special_tokens=prefix is None)["input_ids"] for text in TEXTS]
    total, count = 0.0, 0
    torch_model.model.set_adapter("story")
    for body in encoded:
        ids = body if prefix is None else [prefix, *body]
        for place in range(1, len(ids)):
            late = max(0, place - max_length)  # tokens beyond the first window
            block = -(-late // step)
            end = min(1 + max_length + block * step, len(ids))  # of the window that scores this token
            begin = max(0, end - max_length - 1)
            with torch.no_grad():
                logits = torch_model.model(torch.tensor([ids[begin:place]])).logits[0, -1].double()
            total -= float(torch.log_softmax(logits, -1)[ids[place]])
            count += 1
    for model in (torch_model, package_model):
        found = text_perplexity(model, TEXTS, encoded, "story", max_length, stride, prefix, batch_size=3)
        assert found["tokens"] == count
        assert found["negative_log_likelihood"] == pytest.approx(total, rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def harness_results(model: Any, tokenizer: Any, text: str, max_length: int) -> dict[str, float]:
    """Word and byte perplexity and bits per byte by lm-evaluation-harness alone."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.api.task import PerplexityTask
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=max_length, device="cpu")
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (value,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    count_words, count_bytes = PerplexityTask.count_words.__func__, PerplexityTask.count_bytes.__func__
    words, size = count_words(PerplexityTask, text), count_bytes(PerplexityTask, text)
    return {
        "word_perplexity": weighted_perplexity([(value, words)]),
        "byte_perplexity": weighted_perplexity([(value, size)]),
        "bits_per_byte": bits_per_byte([(value, size)]),
    }


def test_text_equals_the_harness(torch_model: TorchModel, package_model: PackageModel, tiny_llama_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    expected = harness_results(base, torch_model.tokenizer, TEXTS[0], 24)
    for model in (torch_model, package_model):
        found = text_perplexity(model, TEXTS[:1], [model.encode(TEXTS[0])], None, 24, prefix=1)
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not (SHARED / "models" / "stories260K").is_dir(), reason=f"{SHARED} has no models/stories260K")
@pytest.mark.parametrize("stride", [512, 128])
def test_a_trained_model_on_real_text(stride: int) -> None:
    """stories260K on its own kind of text: a loop of transformers, and the harness where its windows are the same."""
    folder = SHARED / "models" / "stories260K"
    text = (SHARED / "data" / "text" / "tinystories.txt").read_text(encoding="utf-8")[:6000]
    model = TorchModel(folder, {})
    ids = model.encode(text)
    prefix = model.tokenizer.bos_token_id
    found = text_perplexity(model, [text], [ids], None, 512, stride, prefix, batch_size=4)
    full = torch.tensor([[prefix, *ids]])
    total, done = 0.0, 1
    while done < full.shape[1]:
        end = min(done + (512 if done == 1 else stride), full.shape[1])
        begin = max(0, end - 513)
        labels = full[:, begin:end].clone()
        labels[:, : done - begin] = -100
        with torch.no_grad():
            logits = model.model(full[:, begin : end - 1]).logits
        total += float(torch.nn.functional.cross_entropy(logits[0], labels[0, 1:], reduction="sum"))
        done = end
    assert found["tokens"] == len(ids)
    assert found["perplexity"] == pytest.approx(math.exp(total / len(ids)), rel=1e-4)
    assert 1 < math.exp(total / len(ids)) < 10
    if stride == 512:
        expected = harness_results(model.model, model.tokenizer, text, 512)
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_rows_add_up_and_can_be_resampled(torch_model: TorchModel) -> None:
    encoded = [torch_model.encode(text) for text in TEXTS]
    rows = text_scores(torch_model, TEXTS, encoded, "story", 24, prefix=1)
    together = text_perplexity(torch_model, TEXTS, encoded, "story", 24, prefix=1)
    assert [row.tokens for row in rows] == [len(ids) for ids in encoded]
    assert [row.text_bytes for row in rows] == [len(text.encode()) for text in TEXTS]
    assert summary(rows) == together
    alone = [text_perplexity(torch_model, [t], [e], "story", 24, prefix=1) for t, e in zip(TEXTS, encoded, strict=True)]
    assert [row.negative_log_likelihood for row in rows] == pytest.approx(
        [one["negative_log_likelihood"] for one in alone], rel=1e-6
    )


def test_bytes_and_words() -> None:
    from lm_eval.api.task import PerplexityTask

    model = KnownModel({7: 0.5})
    found = text_perplexity(model, ["não é\n"], [[7, 7, 7]], None, 8, prefix=7)
    assert found["tokens"] == 3 and found["bits_per_byte"] == pytest.approx(3 / 8)  # ã and é are two bytes each
    assert found["byte_perplexity"] == pytest.approx(2 ** (3 / 8))
    assert found["word_perplexity"] == pytest.approx(2.0)  # three pieces: the last one is empty
    for text in ("", "a", " a  b\t\nc ", "não é\n"):
        assert word_count(text) == PerplexityTask.count_words.__func__(SimpleNamespace, text)
    assert text_perplexity(model, ["x"], [[7] * 1100], None, 8, prefix=7)["word_perplexity"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 8, "stride": 9}, r"1 <= stride <= max_length must hold, but got \(stride=9, max_length=8\)"),
        ({"max_length": 8, "stride": 0}, "stride=0"),
        ({"max_length": 8, "prefix": None}, "row 1: has no token to score"),
    ],
)
def test_what_cannot_be_scored_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OlivalError, match=message):
        text_scores(KnownModel({7: 0.5}), ["a b", "c"], [[7, 7], [7]], None, **{"prefix": 7, **arguments})


def test_log_softmax_is_exact_for_large_logits() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    measured = log_softmax(logits)
    assert measured.dtype == np.float64
    np.testing.assert_allclose(measured, expected, atol=1e-12)
