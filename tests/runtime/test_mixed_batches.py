"""Batches in which each row has its own adapter: every row as if it were alone, against PEFT and against itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from runtime.options import read_options
from runtime.stacking import AdapterFile, stack, stack_key
from tests.conftest import SENTENCES
from tests.runtime.conftest import MixedPackage

GENERATORS: list[str | None] = ["story", "poem", None, "chat"]
CLASSIFIERS = ["mood", "news", "long"]


def peft_model(package: MixedPackage, adapter: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(package.base)
    return PeftModel.from_pretrained(base, package.sources[adapter]).eval()


def test_stack_pads_with_zeros_that_change_no_product() -> None:
    rng = np.random.default_rng(0)

    def pair(rank: int) -> dict[str, np.ndarray]:
        return {"A": rng.normal(size=(1, 6, rank)).astype("f"), "B": rng.normal(size=(1, rank, 5)).astype("f")}

    rows: list[dict[str, np.ndarray]] = [pair(2), {}, pair(4)]
    stacked, x = stack(rows), rng.normal(size=(3, 7, 6)).astype("f")
    assert stacked["A"].shape == (3, 6, 4) and stacked["B"].shape == (3, 4, 5) and stacked["A"].dtype == np.float32
    got = x @ stacked["A"] @ stacked["B"]
    for i, row in enumerate(rows):
        wanted = x[i] @ row["A"][0] @ row["B"][0] if row else np.zeros((7, 5))
        np.testing.assert_allclose(got[i], wanted, atol=1e-5)
    half = stack([{"A": np.ones((1, 2, 1), np.float16)}, {}])
    assert half["A"].dtype == np.float16 and half["A"].tolist() == [[[1.0], [1.0]], [[0.0], [0.0]]]


def test_rows_with_one_adapter_need_no_stack(tmp_path: Any) -> None:
    a, b = AdapterFile(tmp_path, "a"), AdapterFile(tmp_path, "b")
    assert stack_key([None, None]) == ()
    assert stack_key([a, a]) == ("a",)
    assert stack_key([a, None]) == ("a", "")
    assert stack_key([a, b, a]) == ("a", "b", "a")


def test_class_logits_of_a_mixed_batch_are_those_of_peft(mixed_package: MixedPackage) -> None:
    """Three heads with 3, 5 and 2 classes and ranks 4, 2 and 3 in one run of twelve rows."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    model = MultiAdapterModel.load(mixed_package.folder)
    requests = [(text[:30], CLASSIFIERS[i % 3]) for i, text in enumerate(SENTENCES)]
    requests = [(text[:8] if adapter == "long" else text, adapter) for text, adapter in requests]  # one window each
    found = model.classify_batch(requests, batch_size=len(requests))
    tokenizer: Any = AutoTokenizer.from_pretrained(mixed_package.base)
    for adapter in CLASSIFIERS:
        reference = peft_model(mixed_package, adapter)
        path = mixed_package.sources[adapter] / "adapter_model.safetensors"
        score = load_file(path)["base_model.model.score.weight"]
        for (text, _), result in ((r, f) for r, f in zip(requests, found, strict=True) if r[1] == adapter):
            ids = tokenizer(f"Text: {text}" if adapter == "mood" else text, return_tensors="pt").input_ids
            with torch.no_grad():
                hidden = reference(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            wanted = torch.softmax((hidden @ score.T).double(), 0).numpy()
            np.testing.assert_allclose(list(result.probabilities.values()), wanted, atol=1e-4)
            assert len(result.probabilities) == len(model.adapters[adapter]["labels"])


@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_each_text_of_a_mixed_batch_is_classified_as_if_alone(mixed_model: MultiAdapterModel, batch_size: int) -> None:
    texts = [*SENTENCES, "a very long text that must be cut " * 12, "Hi"]
    requests = [(text, CLASSIFIERS[i % 3]) for i, text in enumerate(texts)]
    for result, (text, adapter) in zip(
        mixed_model.classify_batch(requests, batch_size=batch_size), requests, strict=True
    ):
        alone = mixed_model.classify(text, adapter)[0]
        assert result.label == alone.label
        np.testing.assert_allclose(list(result.probabilities.values()), list(alone.probabilities.values()), atol=1e-4)
    assert mixed_model.classify_batch([]) == []


def test_generation_of_a_mixed_batch_is_that_of_peft(
    mixed_package: MixedPackage, mixed_model: MultiAdapterModel
) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(mixed_package.base)
    requests: list[tuple[Any, str | None]] = [("Two plus", "story"), (SENTENCES[2], "poem"), ("The soup was", "story")]
    found = mixed_model.generate_batch(requests, max_new_tokens=20)
    for adapter in ("story", "poem"):
        reference = peft_model(mixed_package, adapter)
        for (prompt, _), text in ((r, f) for r, f in zip(requests, found, strict=True) if r[1] == adapter):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                output = reference.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=20,
                    do_sample=False,
                    pad_token_id=0,
                )
            assert text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"stop_at_eos": False}, {"repetition_penalty": 1.3}])
