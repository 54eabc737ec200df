"""What the comparison with stock Olive's training runs and counts; one pair is trained, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.training_speed import AS_TEXT, Case, markdown, measure, quickstart_case, stock_workflow, stories_case
from benchmark.training_speed import summary as summary_of
from runtime.errors import DataError
from tests.passes.conftest import data_config, write_mood_csv


@pytest.mark.parametrize("name", AS_TEXT)
def test_both_sides_train_alike(name: str) -> None:
    """Rank, epochs and batch size of quickstart's pass; no validation; Olive takes both workflows."""
    from olive.workflows.run.config import RunConfig

    from passes.registration import register

    register()
    case = quickstart_case(name)
    ours, stock = case.workflow, stock_workflow(case)
    (step,), (lora,) = ours["passes"].values(), stock["passes"].values()
    assert "validation_data_config" not in step and "eval_data_config" not in lora
    assert lora["type"] == "LoRA" and lora["r"] == step["rank"]
    assert lora["training_args"] == {
        "per_device_train_batch_size": 16,
        "num_train_epochs": step["training_args"]["num_train_epochs"],
    }
    (mine,), (theirs,) = ours["data_configs"], stock["data_configs"]
    assert mine["load_dataset_config"]["data_files"] == theirs["load_dataset_config"]["data_files"]
    assert stock["input_model"] == ours["input_model"]
    for workflow in (ours, stock):
        RunConfig.parse_file_or_obj(workflow)


def test_the_stories_case() -> None:
    case = stories_case(Path("models/x"), Path("data/y.csv"))
    (step,) = case.workflow["passes"].values()
    assert "quantization" not in step and step["training_args"]["num_train_epochs"] == 1
    stock = stock_workflow(case, "float32")
    assert stock["input_model"]["model_path"] == "models/x"
    assert stock["data_configs"][0]["load_dataset_config"]["data_files"] == "data/y.csv"
    assert stock["passes"]["finetune"]["torch_dtype"] == "float32"
    assert "torch_dtype" not in stock_workflow(case)["passes"]["finetune"]


def test_an_unknown_case() -> None:
    with pytest.raises(DataError, match=r"'spma' is unknown. Valid: spam"):
        quickstart_case("spma")


def pair(ours: float, stock: float, done: int = 4) -> dict[str, Any]:
    return {
        "ours": {"seconds": ours, "cpu_seconds": ours * 2, "done": 9, "steps": 9},
        "stock": {"seconds": stock, "cpu_seconds": stock, "done": done, "steps": 4},
    }


def test_ratios_are_within_a_round() -> None:
    found = summary_of([pair(1, 4), pair(10, 50), pair(2, 6)])
    assert found["seconds"] == {"median": 4, "low": 3, "high": 5}
    assert found["cpu_seconds"] == {"median": 2, "low": 1.5, "high": 2.5}
    assert not found["stopped"]
    pairs = [pair(1, 6), pair(1, 7, done=2)]
    stopped = summary_of(pairs)
    assert stopped["stopped"]
    table = markdown({"cases": {"spam": {"rounds": pairs, **stopped}}})
    assert "| spam | 1.0 | 9 | 6.5 | 2 to 4 of 4 | > 6.5 (6.0 to 7.0) | > 3.2 (3.0 to 3.5) |" in table


@pytest.mark.slow
def test_one_pair_is_trained(tmp_path: Path, tiny_llama_path: Path) -> None:
    """Stock Olive's sequences have 1,024 tokens, and it is stopped after a step that takes too long."""
    texts = [f"Nobody in the village had seen the blue boat number {i} again." for i in range(120)]
    rows = write_mood_csv(tmp_path / "mood.csv", texts, ["good", "bad"] * 60)
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    step = {"type": "ClassificationHead", "adapter_name": "mood", "train_data_config": "mood_train", "rank": 4}
    training = {"per_device_train_batch_size": 2, "num_train_epochs": 1}
    workflow = {
        "workflow_id": "tiny",
        "input_model": {"type": "HfModel", "model_path": str(tiny_llama_path)},
        "systems": {"target": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [data_config("mood_train", rows)],
        "passes": {"mood": {**step, "training_args": training}},
        "target": "target",
        "host": "target",
        "evaluate_input_model": False,
    }
    (results,) = measure([Case("mood", workflow, AS_TEXT["spam"])], 1, stop_at=1e-3, dtype="float32")
    (found,) = results["cases"]["mood"]["rounds"]
    assert found["ours"]["rows"] == 120 and found["ours"]["done"] == found["ours"]["steps"] == 60
    assert found["ours"]["run_seconds"] > found["ours"]["seconds"] > 0
    assert found["stock"]["done"] == 1 < found["stock"]["steps"] and found["stock"]["run_seconds"] is None
    assert 2 < found["stock"]["rows"] < 20  # joined rows
    assert found["stock"]["trainable"] < found["ours"]["trainable"]
    assert results["cases"]["mood"]["stopped"] and {"torch", "olive-ai"} <= results["versions"].keys()
    json.dumps(results, allow_nan=False)
