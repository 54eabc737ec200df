from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.examples import GenerationData
from data.tokenizing import encode_generation
from evaluators.perplexity import log_softmax, perplexity
from evaluators.torch_model import TorchModel
from tests.conftest import SENTENCES

PROMPTS, RESPONSES = SENTENCES[:6], SENTENCES[6:]


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
    measured = perplexity(partial(torch_model.logits, adapter=None), examples, batch_size)
    assert measured == pytest.approx(math.exp(total / count), rel=1e-6)


def test_plain_text_agrees_with_the_loss_of_transformers(torch_model: TorchModel, tiny_llama_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    (example,) = encode_generation(torch_model.tokenizer, GenerationData([""], SENTENCES[:1]))
    ids = torch.tensor([example[0]])
    with torch.no_grad():
        loss = base(ids, labels=ids).loss
    assert perplexity(partial(torch_model.logits, adapter=None), [example]) == pytest.approx(math.exp(loss), rel=1e-5)


def test_tokens_weigh_the_same_and_prompts_nothing() -> None:
    """Two examples of one and three counted tokens; the probabilities are known."""
    vocabulary, probability = 4, {1: 0.5, 2: 0.25, 3: 0.125}

    def logits_of(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        row = np.log(np.array([0.125, 0.5, 0.25, 0.125], dtype=np.float32))
        return np.broadcast_to(row, (*ids.shape, vocabulary)).copy()

    examples = [([0, 0, 1], [-100, -100, 1]), ([0, 1, 2, 3], [-100, 1, 2, 3])]
    losses = [-math.log(probability[token]) for token in (1, 1, 2, 3)]
    assert perplexity(logits_of, examples, batch_size=1) == pytest.approx(math.exp(sum(losses) / 4), rel=1e-6)
    # the first token has nothing before it that could predict it
    counted_first = [([3, 1], [3, 1])]
    assert perplexity(logits_of, counted_first) == pytest.approx(2.0, rel=1e-6)


def test_nothing_to_count_is_an_error() -> None:
    def logits_of(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.zeros((*ids.shape, 3), dtype=np.float32)

    with pytest.raises(ValueError, match="at least one counted token"):
        perplexity(logits_of, [([0, 1], [-100, -100])])


def test_log_softmax_is_exact_for_large_logits() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    measured = log_softmax(logits)
    assert measured.dtype == np.float64
    np.testing.assert_allclose(measured, expected, atol=1e-12)
