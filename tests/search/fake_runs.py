"""Runs that take milliseconds in place of `olive run`: they read a trial's workflow and write what a run would."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search.olive_run import Exit
from search.space import Space
from search.space_file import read_space

SECONDS = 0.02  # of a run


def workflow(**changes: Any) -> dict[str, Any]:
    """A workflow with two adapters, an export and every kind of metric; `changes` are top-level keys."""
    metrics = [
        {"name": "spam", "type": "accuracy", "sub_types": [{"name": "accuracy_score", "goal": {"type": "threshold"}}]},
        {"name": "blurbs", "type": "accuracy", "sub_types": [{"name": "perplexity"}]},
        {"name": "latency", "type": "latency", "sub_types": [{"name": "p50"}]},
        {"name": "size_on_disk", "type": "size_on_disk", "sub_types": [{"name": "bytes"}]},
    ]
    spam = {"type": "ClassificationHead", "adapter_name": "spam", "rank": 8, "training_args": {"learning_rate": 0.001}}
    content = {
        "workflow_id": "fake",
        "passes": {
            "spam": spam,
            "blurbs": {"type": "AdapterFineTune", "adapter_name": "blurbs", "rank": 8},
            "export": {"type": "MultiAdapterExport", "precision": "int4", "quantization": {"block_size": 32}},
        },
        "evaluators": {"all": {"type": "OlivalEvaluator", "metrics": metrics}},
        "evaluator": "all",
        "data_configs": [{"name": "spam_train", "max_samples": 10}],
        "cache_dir": "cache",
        "output_dir": "models/fake",
    }
    return content | changes


def make_space(folder: Path, **changes: Any) -> Space:
    """A space over that workflow, read from files in `folder`; `changes` are top-level keys of the space file."""
    return read_space(write_space(folder, **changes))


def write_space(folder: Path, **changes: Any) -> Path:
    """The space file alone; a change to None leaves the key out."""
    (folder / "fake.json").write_text(json.dumps(workflow(cache_dir=str(folder / "cache"))), encoding="utf-8")
    content: dict[str, Any] = {
        "name": "fake",
        "workflow": str(folder / "fake.json"),
        "parameters": {
            "passes.spam.training_args.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
            "passes.spam.rank": {"type": "int", "low": 2, "high": 32, "step": 2},
            "precision": {
                "path": "passes.export.precision", "type": "categorical", "choices": ["int4", "int8", "fp32"],
            },
            "passes.export.quantization.block_size": {
                "type": "categorical", "choices": [16, 32, 64], "when": {"precision": "int4"}, "inactive": "remove",
            },
        },
        "objectives": [{"metric": "spam-accuracy", "direction": "maximize"}],
        "sampler": {"type": "random"},
        "trials": 6,
        "output_dir": str(folder / "results"),
    } | changes  # fmt: skip
    file = folder / "space.json"
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
    return file


def scores(content: dict[str, Any]) -> dict[str, float]:
    """What the fake run measures: a smooth function of the values, best at a learning rate of 0.01 and rank 16."""
    spam, export = content["passes"]["spam"], content["passes"]["export"]
    far = abs(math.log10(spam["training_args"]["learning_rate"]) + 2) + abs(spam["rank"] - 16) / 40
    bits = {"int4": 4 + 16 / export.get("quantization", {}).get("block_size", 1e9), "int8": 8, "fp32": 32}
    loss = {"int4": 0.02, "int8": 0.001, "fp32": 0.0}[export["precision"]]
    return {
        "accuracy": 0.99 - 0.1 * far - loss,
        "tpot": bits[export["precision"]] / 4,
        "bytes": 1e6 * bits[export["precision"]],
    }


def fake_run(workflow: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
    """Three validations, then the evaluation."""
    content = json.loads(workflow.read_text(encoding="utf-8"))
    found = scores(content)
    for step in (1, 2, 3):
        time.sleep(SECONDS / 3)
        accuracy = found["accuracy"] * (1 - 0.3 / step)
        line = {
            "stage": "training",
            "adapter": "spam",
            "step": step,
            "values": {"accuracy": accuracy, "loss": 1 - accuracy},
        }
        with values.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if reason := stop():
            return Exit(143, reason, 1)
    write_evaluation(content, found)
    return Exit(0, None, 1)


def write_evaluation(content: dict[str, Any], found: dict[str, float]) -> None:
    """evaluation.json in the workflow's output_dir."""
    quality = {
        "adapter": "spam",
        "metric": "accuracy",
        "pytorch": 0.5,
        "package": found["accuracy"],
        "low": 0.1,
        "high": 1.0,
    }
    evaluation = {
        "quality": [quality],
        "latency": [{"adapter": None, "metric": "tpot_p50_ms", "pytorch": 9.0, "package": found["tpot"]}],
        "sizes": [{"part": "total", "pytorch": 1, "package": found["bytes"]}],
    }
    package = Path(content["output_dir"])
    package.mkdir(parents=True)
    (package / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