def test_each_row_of_a_mixed_batch_is_generated_as_if_alone(
    mixed_model: MultiAdapterModel, options: dict[str, Any]
) -> None:
    """Prompts of many lengths, two of them so near to the end of the context (128) that they get fewer tokens."""
    long = "The soup was cold, the bread was hard, the waiter was kind. " * 3
    prompts = [*SENTENCES[:5], "Hi", long, long[4:]]
    requests = [(prompt, GENERATORS[i % 4]) for i, prompt in enumerate(prompts)]
    lengths = [len(mixed_model.encode_prompt(*request)) for request in requests]
    assert len(set(lengths)) > 5 and max(lengths) + 24 > 128 > max(lengths)
    alone_options = {key: value for key, value in options.items() if key != "batch_size"}
    alone = [mixed_model.generate(*request, max_new_tokens=24, **alone_options) for request in requests]
    assert mixed_model.generate_batch(requests, max_new_tokens=24, **options) == alone
    assert len(set(alone)) == len(alone)


def test_rows_that_end_early_leave_the_others_alone(own_model: MultiAdapterModel) -> None:
    """Tokens that some of the rows reach become ends of sequences, beside the tokenizer's own."""
    requests = [(text[:n], GENERATORS[n % 4]) for n, text in enumerate(SENTENCES[:8], 4)]
    ids = [own_model.encode_prompt(*request) for request in requests]
    free = [list(own_model.tokens(row, adapter, 30)) for row, (_, adapter) in zip(ids, requests, strict=True)]
    path = own_model.folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = [2, free[0][3], free[1][12], free[2][20]]
    path.write_text(json.dumps(config), encoding="utf-8")
    model = MultiAdapterModel.load(own_model.folder, verify=False)
    tokens = [list(model.tokens(row, adapter, 30)) for row, (_, adapter) in zip(ids, requests, strict=True)]
    assert len({len(row) for row in tokens}) >= 3
    assert all(row == whole[: len(row)] for row, whole in zip(tokens, free, strict=True))
    wanted = [model.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    assert model.generate_batch(requests, max_new_tokens=30) == wanted


def test_prompts_that_hold_padding_and_ends(mixed_model: MultiAdapterModel) -> None:
    """Every id of the vocabulary may stand anywhere in a prompt: pad 0 and end 2 are not taken for padding."""
    for ids in ([1, 20, 0, 30], [1, 20, 30, 0, 0], [0, 20, 2], [1, 20, 2, 2]):
        got, sequence = list(mixed_model.tokens(ids, "story", 6, stop_at_eos=False)), list(ids)
        for token in got:
            logits = mixed_model.logits(np.array([sequence]), adapter="story")[0, -1]
            logits[2] = -np.inf
            assert token == int(logits.argmax())
            sequence.append(token)


def test_mixed_batch_at_int4(mixed_package: MixedPackage, tmp_path: Any) -> None:
    """With the embedding shared with a quantized lm_head (rtn), and int8 arithmetic, which rounds row by row."""
    from passes.package import write_package

    folders = {name: mixed_package.sources[name] for name in ("story", "poem", "mood", "news")}
    quantization = {"algorithm": "rtn", "symmetric": True}
    target: dict[str, Any] = {"precision": "int4", "execution_provider": "cpu", "quantization": quantization}
    write_package(tmp_path / "p", base_path=mixed_package.base, adapter_folders=folders, name="p", **target)
    model = MultiAdapterModel.load(tmp_path / "p")
    requests: list[tuple[Any, str | None]] = [
        (s[: 10 + i], ("story", "poem", None)[i % 3]) for i, s in enumerate(SENTENCES)
    ]
    assert model.generate_batch(requests, 12) == [model.generate(*request, 12) for request in requests]
    texts = [(text, ("mood", "news")[i % 2]) for i, text in enumerate(SENTENCES)]
    for result, request in zip(model.classify_batch(texts), texts, strict=True):
        assert result.probability == pytest.approx(model.classify(*request)[0].probability, abs=0.02)


def test_stacks_are_kept_and_given_up(own_model: MultiAdapterModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.adapter_file import write_adapter

    requests: list[tuple[Any, str | None]] = [("The", "story"), ("The", "poem")]
    first = own_model.generate_batch(requests, 5)
    written: list[Any] = []

    def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
        written.append(path)
        write_adapter(path, tensors)

    monkeypatch.setattr("runtime.loaded_adapters.write_adapter", write)
    assert own_model.generate_batch(list(reversed(requests)), 5) == first[::-1]
    assert not written, "an equal mixture uses the stack that is there"
    monkeypatch.setattr("runtime.loaded_adapters.CACHE_BYTES", 0)
    engine: Any = own_model._engine()
    cache = engine.loaded
    assert own_model.generate_batch([*requests, ("The", None)], 5)[:2] == first
    assert len(written) == 1 and not [key for key in cache._bytes if len(key) > 1]
    assert list(Path(cache._folder.name).iterdir()) == []


def test_runs_keep_rows_apart_that_would_change_each_other(mixed_model: MultiAdapterModel) -> None:
    engine, lengths = mixed_model._engine(), [5, 100, 7, 120, 120, 6]
    assert engine.runs(lengths, read_options({"max_new_tokens": 20}), 16) == [[0, 5, 2, 1], [3, 4]]
    assert engine.runs(lengths, read_options({"max_new_tokens": 20}), 2) == [[0, 5], [2, 1], [3, 4]]
    assert len(engine.runs(lengths, read_options({"regex": "a"}), 16)) == 6
    assert len(engine.runs(lengths, read_options({"repetition_penalty": 1.2}), 16)) == 6


def test_all_bad_requests_are_named_before_anything_runs(
    mixed_model: MultiAdapterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr("runtime.session.GraphSession._run", never)
    monkeypatch.setattr("runtime.generation.TextGenerator.steps", never)
    with pytest.raises(PackageError) as error:
        mixed_model.classify_batch([("a", "mood"), ("b", "story"), ("c", "nws")])
    lines = str(error.value).splitlines()
    assert lines[0].startswith("request 1: adapter 'story' is for generation, not for classification")
    assert lines[1].startswith("request 2: there is no adapter 'nws'; did you mean 'news'?")
    with pytest.raises(PackageError) as error:
        mixed_model.generate_batch([("a", "mood"), ("b", "story"), ("word " * 200, None), ("d", "stry")])
    lines = str(error.value).splitlines()
    assert [line[:10] for line in lines] == ["request 0:", "request 2:", "request 3:"]
    assert "must have 1 to 127" in lines[1]
    with pytest.raises(PackageError, match="batch_size is 0"):
        mixed_model.generate_batch([("a", "story")], batch_size=0)
