"""Prompt and prefix tuning through the runtime: alone and mixed with LoRA and the base, against PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.merge import merge_adapter
from passes.package import write_package
from runtime.adapters import main
from runtime.errors import PackageError
from runtime.manifest import read_manifest
from runtime.model import MultiAdapterModel
from runtime.session import pad_right
from tests.runtime.conftest import MixedPackage
from tests.virtual_adapters import save_virtual_adapter

ROWS = [np.random.default_rng(n).integers(3, 290, n).tolist() for n in (9, 4, 6, 13)]
TUNED = {"brief": ("prompt", 5), "terse": ("prompt", 2), "stern": ("prefix", 3), "wordy": ("prefix", 6)}
HEADS = {"mood": ("prompt", 4), "news": ("prefix", 7)}


def package(folder: Path, base: Path, sources: dict[str, Path], **options: Any) -> MultiAdapterModel:
    given = {"precision": "fp32", "execution_provider": "cpu", "threads": 2, "name": "v", **options}
    write_package(folder, base_path=base, adapter_folders=sources, **given)
    return MultiAdapterModel.load(folder)


@pytest.fixture(scope="module")
def sources(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, base = tmp_path_factory.mktemp("virtual"), tiny_llama_path
    found = {
        name: save_virtual_adapter(folder / name, base, kind, count, seed=i)
        for i, (name, (kind, count)) in enumerate(TUNED.items())
    }
    for i, (name, (kind, count)) in enumerate(HEADS.items()):
        labels = ["a", "b", "c"][: 2 + i]
        found[name] = save_virtual_adapter(folder / name, base, kind, count, seed=10 + i, labels=labels)
    return {**found, "lora": make_peft_adapter(base), "lora_head": make_peft_adapter(base, labels=["x", "y"])}


@pytest.fixture(scope="module")
def model(
    tiny_llama_path: Path, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> MultiAdapterModel:
    return package(tmp_path_factory.mktemp("packages") / "virtual", tiny_llama_path, sources)


def peft_model(base: Path, source: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source).eval()


def test_manifest_says_what_the_graph_takes(model: MultiAdapterModel) -> None:
    assert model.manifest["extra_slots"] == ["virtual_tokens", "prefix"]
    assert model.manifest["virtual_tokens"]["first_id"] == model.manifest["base"]["vocab_size"]
    counts = {name: entry.get("virtual_tokens") for name, entry in model.adapters.items()}
    assert counts == {**{name: n for name, (_, n) in {**TUNED, **HEADS}.items()}, "lora": None, "lora_head": None}
    read_manifest(model.folder)


@pytest.mark.parametrize("adapter", TUNED)
def test_greedy_text_is_that_of_pefts_generate(
    model: MultiAdapterModel, tiny_llama_path: Path, sources: dict[str, Path], adapter: str
) -> None:
    import torch

    reference = peft_model(tiny_llama_path, sources[adapter])
    for row in ROWS[:2]:
        ids = torch.tensor([row])
        wanted = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=2
        )[0, len(row) :].tolist()
        assert list(model.tokens(row, adapter, 8)) == wanted


def test_logits_and_their_positions_are_those_of_the_text(
    model: MultiAdapterModel, tiny_llama_path: Path, sources: dict[str, Path]
) -> None:
    import torch

    ids, mask = pad_right(ROWS[:3])
    for adapter in ("brief", "wordy"):
        reference = peft_model(tiny_llama_path, sources[adapter])
        with torch.no_grad():
            wanted = reference(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        wanted = wanted[:, -ids.shape[1] :].numpy()
        found = model.logits(ids, mask, adapter)
        np.testing.assert_allclose(found[mask == 1], wanted[mask == 1], atol=1e-4)
        chosen = model.logits(ids, mask, adapter, np.array([0, 3, -1]))
        np.testing.assert_allclose(chosen[:, :2], found[:, [0, 3]], atol=1e-5)
        ends = found[np.arange(3), mask.sum(axis=1) - 1]
        np.testing.assert_allclose(chosen[:, 2], ends, atol=1e-5)


def test_a_mixed_batch_gives_each_row_what_it_gets_alone(model: MultiAdapterModel) -> None:
    rows = [(row, adapter) for row in ROWS for adapter in (*TUNED, "lora", None)]
    assert model.complete(rows, 6, batch_size=len(rows)) == [model.complete([row], 6)[0] for row in rows]
    texts = [("The kettle sings.", name) for name in (*HEADS, "lora_head")] + [("A blue boat", "news"), ("No", "mood")]
    together = model.classify_batch(texts)
    for (text, adapter), found in zip(texts, together, strict=True):
        (alone,) = model.classify(text, adapter)
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_heads_read_the_texts_own_tokens(tmp_path: Path, tiny_llama_path: Path, pooling: str) -> None:
    import torch
    from safetensors.torch import load_file

    from passes.training.pooling import pool, pooled_features

    sources = {
        name: save_virtual_adapter(
            tmp_path / name, tiny_llama_path, *TUNED[name], labels=["a", "b"], settings={"pooling": pooling}
        )
        for name in ("brief", "wordy")
    }
    found = package(tmp_path / "package", tiny_llama_path, sources)
    ids, mask = pad_right(ROWS)
    for name, source in sources.items():
        reference = peft_model(tiny_llama_path, source)
        head = load_file(source / "adapter_model.safetensors")["base_model.model.score.weight"]
        tokens, seen = torch.from_numpy(ids), torch.from_numpy(mask)
        with torch.no_grad():
            states = reference(input_ids=tokens, attention_mask=seen, output_hidden_states=True).hidden_states[-1]
            wanted = pool(states[:, -ids.shape[1] :], seen, pooling) @ head.T
            ours = pooled_features(reference, tokens, seen, pooling) @ head.T
            # rows padded on the left: the same texts
            left = torch.tensor([[0] * (ids.shape[1] - len(row)) + row for row in ROWS])
            turned = pooled_features(reference, left, seen.flip(1), pooling) @ head.T
        np.testing.assert_allclose(ours.numpy(), wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(turned.numpy(), wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(found.class_logits(ROWS, name), wanted.numpy(), atol=1e-4)


def test_virtual_tokens_count_for_the_context(model: MultiAdapterModel) -> None:
    full = [5] * (model.context_length - 5)
    with pytest.raises(PackageError, match=r"the prompt has 123 tokens, but must have 1 to 122"):
        model.complete([(full, "brief")], 1)
    assert len(list(model.tokens(full[1:], "brief", 8, stop_at_eos=False))) == 1
    with pytest.raises(PackageError, match=r"repetition_penalty is 1\.2.*brief"):
        model.complete([(ROWS[0], "lora"), (ROWS[0], "brief")], 2, repetition_penalty=1.2)
    model.complete([(ROWS[0], "lora")], 2, repetition_penalty=1.2)


def test_plain_generation_gives_the_same(model: MultiAdapterModel) -> None:
    from runtime.options import read_options
    from runtime.plain_generation import PlainGenerator

    plain = PlainGenerator(model.folder, model._graph(), model.context_length, model._ends())
    for adapter in ("terse", "stern"):
        rows = [([*model._virtual(adapter), *ROWS[0]], model._file(adapter))]
        found = [token for (token,) in plain.steps(rows, read_options({"max_new_tokens": 6}))]
        assert found == list(model.tokens(ROWS[0], adapter, 6))
        assert list(plain.steps(rows, read_options({"max_new_tokens": 3, "repetition_penalty": 1.3})))


def test_a_converted_file_is_the_same_adapter(
    model: MultiAdapterModel, sources: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(model.folder, folder)
    for name in ("brief", "stern", "news"):
        file = tmp_path / f"{name}.onnx_adapter"
        assert main(["convert", str(sources[name]), str(file), "--for", str(folder)]) == 0
        labels = ["--labels", "a,b,c"] if name == "news" else []
        assert main(["add", str(folder), f"{name}2", str(file), *labels]) == 0
        assert main(["check", str(folder), str(sources[name])]) == 0
    entries = read_manifest(folder)["adapters"]
    for name in ("brief", "stern", "news"):
        assert entries[f"{name}2"]["sha256"] == entries[name]["sha256"]
        assert entries[f"{name}2"]["virtual_tokens"] == entries[name]["virtual_tokens"]


def test_packages_without_the_inputs_say_what_to_do(
    mixed_package: MixedPackage, model: MultiAdapterModel, sources: dict[str, Path], tmp_path: Path
) -> None:
    assert {"extra_slots", "virtual_tokens"}.isdisjoint(read_manifest(mixed_package.folder))
    own = MultiAdapterModel.load(shutil.copytree(mixed_package.folder, tmp_path / "plain"))
    with pytest.raises(PackageError, match="no inputs for prompt tuning; export again with such an adapter"):
        own.add_adapter("brief", sources["brief"])
    prompts = package(tmp_path / "prompts", mixed_package.base, {"brief": sources["brief"]})
    assert prompts.manifest["extra_slots"] == ["virtual_tokens"]
    with pytest.raises(PackageError, match="no inputs for prefix tuning; export again"):
        prompts.add_adapter("stern", sources["stern"])
    assert prompts.complete([(ROWS[0], "brief")], 6) == model.complete([(ROWS[0], "brief")], 6)


WRONG = {
    "another base": ({}, (5, 32), "has shape [5, 32], but the base takes [5, 64]"),
    "another number": ({"num_virtual_tokens": 7}, (5, 64), "has shape [5, 64], but the base takes [7, 64]"),
    "no number": ({"num_virtual_tokens": "all"}, (5, 64), "num_virtual_tokens is 'all', but must be a whole number"),
    "two submodules": ({"num_transformer_submodules": 2}, (5, 64), "num_transformer_submodules is 2"),
    "too many": ({"num_virtual_tokens": 65}, (65, 64), "65 virtual tokens, but they take at most 64"),
    "a kind that is no text": ({"peft_type": ["PROMPT_TUNING"]}, (5, 64), "lacks r, lora_alpha"),
    "another kind": ({"peft_type": "P_TUNING"}, (5, 64), "lacks r, lora_alpha"),
}


@pytest.mark.parametrize(("changes", "shape", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(
    model: MultiAdapterModel,
    sources: dict[str, Path],
    tmp_path: Path,
    changes: dict[str, Any],
    shape: tuple[int, int],
    said: str,
) -> None:
    from safetensors.numpy import save_file

    folder = shutil.copytree(sources["brief"], tmp_path / "wrong")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    save_file({"prompt_embeddings": np.ones(shape, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(PackageError) as error:
        model.add_adapter("wrong", folder)
    assert said in str(error.value)
    assert "wrong" not in model.adapters


def test_max_length_leaves_room(model: MultiAdapterModel, sources: dict[str, Path]) -> None:
    with pytest.raises(PackageError, match=r"max_length is 126 and 5 virtual tokens .* context is 128"):
        model.add_adapter("long", sources["brief"], max_length=126)


@pytest.mark.parametrize("adapter", ["brief", "folder"])
def test_virtual_tokens_are_not_merged(
    model: MultiAdapterModel, sources: dict[str, Path], tiny_llama_path: Path, tmp_path: Path, adapter: str
) -> None:
    chosen = str(sources["stern"]) if adapter == "folder" else adapter
    with pytest.raises(PackageError, match="change no weight that could be merged"):
        merge_adapter(model.folder, chosen, tiny_llama_path, tmp_path / "merged", name="merged")
