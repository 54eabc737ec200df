"""Data, pass runs and whole workflows on the tiny model of tests/conftest.py."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.examples import ClassificationData, GenerationData

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = [
    "The soup was warm and kind.",
    "What a wonderful evening!",
    "I laughed at the little film.",
    "Seven blue boats!",
]
BAD = ["Terrible bread.", "A dull story; I left.", "The waiter was cold and hard to find.", "Our train was late again."]
PAIRS = [
    ("Count the stairs", "seven, eight, nine."),
    ("Where is the boat", "Nobody in the village had seen it, so we walked along the river instead."),
    ("What sings", "The kettle."),
    ("Two plus two", "is four, and four plus four is eight."),
]


def mood_data(repeats: int = 2, **settings: Any) -> ClassificationData:
    """Rows of two classes that words tell apart; settings as in ClassificationData."""
    texts, labels = [*GOOD, *BAD] * repeats, (["good"] * len(GOOD) + ["bad"] * len(BAD)) * repeats
    return ClassificationData(texts, labels, ["bad", "good"], **settings)


def story_data(**settings: Any) -> GenerationData:
    """Four prompts with responses of different lengths; settings as in GenerationData."""
    return GenerationData([prompt for prompt, _ in PAIRS], [response for _, response in PAIRS], **settings)


def write_mood_csv(file: Path, texts: list[str] | None = None, labels: list[str] | None = None) -> Path:
    """A csv file with the columns text and label; the rows of mood_data unless others are given."""
    rows = mood_data()
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *zip(texts or rows.texts, labels or rows.labels, strict=True)])
    return file


def write_story_jsonl(file: Path) -> Path:
    """A jsonl file with the columns prompt and response: PAIRS."""
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in PAIRS]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def data_config(name: str, file: Path, kind: str = "classification", **options: Any) -> dict[str, Any]:
    """An Olive data config for one of the files above."""
    return {
        "name": name,
        "user_script": str(REPOSITORY / "register.py"),
        "load_dataset_config": {"type": "rows", "data_files": str(file)},
        "pre_process_data_config": {"type": kind, "max_length": 64, **options},
    }


def adapter_step(kind: str, name: str, data: str, **options: Any) -> dict[str, Any]:
    """A training pass of a workflow: three steps of one small batch unless options say otherwise."""
    step = {"type": kind, "adapter_name": name, "train_data_config": f"{data}_train", "rank": 4}
    training = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    return {**step, "training_args": training, **options}


def pass_config(**values: Any) -> Any:
    """What Olive gives to a training pass: the options that both have, at their defaults unless given."""
    from passes.training.settings import adapter_options

    defaults = {name: option.default_value for name, option in adapter_options().items()}
    return SimpleNamespace(**{**defaults, "adapter_name": "test", **values})


def workflow(folder: Path, base: Path) -> dict[str, Any]:
    """A workflow with a classification adapter "mood", a generation adapter "story" and their package in folder/out.

    The data files, the cache and the output lie in `folder`. Metrics: one for each adapter, latency, size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mood, story = write_mood_csv(folder / "mood.csv"), write_story_jsonl(folder / "story.jsonl")
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "workflow_id": "tiny",
        "input_model": {"type": "HfModel", "model_path": str(base)},
        "systems": {"target": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [
            data_config("mood_train", mood),
            data_config("mood_validation", mood),
            data_config("story_train", story, "generation"),
        ],
        "passes": {
            "mood": adapter_step("ClassificationHead", "mood", "mood", validation_data_config="mood_validation"),
            "story": adapter_step("AdapterFineTune", "story", "story"),
            "export": {"type": "MultiAdapterExport", "name": "tiny", "precision": "fp32", "threads": 2},
        },
        "evaluators": {
            "all": {
                "type": "OlivalEvaluator",
                "metric_options": {"latency": {"prompt_tokens": 8, "new_tokens": 2}},
                "metrics": [
                    {
                        "name": "mood",
                        "type": "accuracy",
                        "data_config": "mood_validation",
                        "sub_types": [{"name": "accuracy_score", "priority": 1}],
                    },
                    {
                        "name": "story",
                        "type": "accuracy",
                        "data_config": "story_train",
                        "sub_types": [{"name": "perplexity", "priority": 2, "higher_is_better": False}],
                    },
                    {
                        "name": "latency",
                        "type": "latency",
                        "sub_types": [{"name": "p50", "priority": 3}],
                    },
                    {"name": "size_on_disk", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 4}]},
                ],
            }
        },
        "evaluator": "all",
        "target": "target",
        "host": "target",
        "evaluate_input_model": False,
        "log_severity_level": 2,
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }


@pytest.fixture
def tiny_workflow(tmp_path: Path, tiny_llama_path: Path) -> dict[str, Any]:
    """`workflow` in the test's own folder."""
    return workflow(tmp_path, tiny_llama_path)


@pytest.fixture
def run_pass(tmp_path: Path) -> Callable[..., Any]:
    """Runs a pass of this workspace on an Olive handler: ``run_pass("ClassificationHead", handler, options)``."""

    def run(kind: str, handler: Any, options: dict[str, Any]) -> Any:
        from olive.package_config import OlivePackageConfig
        from olive.passes.olive_pass import create_pass_from_dict

        from passes.registration import register

        register()
        table = OlivePackageConfig.load_default_config()
        step = create_pass_from_dict(table.import_pass_module(kind), dict(options), disable_search=True)
        return step.run(handler, str(tmp_path / "output" / kind))

    return run
