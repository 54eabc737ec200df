"""What both training passes do with Olive's model: find or train one adapter and note it in the model's attributes."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from data.examples import ClassificationData, GenerationData, MultiLabelData, config_content
from evaluators.intermediate_values import report
from passes.base_model import local_folder
from passes.teaching.asking import load_taught
from passes.training.continual import continued_data, earlier_folder
from passes.training.head_settings import HeadSettings
from passes.training.processes import launch_settings
from passes.training.settings import CHECKPOINTING, AdapterSettings
from passes.training.store import adapter_key, cache_folder, find_or_make, store_folder
from runtime.atomic_file import write_text
from runtime.errors import DataError
from runtime.manifest import base_fingerprint

ATTRIBUTE = "workspace_adapters"  # model attribute: {adapter name: folder in the adapter store}
PROCESSES = ("processes", "accelerate_config")  # options of where a training runs, not of what it learns
BASE_ATTRIBUTE = "workspace_base"  # model attribute of a package: the base folder that its adapters were trained on


def run_adapter_pass(
    model: Any,
    config: Any,
    task: type[ClassificationData] | type[GenerationData],
    head: HeadSettings | None = None,
    baselines: bool = False,
) -> Any:
    """Returns a copy of Olive's HfModel handler that carries one more adapter; trains it unless the store has it.

    `head` is for classification.

    Raises DataError when the data are of another kind than `task`, and OlivalError when training fails.
    """
    settings = AdapterSettings.from_config(config)
    base = local_folder(model.model_name_or_path)
    earlier = dict((model.model_attributes or {}).get(ATTRIBUTE, {}))
    load = partial(_load, task=task, base=base, trained={name: Path(folder) for name, folder in earlier.items()})
    own_data = train_data = load(config.train_data_config)
    start = earlier_folder(config.continues, earlier) if config.continues is not None else None
    if start is not None:
        train_data = continued_data(own_data, start, config.replay, load)
    validation_data = load(config.validation_data_config) if config.validation_data_config else None
    key = adapter_key(
        {
            "base": base_fingerprint(base),
            "task": task.__name__,
            "settings": _deciding(settings),
            "train_data": train_data.fingerprint,
            "validation_data": validation_data.fingerprint if validation_data else None,
            "version": config.version,
            **(head.key() if head else {}),  # nothing at its defaults
            **({"continues": start.name} if start is not None else {}),  # a name in the store is one content
        }
    )

    def make(folder: Path, checkpoints: Path) -> None:
        if launch_settings(settings) is not None:
            from passes.training.launch import Job, train_in_processes

            if settings.deployed is not None:
                from passes.training.deployed_base import quantized_base

                quantized_base(base, settings.deployed, cache_folder())  # once, for all of them
            job = Job(folder, base, settings, train_data, validation_data, head, checkpoints, start)
            return train_in_processes(job)
        from passes.training.train import train_adapter

        return train_adapter(folder, base, settings, train_data, validation_data, head, checkpoints, start)

    folder, reused = find_or_make(store_folder(), settings.adapter_name, key, make)
    if reused:
        print(f"train {settings.adapter_name}: unchanged, kept from an earlier run", file=sys.stderr)
        report({"stage": "training", "adapter": settings.adapter_name, "cached": True})
    else:
        print(f"train {settings.adapter_name}: adapter, curves and log are in {folder}", file=sys.stderr)
    if baselines and validation_data is not None and not isinstance(own_data, MultiLabelData):
        _add_baselines(folder, base, own_data, validation_data)
    if start is not None:
        from passes.training.continual_report import add_report

        stages = {stage["adapter"]: stage["validation_data"] for stage in config.stages or []}
        held_out = {name: load(data) if data else None for name, data in stages.items()}
        folders = {name: Path(earlier[name]) for name in stages} | {settings.adapter_name: folder}
        add_report(folder, base, folders, {**held_out, settings.adapter_name: validation_data}, config.replay)
    output = copy.deepcopy(model)
    attributes = dict(output.model_attributes or {})
    attributes[ATTRIBUTE] = {**attributes.get(ATTRIBUTE, {}), settings.adapter_name: str(folder.resolve())}
    output.model_attributes = attributes
    return output


def _deciding(settings: AdapterSettings) -> dict[str, Any]:
    """Settings that the result depends on. Checkpointing changes memory alone: a training that ran out goes on.

    Several processes train what one does, but for the order of sums and the numbers that dropout draws.
    """
    given = {name: value for name, value in settings.training_args.items() if name not in CHECKPOINTING}
    values = dataclasses.asdict(settings)
    return {**{name: values[name] for name in values if name not in PROCESSES}, "training_args": given}


def _add_baselines(
    folder: Path, base: Path, train_data: ClassificationData, validation_data: ClassificationData
) -> None:
    """Writes baselines.json beside a finished adapter, once; a run killed here loses no training.

    They depend on the base and the data alone, so all adapters of one task share them, beside the store.
    """
    file = folder / "baselines.json"
    if file.exists():
        return
    parts = [base_fingerprint(base), train_data.fingerprint, validation_data.fingerprint]
    shared = store_folder().with_name("baselines") / f"{adapter_key({'of': parts})[:16]}.json"
    if not shared.exists():
        from passes.training.baselines import classification_baselines

        print(f"baselines for {folder.name.rsplit('-', 1)[0]}: a head on the frozen base, TF-IDF", file=sys.stderr)
        scores = classification_baselines(base, train_data, validation_data)
        baselines = {**scores, "validation_data": validation_data.fingerprint}
        shared.parent.mkdir(parents=True, exist_ok=True)
        write_text(shared, json.dumps(baselines, indent=2) + "\n")
    write_text(file, shared.read_text(encoding="utf-8"))


def _load(
    data_config: Any, task: type[ClassificationData] | type[GenerationData], base: Path, trained: dict[str, Path]
) -> Any:
    data = load_taught(data_config, base, trained)
    if not isinstance(data, task):
        kind = {ClassificationData: "classification", GenerationData: "generation"}[task]
        name = config_content(data_config)["name"]
        raise DataError(
            f"data_configs.{name}: this pass takes data with pre_process_data_config.type '{kind}', "
            f"but got {type(data).__name__}"
        )
    return data
