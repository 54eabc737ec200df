"""GPT-2 and BERT, which onnxruntime-genai's builder does not know: check, package, and whole runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.package_model import PackageModel
from passes.merge import merge_adapter
from passes.package import write_package
from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from tests.conftest import SENTENCES
from tests.graph.torch_models import save_adapter, save_torch_model, torch_base, torch_outputs
from tests.passes.conftest import REPOSITORY, mood_data, workflow
from tests.passes.test_workflow_check import problems

LABELS = ["a", "b", "c"]


def reading_workflow(folder: Path, base: Path) -> dict[str, Any]:
    """`workflow` for an encoder: no generation adapter, and the latency of classification."""
    content = workflow(folder, base)
    del content["passes"]["story"]
    evaluator = content["evaluators"]["all"]
    evaluator["metrics"] = [metric for metric in evaluator["metrics"] if metric["name"] != "story"]
    for priority, metric in enumerate(evaluator["metrics"], start=1):
        metric["sub_types"][0]["priority"] = priority
    evaluator["metric_options"]["latency"]["adapter"] = "mood"
    return content


def test_workflows_on_these_bases_are_checked_before_any_training(tmp_path: Path) -> None:
    gpt2, bert = save_torch_model(tmp_path / "gpt2", "gpt2"), save_torch_model(tmp_path / "bert", "bert")
    assert problems(workflow(tmp_path / "w", gpt2)) == []
    assert problems(reading_workflow(tmp_path / "w", bert)) == []
    story, latency = problems(workflow(tmp_path / "w", bert))
    assert (
        story == "passes.story: the base is an encoder (bert), which writes no text; it takes ClassificationHead alone"
    )
    assert latency.startswith("evaluator.metrics.latency: measures the base, which is an encoder (bert)")
    content = workflow(tmp_path / "w", gpt2)
    content["passes"]["mood"]["target_modules"] = ["q_proj"]
    content["passes"]["export"] |= {"precision": "int4", "quantization": {"algorithm": "rtn"}}
    content["data_configs"][2]["pre_process_data_config"]["chat_template"] = True
    found = "\n".join(problems(content))
    assert "passes.mood.target_modules: 'q_proj' is no linear layer of the base; " in found
    assert "Valid: c_attn, c_fc, c_proj" in found
    assert "passes.export: quantization: algorithm is 'rtn', which is the builder's; for this base: " in found
    assert "passes.story.train_data_config: chat_template is on, but onnxruntime-genai applies it" in found


def save_package(folder: Path, kind: str, tasks: dict[str, str]) -> tuple[Path, dict[str, Path], Path]:
    """(base, PEFT folders by name, package) of a tiny model with random adapters."""
    base, sources = save_torch_model(folder / "base", kind), {}
    for name, task in tasks.items():
        sources[name] = save_adapter(folder / name, base, kind)
        settings = {"task": task, "labels": LABELS if task == "classification" else None, "max_length": 64}
        (sources[name] / "adapter.json").write_text(json.dumps(settings), encoding="utf-8")
    target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
    write_package(folder / "package", base_path=base, adapter_folders=sources, name="tiny", **target)
    return base, sources, folder / "package"


def expected_classes(base: Path, kind: str, adapter: Path, ids: list[int], position: int) -> np.ndarray:
    from safetensors.numpy import load_file

    row = np.array([ids], dtype=np.int64)
    hidden = torch_outputs(base, kind, row, np.ones_like(row), adapter)["hidden"]
    head = load_file(adapter / "adapter_model.safetensors")["base_model.model.score.weight"]
    return np.asarray(hidden[0, position] @ head.T)


def test_a_package_of_gpt2_classifies_and_generates(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    base, sources, package = save_package(tmp_path, "gpt2", {"mood": "classification", "story": "generation"})
    assert not (package / "genai_config.json").exists()
    model = MultiAdapterModel.load(package)
    assert model.manifest["engine"] == "onnxruntime"
    found = model.class_logits(SENTENCES[:5], "mood", batch_size=5)
    for text, logits in zip(SENTENCES[:5], found, strict=True):
        wanted = expected_classes(base, "gpt2", sources["mood"], model.tokenizer.encode(text).ids, -1)
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    for adapter in (None, "story"):
        reference = torch_base(base, "gpt2")
        if adapter is not None:
            reference = PeftModel.from_pretrained(reference, sources[adapter]).eval()
        ids = model.encode_prompt(SENTENCES[0], adapter)
        limits = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        wanted_ids = reference.generate(input_ids=torch.tensor([ids]), **limits)[0, len(ids) :].tolist()
        assert list(model.tokens(ids, adapter, 8, stop_at_eos=False)) == wanted_ids
    sampled = [model.generate(SENTENCES[0], "story", 8, temperature=1.0, seed=s, stop_at_eos=False) for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(PackageError, match="the prompt has 128 tokens, but must have 1 to 127"):
        list(model.tokens([5] * 128, None))


def test_merging_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """GPT-2 keeps weights (in, out): its square attn.c_proj would be merged the wrong way round without an error."""
    base, _, package = save_package(tmp_path, "gpt2", {})
    source = save_adapter(tmp_path / "square", base, "gpt2", target_modules=r".*\.attn\.c_proj")
    with pytest.raises(PackageError, match="its base is a GPT2LMHeadModel; merging is for the bases that"):
        merge_adapter(package, str(source), base, tmp_path / "merged", "square", {"labels": LABELS})
    assert not (tmp_path / "merged").exists()


def test_a_package_of_bert_classifies_and_writes_nothing(tmp_path: Path) -> None:
    base, sources, package = save_package(tmp_path, "bert", {"mood": "classification"})
    model = MultiAdapterModel.load(package)
    assert model.manifest["base"]["pooling"] == model.adapters["mood"]["pooling"] == "first"
    found = model.class_logits(SENTENCES[:5], "mood", batch_size=5)
    for text, logits in zip(SENTENCES[:5], found, strict=True):
        wanted = expected_classes(base, "bert", sources["mood"], model.tokenizer.encode(text).ids, 0)
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    rows = [model.tokenizer.encode(text).ids for text in SENTENCES[:5]]
    np.testing.assert_array_equal(PackageModel(package).class_logits(rows, "mood", batch_size=5), found)
    for call in (lambda: model.generate("Count"), lambda: model.logits(np.array([[3, 4]]))):
        with pytest.raises(PackageError, match="is an encoder: it classifies, and writes no text"):
            call()


def test_a_base_with_vocab_txt_alone_gets_a_tokenizer_json(tmp_path: Path) -> None:
    base = save_torch_model(tmp_path / "base", "bert")
    (base / "tokenizer.json").unlink()
    (base / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nlamp\n##s\n", encoding="utf-8")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
    write_package(tmp_path / "package", base_path=base, adapter_folders={}, name="tiny", **target)
    assert MultiAdapterModel.load(tmp_path / "package").tokenizer.encode("The lamps").ids == [2, 5, 6, 7, 3]


def run(folder: Path, content: dict[str, Any]) -> MultiAdapterModel:
    file = folder / "workflow.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run(["olive", "run", "--config", str(file)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return MultiAdapterModel.load(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_olive_run_on_gpt2(tmp_path: Path, precision: str) -> None:
    content = workflow(tmp_path, save_torch_model(tmp_path / "gpt2", "gpt2"))
    content["passes"]["export"]["precision"] = precision
    content["passes"]["mood"]["quantization"] = "nf4"  # bitsandbytes turns GPT-2's Conv1D round
    model = run(tmp_path, content)
    for entry in model.adapters.values():
        assert entry["parity"]["fp32"]["max_abs_difference"] <= 1e-3 and precision in entry["parity"]
    assert {result.label for result in model.classify(mood_data(1).texts, "mood")} <= {"bad", "good"}
    assert model.generate("Count the stairs", "story", max_new_tokens=4, stop_at_eos=False)


@pytest.mark.slow
def test_olive_run_on_bert(tmp_path: Path) -> None:
    content = reading_workflow(tmp_path, save_torch_model(tmp_path / "bert", "bert"))
    model = run(tmp_path, content)
    assert model.adapters["mood"]["parity"]["fp32"]["max_abs_difference"] <= 1e-3
    assert model.adapters["mood"]["metrics"]["accuracy"]["package"] is not None
    assert {result.label for result in model.classify(mood_data(1).texts, "mood")} <= {"bad", "good"}
