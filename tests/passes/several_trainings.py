"""Trainings that one process and two must end alike; `python -m tests.passes.several_trainings FOLDER BASE NAME...`.

Where torch's launcher starts it several times, the processes train together.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from data.examples import ClassificationData, GenerationData, MultiLabelData
from passes.training.head_settings import HeadSettings
from passes.training.settings import AdapterSettings
from tests.passes.conftest import mood_data, story_data

Case = tuple[AdapterSettings, Any, HeadSettings | None]


def moods(rows: int = 13) -> ClassificationData:
    """An odd number: the last batch of four has one row, which one of two processes computes."""
    data = mood_data(2)
    return dataclasses.replace(data, texts=data.texts[:rows], labels=data.labels[:rows])


def stories(rows: int = 11) -> GenerationData:
    data = story_data()
    return dataclasses.replace(data, prompts=(3 * data.prompts)[:rows], responses=(3 * data.responses)[:rows])


def several_labels() -> MultiLabelData:
    names = ["good", "bad", "short"]
    data = moods()
    sets = [
        [label, "short"] if len(text) < 22 else [label] for text, label in zip(data.texts, data.labels, strict=True)
    ]
    return MultiLabelData(data.texts, [" ".join(names) for names in sets], names, label_sets=sets)


def options(method: str = "lora", training: dict[str, Any] | None = None, **others: Any) -> AdapterSettings:
    steps = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, **(training or {})}
    return AdapterSettings("test", method, rank=4, training_args=steps, **others)


def cases() -> dict[str, Case]:
    """Settings, data and head; all without dropout, which draws other numbers in each process."""
    smoothed = {"label_smoothing_factor": 0.1, "max_grad_norm": 0.1}
    return {
        "generation": (options(), stories(), None),
        "accumulation": (options(training={"gradient_accumulation_steps": 2}), stories(), None),
        "three rows": (options(training={"per_device_train_batch_size": 3, **smoothed}), stories(10), None),
        "random order": (options(training={"train_sampling_strategy": "random"}), stories(), None),
        "checkpointing": (options(training={"gradient_checkpointing": True}), stories(), None),
        "virtual tokens": (options("prompt", virtual_tokens=4), stories(), None),
        "nf4": (options("qlora", quantization="nf4"), stories(), None),
        "classification": (options(), moods(), None),
        "accumulated classes": (options(training={"gradient_accumulation_steps": 2}), moods(), None),
        "all weights": (options("full", training={"learning_rate": 1e-3}), moods(), None),
        "bottlenecks": (options("bottleneck", bottleneck_size=8), moods(), None),
        "contrastive": (options(), moods(), HeadSettings(loss="contrastive")),
        "weighted focal": (
            options(),
            moods(),
            HeadSettings(loss={"type": "focal", "class_weights": {"bad": 3.0}}, pooling="mean"),
        ),
        "several labels": (options(), several_labels(), HeadSettings(loss="binary_cross_entropy")),
        "best weights": (
            options(training={"num_train_epochs": 4}, early_stopping={"metric": "loss", "patience": 1}),
            stories(),
            None,
        ),
    }


def train_all(folder: Path, base: Path, names: list[str]) -> None:
    """Writes an adapter to folder/NAME for each name of a case."""
    from passes.training.train import train_adapter

    chosen = cases()
    for name in names:
        settings, data, head = chosen[name]
        (folder / name).mkdir(parents=True, exist_ok=True)
        train_adapter(folder / name, base, settings, data, data, head, folder / f"{name} checkpoints")


def sharded_on_cpus() -> None:
    """Has accelerate believe that there are GPUs, for it shards no model on CPUs (PyTorch does)."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    train: Any = importlib.import_module("passes.training.train")

    def backend(*_: Any) -> tuple[str, Any]:
        return "gloo", DistributedType.MULTI_GPU

    arguments = train.training_arguments

    def on_gpus(settings: AdapterSettings, *others: Any) -> Any:
        given = {**settings.training_args, "use_cpu": False}
        return arguments(dataclasses.replace(settings, training_args=given), *others)

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = backend
    train.training_arguments = on_gpus


def stopped(folder: Path, base: Path, name: str) -> None:
    """Trains a case, and stops after its fourth step."""
    from passes.training.progress import ProgressBar

    before = ProgressBar.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt
        before(self, args, state, control, **others)

    ProgressBar.on_step_end = stop  # type: ignore[method-assign]
    try:
        train_all(folder, base, [name])
    except KeyboardInterrupt:
        ProgressBar.on_step_end = before  # type: ignore[method-assign]


def main(folder: Path, base: Path, names: list[str]) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP"):
        sharded_on_cpus()
        stopped(folder, base, names[0])
    train_all(folder, base, names)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
