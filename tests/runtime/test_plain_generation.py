"""Generation with plain onnxruntime, as on DirectML, run on the CPU against transformers and onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.package import write_package
from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from runtime.options import GenerationOptions
from runtime.plain_generation import PlainGenerator, choose
from runtime.session import GraphSession
from runtime.stacking import AdapterFile
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def sources(tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {
        "story": make_peft_adapter(tiny_llama_path, rank=8, seed=1),
        "chat": make_peft_adapter(tiny_llama_path, rank=2, seed=2, settings={"template": "chat"}),
    }


@pytest.fixture(scope="module")
def packages(
    tiny_llama_path: Path, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same base and adapters for the CPU at float32 and for DirectML at float16, whose graph has another form."""
    folders = {}
    for provider, precision in (("cpu", "fp32"), ("dml", "fp16")):
        folders[provider] = tmp_path_factory.mktemp("packages") / provider
        target: dict[str, Any] = {"precision": precision, "execution_provider": provider, "threads": 2}
        write_package(folders[provider], base_path=tiny_llama_path, adapter_folders=sources, name="tiny", **target)
    return folders


def torch_model(base: Path, adapter: Path | None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


def plain(folder: Path) -> MultiAdapterModel:
    """A package whose text is generated as on DirectML, while its graph runs on the CPU."""
    model = MultiAdapterModel.load(folder, execution_provider="cpu")
    model.logits(np.array([[1]]))  # starts the session on the CPU
    model.execution_provider = "dml"
    return model


@pytest.mark.parametrize("adapter", [None, "story"])
def test_greedy_text_is_that_of_transformers_and_of_genai(
    packages: dict[str, Path], tiny_llama_path: Path, sources: dict[str, Path], adapter: str | None
) -> None:
    import torch

    model, by_genai = plain(packages["cpu"]), MultiAdapterModel.load(packages["cpu"])
    reference = torch_model(tiny_llama_path, sources[adapter] if adapter else None)
    for text in SENTENCES[:3]:
        ids = model.encode_prompt(text, adapter)
        wanted = reference.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=12, min_new_tokens=12, do_sample=False
        )[0, len(ids) :].tolist()
        assert list(model.tokens(ids, adapter, 12, stop_at_eos=False)) == wanted
        assert model.generate(text, adapter, 12) == by_genai.generate(text, adapter, 12)
    assert isinstance(model._generator, PlainGenerator) and not isinstance(by_genai._generator, PlainGenerator)


def test_the_graph_for_directml_agrees_step_by_step(
    packages: dict[str, Path], tiny_llama_path: Path, sources: dict[str, Path]
) -> None:
    """Prompt, then token by token with the cache: float16 logits against transformers over the whole sequence."""
    import torch

    session = GraphSession(packages["dml"], "cpu", 2)
    file = AdapterFile(packages["dml"] / "adapters" / "story.onnx_adapter", "sha256 of story")
    tensors = session.adapters([file, file])
    rows = np.array([[1, 40, 41, 42, 60, 61, 62], [1, 99, 98, 97, 80, 81, 82]])
    with torch.no_grad():
        wanted = torch_model(tiny_llama_path, sources["story"])(torch.from_numpy(rows)).logits.numpy()
    past = None
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 7)):
        logits, past = session.next_logits(rows[:, start:end], past, tensors)
        np.testing.assert_allclose(logits, wanted[:, end - 1], atol=0.1)
    assert np.abs(wanted).max() > 4  # 0.1 is little of it


def test_chat_and_forgotten_adapters(packages: dict[str, Path]) -> None:
    model, by_genai = plain(packages["cpu"]), MultiAdapterModel.load(packages["cpu"])
    assert model.encode_prompt("Hello", "chat") == by_genai.encode_prompt("Hello", "chat")
    assert model.generate("Hello", "chat", 8) == by_genai.generate("Hello", "chat", 8)
    running = model.tokens(model.encode_prompt("Hello", "chat"), "chat", 8, stop_at_eos=False)
    first = next(running)
    model._graph().keep_only([])
    again = model.tokens(model.encode_prompt("Hello", "chat"), "chat", 8, stop_at_eos=False)
    assert [first, *running] == list(again)


def test_limits(packages: dict[str, Path]) -> None:
    model = plain(packages["cpu"])
    prompt = model.encode_prompt(SENTENCES[0])
    assert len(list(model.tokens(prompt, None, 1000, stop_at_eos=False))) == 128 - len(prompt)  # the context
    for ids in ([], [1] * 128):
        with pytest.raises(PackageError, match=f"the prompt has {len(ids)} tokens, but must have 1 to 127"):
            next(model.tokens(ids))
    with pytest.raises(PackageError, match="top_p is 2"):
        model.tokens(prompt, top_p=2)
    same = [list(model.tokens(prompt, None, 10, temperature=1.0, seed=3, stop_at_eos=False)) for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (2.0, 6, 0.6)]
)
def test_samples_follow_the_distribution_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(1).normal(0, 2, 12).astype(np.float32)
    scores, ids = torch.from_numpy(logits)[None], torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    wanted = TopPLogitsWarper(top_p)(ids, scores).softmax(-1)[0].numpy()
    draw, count = np.random.default_rng(0), 20_000
    options, text = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p), np.zeros(0, np.int64)
    drawn = np.bincount([choose(logits, text, draw, options) for _ in range(count)], minlength=12)
    assert set(np.flatnonzero(drawn)) <= set(np.flatnonzero(wanted))
    np.testing.assert_allclose(drawn / count, wanted, atol=0.015)  # 4 standard deviations of the commonest
    assert choose(logits, text, draw, GenerationOptions(top_k=top_k, top_p=top_p)) == logits.argmax()


def test_repetition_penalty_is_that_of_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    text, options = np.array([0, 2, 0]), GenerationOptions(repetition_penalty=1.5)
    processor = RepetitionPenaltyLogitsProcessor(1.5)
    wanted = processor(torch.from_numpy(text)[None], torch.from_numpy(logits.copy())[None])[0].numpy()
    assert choose(logits, text, np.random.default_rng(0), options) == wanted.argmax() == 1
    np.testing.assert_allclose(logits, wanted)


def test_a_batch_of_rows_and_constraints(packages: dict[str, Path]) -> None:
    model, by_genai = plain(packages["cpu"]), MultiAdapterModel.load(packages["cpu"])
    requests = [(SENTENCES[0], "story"), (SENTENCES[0], None), (SENTENCES[1], "story"), ("Hello", "chat")]
    assert model.generate_batch(requests, 8) == by_genai.generate_batch(requests, 8)
    with pytest.raises(PackageError, match="regex needs onnxruntime-genai"):
        model.generate("Hello", None, 8, regex="a+")
