"""Bottleneck adapters: training, packages and PyTorch's side of a comparison, against the paper's formula."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from evaluators.torch_model import TorchModel
from passes.deployed_check import deployed_options
from passes.merge import merge_adapter
from passes.package import write_package
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from passes.training.trainer import AdapterTrainer
from runtime.adapters import add_adapter
from runtime.errors import OlivalError, PackageError
from runtime.model import MultiAdapterModel
from tests.bottlenecks import adapted, final_states, logits, save_bottleneck
from tests.conftest import SENTENCES
from tests.graph.reference import load_dequantized
from tests.graph.torch_models import save_torch_model, torch_base
from tests.passes.conftest import mood_data, story_data, workflow
from tests.passes.test_training_control import interrupt, stop_at
from tests.passes.test_workflow_check import problems

IDS = np.random.default_rng(0).integers(3, 290, (2, 9)).astype(np.int64)
TARGET: dict[str, Any] = {"execution_provider": "cpu", "threads": 2}


def causal(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    return model.eval()


class Mixed(NamedTuple):
    """A float32 package with bottleneck and LoRA adapters on a Qwen2: attention bias, packed q, k and v."""

    folder: Path
    base: Path
    sources: dict[str, Path]


@pytest.fixture(scope="module")
def mixed(
    tiny_qwen2_path: Path, make_peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Mixed:
    folder = tmp_path_factory.mktemp("bottleneck")
    sources = {
        "lora": make_peft_adapter(tiny_qwen2_path, rank=4, settings={"template": "{prompt}"}),
        "story": save_bottleneck(folder / "story", "qwen2", size=8),
        "poem": save_bottleneck(folder / "poem", "qwen2", size=3, seed=1),
        "mood": save_bottleneck(folder / "mood", "qwen2", size=5, seed=2, labels=["a", "b", "c"]),
        "news": make_peft_adapter(tiny_qwen2_path, rank=2, seed=3, labels=["x", "y"]),
    }
    write_package(
        folder / "p", base_path=tiny_qwen2_path, adapter_folders=sources, precision="fp32", name="p", **TARGET
    )
    return Mixed(folder / "p", tiny_qwen2_path, sources)


@pytest.fixture(scope="module")
def model(mixed: Mixed) -> MultiAdapterModel:
    return MultiAdapterModel.load(mixed.folder)


def test_the_manifest_says_what_slots_there_are(mixed: Mixed, model: MultiAdapterModel) -> None:
    assert model.manifest["extra_slots"] == ["bottleneck"]
    taking = [slot for slot, entry in model.manifest["slots"].items() if entry.get("extra") == ["bottleneck"]]
    assert taking == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("attn.o_proj", "mlp.down_proj")]
    entry = model.adapters["story"]
    assert (entry["rank"], entry["bottleneck_size"]) == (0, 8)
    assert entry["target_modules"] == ["down_proj", "o_proj"]
    assert "bottleneck_size" not in model.adapters["lora"]


def test_packages_compute_the_formula(mixed: Mixed, model: MultiAdapterModel) -> None:
    reference = causal(mixed.base)
    plain = reference(torch.from_numpy(IDS)).logits.detach().numpy()
    np.testing.assert_allclose(model.logits(IDS), plain, atol=1e-4)
    for name in ("story", "poem"):
        wanted = logits(reference, mixed.sources[name], IDS)
        np.testing.assert_allclose(model.logits(IDS, adapter=name), wanted, atol=1e-4)
        assert np.abs(wanted - plain).max() > 0.5
    rows = [model.tokenizer.encode(text).ids for text in SENTENCES[:3]]
    head = head_of(mixed.sources["mood"])
    for ids, found in zip(rows, model.class_logits(SENTENCES[:3], "mood"), strict=True):
        states = final_states(reference, mixed.sources["mood"], np.array([ids]))
        np.testing.assert_allclose(found, states[0, -1] @ head.T, atol=1e-4)


def head_of(folder: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]


def test_pytorchs_side_keeps_the_kinds_apart(mixed: Mixed) -> None:
    """Each adapter alone on one base, whichever was active before."""
    from peft import PeftModel

    found, mask = TorchModel(mixed.base, mixed.sources), np.ones_like(IDS)
    with torch.no_grad():
        plain = causal(mixed.base)(torch.from_numpy(IDS)).logits.numpy()
        peft = PeftModel.from_pretrained(causal(mixed.base), mixed.sources["lora"]).eval()
        lora = peft(torch.from_numpy(IDS)).logits.numpy()
    wanted = {name: logits(causal(mixed.base), mixed.sources[name], IDS) for name in ("story", "poem")}
    for name in ("lora", "story", None, "poem", "story", "lora", None):
        expected = plain if name is None else lora if name == "lora" else wanted[name]
        np.testing.assert_allclose(found.logits(IDS, mask, name), expected, atol=2e-5)


def test_generation_is_that_of_transformers(mixed: Mixed, model: MultiAdapterModel) -> None:
    """One by one and in a batch of all kinds."""
    adapters: list[str | None] = ["story", "lora", "poem", None, "story"]
    requests: list[tuple[Any, str | None]] = [(s[:12], a) for s, a in zip(SENTENCES, adapters, strict=False)]
    alone = [model.generate(*request, max_new_tokens=10) for request in requests]
    assert model.generate_batch(requests, max_new_tokens=10) == alone
    for (prompt, name), text in zip(requests, alone, strict=True):
        if name in ("story", "poem"):
            ids = model.tokenizer.encode(prompt).ids
            with adapted(causal(mixed.base), mixed.sources[name]) as reference:
                limits = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
                output = reference.generate(input_ids=torch.tensor([ids]), **limits)[0, len(ids) :]
            assert text == model.tokenizer.decode(output.tolist(), skip_special_tokens=True)


def test_classes_of_a_mixed_batch(model: MultiAdapterModel) -> None:
    requests = [(text, ("mood", "news")[i % 2]) for i, text in enumerate(SENTENCES)]
    for result, request in zip(model.classify_batch(requests, batch_size=12), requests, strict=True):
        alone = model.classify(*request)[0]
        np.testing.assert_allclose(list(result.probabilities.values()), list(alone.probabilities.values()), atol=1e-5)


def test_a_quantized_package_computes_the_formula_on_its_weights(mixed: Mixed, tmp_path: Path) -> None:
    quantized: dict[str, Any] = {"precision": "int4", "quantization": {"accuracy_level": 1}, "name": "q", **TARGET}
    sources = {name: mixed.sources[name] for name in ("story", "lora")}
    write_package(tmp_path / "q", base_path=mixed.base, adapter_folders=sources, **quantized)
    reference = causal(mixed.base)
    load_dequantized(reference, tmp_path / "q" / "model.onnx", tied=False)
    found = MultiAdapterModel.load(tmp_path / "q").logits(IDS, adapter="story")
    np.testing.assert_allclose(found, logits(reference, mixed.sources["story"], IDS), atol=2e-4)


def test_other_packages_stay_as_they_are(mixed: Mixed, tmp_path: Path, make_peft_adapter: Callable[..., Path]) -> None:
    """Without such an adapter there are no such slots, and one that comes later is refused with what to do."""
    sources = {"lora": mixed.sources["lora"]}
    write_package(tmp_path / "p", base_path=mixed.base, adapter_folders=sources, precision="fp32", name="p", **TARGET)
    text = (tmp_path / "p" / "package.json").read_text(encoding="utf-8")
    assert "extra_slots" not in text and b"bottleneck" not in (tmp_path / "p" / "model.onnx").read_bytes()
    with pytest.raises(PackageError, match="export it again with a pass of method 'bottleneck'"):
        add_adapter(tmp_path / "p", "story", mixed.sources["story"], {})
    assert (tmp_path / "p" / "package.json").read_text(encoding="utf-8") == text


def test_merging_is_refused(mixed: Mixed, tmp_path: Path) -> None:
    for adapter, name in (("story", None), (str(mixed.sources["story"]), "story")):
        with pytest.raises(PackageError, match="is a bottleneck adapter, which cannot be merged"):
            merge_adapter(mixed.folder, adapter, mixed.base, tmp_path / "merged", name)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_bases_of_torchs_exporter(tmp_path: Path, kind: str) -> None:
    """Without an adapter the package is bit for bit the one without slots."""
    base = save_torch_model(tmp_path / "base", kind)
    source = save_bottleneck(tmp_path / "mood", kind, labels=["a", "b"])
    for name, sources in (("with", {"mood": source}), ("without", {})):
        write_package(tmp_path / name, base_path=base, adapter_folders=sources, precision="fp32", name=name, **TARGET)
    found, reference = MultiAdapterModel.load(tmp_path / "with"), torch_base(base, kind)
    position = 0 if kind == "bert" else -1
    for text, classes in zip(SENTENCES[:3], found.class_logits(SENTENCES[:3], "mood"), strict=True):
        states = final_states(reference, source, np.array([found.tokenizer.encode(text).ids]))
        np.testing.assert_allclose(classes, states[0, position] @ head_of(source).T, atol=1e-4)
    beside = TorchModel(base, {"mood": source}).class_logits([found.tokenizer.encode(SENTENCES[0]).ids], "mood")
    np.testing.assert_allclose(beside[0], found.class_logits(SENTENCES[:1], "mood")[0], atol=1e-4)
    if kind == "gpt2":
        np.testing.assert_array_equal(found.logits(IDS), MultiAdapterModel.load(tmp_path / "without").logits(IDS))


# training


class Trained(NamedTuple):
    """A written folder, its losses, and what the model in memory computed for IDS when its training ended."""

    folder: Path
    losses: list[float]
    logits: np.ndarray


@pytest.fixture
def train(tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    seen: dict[str, np.ndarray] = {}

    class WatchedTrainer(AdapterTrainer):
        def train(self, *arguments: Any, **options: Any) -> Any:
            result = super().train(*arguments, **options)
            self.model.eval()
            ids = torch.from_numpy(IDS)
            with torch.no_grad():
                out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids))
            seen["logits"] = out["logits"].float().numpy()
            return result

    monkeypatch.setattr("passes.training.train.AdapterTrainer", WatchedTrainer)

    def run(data: Any, steps: int = 6, training: Any = None, **settings: Any) -> Trained:
        arguments = {"max_steps": steps, "learning_rate": 0.01, "logging_strategy": "steps", "logging_steps": 1}
        options = {"method": "bottleneck", "bottleneck_size": 16, **settings}
        chosen = AdapterSettings("test", training_args={**arguments, **(training or {})}, **options)
        folder = tmp_path / f"trained{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        train_adapter(folder, tiny_llama_path, chosen, data, None)
        history = json.loads((folder / "training.json").read_text(encoding="utf-8"))["history"]
        return Trained(folder, [entry["loss"] for entry in history if "loss" in entry], seen["logits"])

    return run


def test_training_starts_at_the_base_and_writes_what_it_learned(
    train: Callable[..., Trained], tiny_llama_path: Path
) -> None:
    story = train(story_data(), steps=12)
    untrained = train(story_data(), steps=12, training={"learning_rate": 1e-12})
    assert story.losses[0] == pytest.approx(untrained.losses[0], rel=1e-6)
    assert story.losses[-1] < 0.8 * story.losses[0]
    base = causal(tiny_llama_path)
    np.testing.assert_allclose(untrained.logits, base(torch.from_numpy(IDS)).logits.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(story.logits, logits(base, story.folder, IDS), atol=2e-5)
    config = json.loads((story.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config == {
        "peft_type": "BOTTLENECK", "bottleneck_size": 16, "activation": "gelu",
        "target_modules": ["down_proj", "o_proj"], "base_model_name_or_path": str(tiny_llama_path),
    }  # fmt: skip
    mood = train(mood_data(), steps=12)
    assert mood.losses[-1] < 0.5 * mood.losses[0]
    states = final_states(base, mood.folder, IDS)
    np.testing.assert_allclose(mood.logits, states[:, -1] @ head_of(mood.folder).T, atol=2e-5)


@pytest.mark.parametrize("data", [mood_data(), story_data()], ids=["classification", "generation"])
def test_checkpointing_changes_memory_and_not_the_result(train: Callable[..., Trained], data: Any) -> None:
    plain, saving = train(data), train(data, training={"gradient_checkpointing": True})
    np.testing.assert_allclose(saving.logits, plain.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "nf4", "double_quantization": True, "compute_dtype": "bfloat16"},
        {"quantization": "fp4", "training": {"gradient_checkpointing": True}},
    ],
    ids=["nf4", "fp4"],
)
def test_a_quantized_base_trains(
    train: Callable[..., Trained], tiny_llama_path: Path, settings: dict[str, Any]
) -> None:
    story = train(story_data(), steps=12, dropout=0.1, **settings)
    assert story.losses[-1] < 0.9 * story.losses[0]
    # the same adapter on the exact base: other logits than on the rounded one, but near them
    plain = logits(causal(tiny_llama_path), story.folder, IDS)
    assert 1e-4 < np.abs(plain - story.logits).mean() / plain.std() < 0.5


def test_trained_on_the_packages_integers(train: Callable[..., Trained], tmp_path: Path, tiny_llama_path: Path) -> None:
    """The int4 package computes what the model in memory did when its training ended."""
    quantization = {"accuracy_level": 1}
    deployed = deployed_options("int4", "cpu", quantization)
    story = train(story_data(max_length=64), quantization="deployed", deployed=deployed)
    options: dict[str, Any] = {"precision": "int4", "quantization": quantization, "name": "p", **TARGET}
    write_package(tmp_path / "p", base_path=tiny_llama_path, adapter_folders={"test": story.folder}, **options)
    found = MultiAdapterModel.load(tmp_path / "p").logits(IDS, adapter="test")
    np.testing.assert_allclose(found, story.logits, atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_other_families_train(tmp_path: Path, kind: str) -> None:
    """Their output projections have names of their own; GPT-2's are Conv1D, which bitsandbytes turns round."""
    base = save_torch_model(tmp_path / "base", kind)
    (tmp_path / "out").mkdir()
    options: dict[str, Any] = {"method": "bottleneck", "quantization": "nf4" if kind == "gpt2" else None}
    training = {"max_steps": 2, "learning_rate": 0.01}
    train_adapter(tmp_path / "out", base, AdapterSettings("test", training_args=training, **options), mood_data(), None)
    states = final_states(torch_base(base, kind), tmp_path / "out", IDS)
    wanted = states[:, 0 if kind == "bert" else -1] @ head_of(tmp_path / "out").T
    found = TorchModel(base, {"test": tmp_path / "out"}).class_logits(IDS.tolist(), "test")
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_stopped_training_ends_as_an_undisturbed_one(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with dropout in the bottlenecks."""
    training = {"max_steps": 6, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
    chosen = AdapterSettings("test", "bottleneck", dropout=0.2, training_args=training)
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
    train_adapter(tmp_path / "undisturbed", tiny_llama_path, chosen, mood_data(), None)
    arguments: Any = (tmp_path / "stopped", tiny_llama_path, chosen, mood_data(), None, None, tmp_path / "kept")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(5, interrupt, patch)
        train_adapter(*arguments)
    torch.manual_seed(1234)  # what another process would have
    train_adapter(*arguments)
    assert json.loads((tmp_path / "stopped" / "training.json").read_text(encoding="utf-8"))["resumed_from_step"] == 4
    first, second = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("undisturbed", "stopped"))
    assert first == second
    without = dataclasses.replace(chosen, dropout=0.0)
    (tmp_path / "without").mkdir()
    train_adapter(tmp_path / "without", tiny_llama_path, without, mood_data(), None)
    assert (tmp_path / "without" / "adapter_model.safetensors").read_bytes() != first


def test_a_base_without_known_outputs_is_refused_before_the_run(tmp_path: Path) -> None:
    from passes.training.bottleneck import block_outputs

    base = save_torch_model(tmp_path / "base", "gpt2")
    content = workflow(tmp_path / "w", base)
    del content["passes"]["mood"]["rank"]
    content["passes"]["mood"]["method"] = "bottleneck"
    assert problems(content) == []
    (base / "config.json").write_text(
        json.dumps({**json.loads((base / "config.json").read_text(encoding="utf-8")), "model_type": "codegen"}),
        encoding="utf-8",
    )
    assert (
        "passes.mood.method: 'bottleneck' goes behind the last projections of attention and MLP, and those of this "
        "base (codegen) are not known; take lora" in problems(content)
    )
    with pytest.raises(OlivalError, match="has no attention and MLP outputs"):
        block_outputs(torch.nn.Linear(2, 2))
