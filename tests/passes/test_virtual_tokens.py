"""Prompt and prefix tuning from training to package: what is trained, what the check refuses, what is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from olive.workflows.run.config import RunConfig

from evaluators.torch_model import TorchModel
from passes.multi_adapter_export import export
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from passes.workflow_check import check_workflow
from runtime.errors import PackageError
from runtime.manifest import read_manifest
from tests.conftest import save_tiny_model
from tests.graph.test_builder import LONGROPE
from tests.passes.conftest import mood_data, story_data
from tests.virtual_adapters import save_virtual_adapter

ROWS = [[1, 40, 41, 99, 12, 60], [1, 77, 13], [1, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def trained(tiny_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier and a generator by each method, trained for a few steps."""
    found = {}
    for method in ("prompt", "prefix"):
        for task, data in (("story", story_data(max_length=64)), ("mood", mood_data(max_length=64))):
            settings = AdapterSettings(
                f"{method}_{task}",
                method=method,
                virtual_tokens=4,
                training_args={"max_steps": 10, "learning_rate": 0.05, "logging_strategy": "steps", "logging_steps": 1},
            )
            found[settings.adapter_name] = folder = tmp_path_factory.mktemp(settings.adapter_name)
            train_adapter(folder, tiny_llama_path, settings, data, None)
    return found


@pytest.mark.parametrize("name", ["prompt_story", "prompt_mood", "prefix_story", "prefix_mood"])
def test_virtual_tokens_learn(trained: dict[str, Path], name: str) -> None:
    from safetensors.torch import load_file

    record = json.loads((trained[name] / "training.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert len(losses) == 10 and losses[-1] < 0.95 * losses[0]
    weights = load_file(trained[name] / "adapter_model.safetensors")
    width = 64 if name.startswith("prompt") else 2 * 2 * 2 * 16  # layers * (key, value) * kv heads * head size
    assert weights["prompt_embeddings"].shape == (4, width)
    assert record["trainable_parameters"] == sum(value.numel() for value in weights.values())


def test_a_prefix_begins_as_what_the_base_computes_of_words(tiny_llama_path: Path) -> None:
    """A text behind the prefix gets the logits that it gets behind the words whose keys and values these are."""
    from peft import PrefixTuningConfig, get_peft_model

    from passes.base_model import load_base
    from passes.training.methods import adapt

    base: Any = load_base(tiny_llama_path)
    torch.manual_seed(3)
    get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))  # draws its noise first
    words, text = torch.randint(base.config.vocab_size, (1, 4)), torch.tensor(ROWS[:1])
    torch.manual_seed(3)
    settings = AdapterSettings("test", method="prefix", virtual_tokens=4)
    adapted = adapt(load_base(tiny_llama_path), settings, tiny_llama_path).model.eval()
    with torch.no_grad():
        found = adapted(input_ids=text, attention_mask=torch.ones_like(text)).logits
        wanted = base(input_ids=torch.cat([words, text], dim=1)).logits[:, 4:]
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-4)


def options(precision: str) -> Any:
    return SimpleNamespace(
        adapter_precision="float", precision=precision, quantization=None, threads=2, name="tiny", parity=None
    )


def test_the_package_is_what_was_trained(
    tiny_llama_path: Path, trained: dict[str, Path], make_peft_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Beside LoRA adapters, in one package; the certificate compares each with PEFT."""
    lora = make_peft_adapter(tiny_llama_path, settings={})
    (lora / "samples.json").write_text(json.dumps(ROWS), encoding="utf-8")
    export(
        tiny_llama_path,
        {**trained, "lora": lora},
        tmp_path / "package",
        execution_provider="cpu",
        config=options("fp32"),
    )
    entries = read_manifest(tmp_path / "package")["adapters"]
    assert len(entries) == 5
    for entry in entries.values():
        assert entry["parity"]["fp32"]["max_abs_difference"] < 1e-4


def test_torch_model_holds_all_kinds_on_one_base(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapters = {
        "brief": save_virtual_adapter(tmp_path / "brief", tiny_llama_path, "prompt", 3, settings={}),
        "lora": make_peft_adapter(tiny_llama_path, settings={}),
        "stern": save_virtual_adapter(tmp_path / "stern", tiny_llama_path, "prefix", 5, settings={}),
    }
    model = TorchModel(tiny_llama_path, adapters)
    ids = np.array(ROWS[:1])
    mask, tokens = np.ones_like(ids), torch.from_numpy(ids)
    for name in ("stern", None, "lora", "brief", "stern"):
        alone: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
        if name is not None:
            alone = PeftModel.from_pretrained(alone, adapters[name]).eval()
        with torch.no_grad():
            wanted = alone(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -ids.shape[1] :]
            greedy = alone.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        np.testing.assert_allclose(model.logits(ids, mask, name), wanted.numpy(), atol=1e-5)
        assert list(model.stream(ROWS[0], name, 5)) == greedy
        together = model.generate(ROWS, name, 5)
        assert together == [model.generate([row], name, 5)[0] for row in ROWS]
        scores = model.token_scores(ROWS, name, [1] * len(ROWS))
        log_p = wanted.log_softmax(-1)[0, torch.arange(ids.shape[1] - 1), tokens[0, 1:]]
        np.testing.assert_allclose(scores[0][0], log_p.numpy(), atol=1e-4)
    weights = {id(p) for m in (model.model, *model._virtual.values()) for p in m.get_base_model().parameters()}
    assert len(weights) == len(list(model.model.get_base_model().parameters()))  # the base is in memory once


def problems(workflow: dict[str, Any], base: Path, **step: Any) -> list[str]:
    workflow["input_model"]["model_path"] = str(base)
    workflow["passes"]["story"].pop("rank")
    workflow["passes"]["story"].update(step)
    return check_workflow(RunConfig.parse_file_or_obj(workflow))


def test_a_workflow_with_virtual_tokens_is_right(tiny_workflow: dict[str, Any], tiny_llama_path: Path) -> None:
    assert problems(tiny_workflow, tiny_llama_path, method="prefix", virtual_tokens=64) == []


CHECKED = {
    "too many": (
        {"method": "prompt", "virtual_tokens": 65},
        ["passes.story.virtual_tokens: 65 virtual tokens, but they take at most 64, half of the base's context"],
    ),
    "none": ({"method": "prompt", "virtual_tokens": 0}, ["passes.story.virtual_tokens: must be 1 or more, but got 0"]),
    "a rank": (
        {"method": "prefix", "rank": 4},
        ["passes.story.rank: is not for method 'prefix', but for lora, qlora, dora; leave it out or change the method"],
    ),
    "checkpointing": (
        {"method": "prefix", "training_args": {"gradient_checkpointing": True}},
        [
            "passes.story.training_args.gradient_checkpointing: PEFT's prefix tuning cannot do without the cache that "
            "it leaves out; leave it out"
        ],
    ),
}


@pytest.mark.parametrize(("step", "said"), CHECKED.values(), ids=CHECKED)
def test_wrong_options_are_named(
    tiny_workflow: dict[str, Any], tiny_llama_path: Path, step: dict[str, Any], said: list[str]
) -> None:
    assert problems(tiny_workflow, tiny_llama_path, **step) == said


def test_texts_need_room_beside_virtual_tokens(tiny_workflow: dict[str, Any], tiny_llama_path: Path) -> None:
    for config in tiny_workflow["data_configs"]:
        config["pre_process_data_config"]["max_length"] = 120
    found = problems(tiny_workflow, tiny_llama_path, method="prompt", virtual_tokens=9)
    line = "max_length is 120 and 9 virtual tokens stand before the text, but the base's context is 128"
    assert found == [f"passes.story.train_data_config: {line}", f"evaluator.metrics.story.data_config: {line}"]


def test_bases_that_cannot_are_refused(tiny_workflow: dict[str, Any], tmp_path: Path) -> None:
    phi3 = save_tiny_model(tmp_path / "phi3", "phi3", **LONGROPE)
    (found,) = problems(tiny_workflow, phi3, method="prefix")
    assert found.startswith("passes.story.method: 'prefix', but the base's rope_type is longrope")


@pytest.mark.parametrize("exported", [True, False])
def test_bases_of_torchs_exporter_are_refused(tiny_workflow: dict[str, Any], tmp_path: Path, exported: bool) -> None:
    gpt2 = save_tiny_model(tmp_path / "gpt2", "gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=128)
    if not exported:
        del tiny_workflow["passes"]["export"]
    del tiny_workflow["passes"]["mood"]["rank"]
    tiny_workflow["passes"]["mood"]["method"] = "prompt"
    (found,) = problems(tiny_workflow, gpt2, method="lora")
    assert found == (
        "passes.mood.method: 'prompt', but the base is a GPT2LMHeadModel; prompt and prefix tuning are for bases that "
        "onnxruntime-genai's builder knows"
    )


def test_package_refuses_a_base_of_torchs_exporter(tmp_path: Path, tiny_llama_path: Path) -> None:
    from passes.package import write_package

    gpt2 = save_tiny_model(tmp_path / "gpt2", "gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=128)
    adapter = save_virtual_adapter(tmp_path / "brief", tiny_llama_path, "prompt")
    with pytest.raises(PackageError, match="a GPT2LMHeadModel takes no virtual tokens"):
        write_package(
            tmp_path / "p", base_path=gpt2, adapter_folders={"a": adapter}, precision="fp32", execution_provider="cpu",
            name="p",
        )  # fmt: skip
