"""Loads the data of a workflow before anything runs and says what is wrong with them for the passes that name them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.examples import ClassificationData, GenerationData, MultiLabelData, config_content, read_data, row_number
from data.json_schema import read_schema
from data.replay import mixing_problems, with_earlier_labels
from data.splits import find_duplicates
from data.teaching import Unanswered
from evaluators.metric_check import metric_adapter
from evaluators.quality import STRUCTURED, WRITTEN
from evaluators.structured import check_expected
from passes.answer_room import room_problems
from passes.base_model import context_length
from passes.continual_check import replayed_configs, stage_configs
from passes.graph.checks import engine_of
from passes.registration import task_of
from passes.teaching.teacher_check import teacher_problems, weights_of
from passes.training.early_stopping import metric_problems
from passes.training.loss_choice import content_sha256, data_problems
from passes.training.virtual_check import virtual_tokens
from runtime.errors import ConfigError, DataError, OlivalError
from runtime.prompts import check_template
from runtime.virtual_tokens import room_problem

logger = logging.getLogger(__name__)
Data = ClassificationData | GenerationData


def check_data(
    ours: list[tuple[str, Any]], tasks: dict[str, str], evaluator: Any, base: Path | None, base_fingerprint: str
) -> list[str]:
    """Problems of the data that passes and metrics name; each data config is loaded once.

    Args:
        ours: (name, Olive's pass configuration) of this workspace's passes; their `fingerprint` option is filled in
            with the sha256 of base and data, so that Olive's cache knows when one of them has changed.
        tasks: {adapter name: "classification" | "generation"}.
        evaluator: the workflow's evaluator, or None.
        base: the base's folder, or None when there is none to look at.
        base_fingerprint: see runtime.manifest.
    """
    loader = _Loader()
    exported = any(step.type.endswith("export") for _, step in ours)
    context = context_length(base) if base is not None else None
    training_data: dict[str, Data] = {}
    virtual = {step.config.get("adapter_name"): virtual_tokens(step.config) for _, step in ours}
    for name, step in ours:
        digest = hashlib.sha256(base_fingerprint.encode())
        found: dict[str, Data] = {}
        for option, config in step.config.items():
            if not option.endswith("data_config") or config is None:
                continue
            if isinstance(config, str):
                loader.problems.append(f"passes.{name}.{option}: there is no data config '{config}' in data_configs")
                continue
            data = loader.load(f"passes.{name}.{option}", config, task_of(step))
            if data is not None:
                found[option] = data
                digest.update(loader.fingerprint(config).encode())
            if option == "train_data_config":
                loader.problems += loader.held_out(f"passes.{name}.{option}", config)
            else:
                loader.problems += _altered_problems(f"passes.{name}.{option}", config, data)
        replay, stages = replayed_configs(step.config), stage_configs(step.config)
        replayed = loader.load_all(f"passes.{name}.replay.data_configs", replay, task_of(step))
        loader.load_all(f"passes.{name}.continues", stages, task_of(step))
        for config in (*replay, *stages):
            digest.update(loader.fingerprint(config).encode())
        loss = step.config.get("loss")
        digest.update(content_sha256(loss).encode())
        step.config["fingerprint"] = digest.hexdigest()
        loader.problems += [
            p
            for option, data in found.items()
            for p in _length_problems(f"passes.{name}.{option}", data, context, virtual_tokens(step.config))
        ]
        train, validation = found.get("train_data_config"), found.get("validation_data_config")
        if train is not None:
            earlier = training_data.get(step.config.get("continues") or "")
            for other, where in ((earlier, "continues"), *((data, "replay.data_configs") for data in replayed)):
                if other is not None and isinstance(other, ClassificationData) == isinstance(train, ClassificationData):
                    mixed = [f"passes.{name}.{where}: {other.source}: {p}" for p in mixing_problems(train, other)]
                    loader.problems += mixed or _unknown_labels(f"passes.{name}.{where}", train, earlier, other)
            if isinstance(earlier, ClassificationData):
                train = with_earlier_labels(train, earlier.label_names)
            training_data.setdefault(step.config.get("adapter_name"), train)
            where = f"passes.{name}.train_data_config"
            if isinstance(train, ClassificationData):
                several = isinstance(train, MultiLabelData)
                loader.problems += [f"passes.{name}.{p}" for p in data_problems(loss, train.label_names, several)]
                stopping = metric_problems(step.config.get("early_stopping"), several)
                loader.problems += [f"passes.{name}.{p}" for p in stopping]
                if several and (step.config.get("training_args") or {}).get("label_smoothing_factor"):
                    loader.problems.append(
                        f"passes.{name}.training_args.label_smoothing_factor: is for one label a text, but the data "
                        "have several"
                    )
            if exported:
                loader.problems += [f"{where}: {p}, for the package to fill it" for p in check_template(train.template)]
            if exported and train.template == "chat" and base is not None and engine_of(base) == "onnxruntime":
                loader.problems.append(
                    f"{where}: chat_template is on, but onnxruntime-genai applies it, and does not know this base; "
                    "use a prompt `template` instead"
                )
        loader.problems += _pair_problems(f"passes.{name}.validation_data_config", train, validation)
        if not step.type.endswith("export") and isinstance(step.config.get("adapter_name"), str):
            loader.trained.setdefault(step.config["adapter_name"], task_of(step))
    metric_options = (evaluator.type_args or {}).get("metric_options") or {} if evaluator is not None else {}
    validations = [step.config.get("validation_data_config") for _, step in ours]
    validated = {_key(config) for config in validations if config is not None and not isinstance(config, str)}
    for metric in evaluator.metrics if evaluator is not None else []:
        adapter = metric_adapter(metric, tasks, metric_options) or ""
        if metric.type in ("accuracy", "custom") and metric.data_config is not None and adapter in tasks:
            where = f"evaluator.metrics.{metric.name}.data_config"
            data = loader.load(where, metric.data_config, tasks[adapter])
            loader.problems += _altered_problems(where, metric.data_config, data)
            loader.problems += loader.untrue(where, metric.data_config)
            compared = _label_problems if _key(metric.data_config) in validated else _pair_problems
            loader.problems += compared(where, training_data.get(adapter), data)
            loader.problems += _length_problems(where, data, context, virtual.get(adapter, 0))
            if isinstance(data, GenerationData) and base is not None:
                options = metric_options.get(metric.name, {})
                found_problems = room_problems(options, data, base, context, virtual.get(adapter, 0))
                loader.problems += [f"evaluator.metric_options.{metric.name}.{p}" for p in found_problems]
                loader.problems += loader.unstructured(where, metric, options.get("schema"))
            written = [str(sub.name) for sub in metric.sub_types if sub.name in WRITTEN]
            if written and isinstance(data, GenerationData) and not all(data.prompts):
                loader.problems.append(f"{where}: has rows without a prompt, so no answer for {', '.join(written)}")
    return list(dict.fromkeys(loader.problems))


class _Loader:
    """Loads each data config once and collects what goes wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.loaded: dict[str, Data | Unanswered | None] = {}
        self.examples: dict[str, Data | None] = {}
        self.trained: dict[str, str] = {}  # {adapter name: task} of those that may be a teacher by now

    def load(self, where: str, config: Any, task: str) -> Data | None:
        """The data, or None after noting the problem that they cannot be had or are for another task.

        Rows that a teacher answers come as they will be, but with other answers: here it is not asked.
        """
        key, name = _key(config), config_content(config)["name"]
        if key not in self.loaded:
            self.loaded[key], self.examples[key] = None, None
            try:
                read = read_data(config)
                self.examples[key] = read.example() if isinstance(read, Unanswered) else read
                self.loaded[key] = read
            except OlivalError as error:
                lines = error.problems if isinstance(error, ConfigError) else [str(error)]
                self.problems += [f"data_configs.{name}: {p.removeprefix(f'data config {name!r}: ')}" for p in lines]
        asked, data = self.loaded[key], self.examples[key]
        if isinstance(asked, Unanswered):
            self.problems += [f"data_configs.{name}: {problem}" for problem in teacher_problems(asked, self.trained)]
        kind = "classification" if isinstance(data, ClassificationData) else "generation"
        if data is not None and kind != task:
            own = (config_content(config).get("pre_process_data_config") or {}).get("type")
            self.problems.append(
                f"{where}: '{name}' has pre_process_data_config.type '{own}', but data for {task} are needed"
            )
            return None
        return data

    def load_all(self, where: str, configs: Iterable[Any], task: str) -> list[Data]:
        """Those of the data that can be had."""
        return [data for config in configs if (data := self.load(where, config, task)) is not None]

    def fingerprint(self, config: Any) -> str:
        """Of data that are loaded: of their content, and of whom and what a teacher is asked."""
        read = self.loaded[_key(config)]
        if isinstance(read, Unanswered):
            return read.fingerprint + weights_of(read.teacher)
        return read.fingerprint if read is not None else ""

    def unstructured(self, where: str, metric: Any, schema: Any) -> list[str]:
        """What is wrong with expected answers that are to be JSON, and to keep a schema."""
        read = self.loaded[_key(metric.data_config)]
        if not isinstance(read, GenerationData) or not any(sub.name in STRUCTURED for sub in metric.sub_types):
            return []
        try:
            rules = read_schema(Path(schema)) if isinstance(schema, str) else None
        except DataError:  # the check of metrics has said it
            return []
        try:
            check_expected(read.responses, rules)
        except DataError as error:
            return [f"{where}: {read.source}: {line}" for line in str(error).splitlines()]
        return []

    def held_out(self, where: str, config: Any) -> list[str]:
        """The problem that the rows to learn are those on which a teacher is measured."""
        read = self.loaded[_key(config)]
        if not isinstance(read, Unanswered) or read.truth is None:
            return []
        name = config_content(config)["name"]
        return [f"{where}: '{name}' has true labels (`label`), so its rows are for metrics; leave `label` out to learn"]

    def untrue(self, where: str, config: Any) -> list[str]:
        """The problem that the rows of a metric would have a teacher's labels."""
        read = self.loaded[_key(config)]
        if not isinstance(read, Unanswered) or read.truth is not None:
            return []
        name = config_content(config)["name"]
        return [
            f"{where}: '{name}' is answered by a teacher, but scores need true labels: name their column in its `label`"
        ]


def _key(config: Any) -> str:
    return json.dumps(config_content(config), sort_keys=True, default=str)


def _unknown_labels(where: str, train: Data, earlier: Data | None, replayed: Data) -> list[str]:
    """Labels of replayed rows that neither the earlier adapter nor the new data know."""
    if not isinstance(earlier, ClassificationData):
        return []
    return _label_problems(where, with_earlier_labels(train, earlier.label_names), replayed)


def _altered_problems(where: str, config: Any, data: Data | None) -> list[str]:
    """Held-out rows that are augmented or balanced."""
    if data is None or not data.row_numbers:
        return []
    name = config_content(config)["name"]
    return [
        f"{where}: '{name}' has augmentation or balance, which are for training; held-out rows must be those that will "
        "come, so name a data config without them"
    ]


def _pair_problems(where: str, train: Data | None, validation: Data | None) -> list[str]:
    """Labels that only the held-out rows have; rows that stand in both are warned of."""
    if train is None or validation is None:
        return []
    texts = [d.texts if isinstance(d, ClassificationData) else _joined(d) for d in (train, validation)]
    if pairs := find_duplicates(*texts):
        first, second = pairs[0]
        logger.warning(
            "%s: %d of %d rows also stand in the training data (training row %d and held-out row %d, for one); "
            "scores look too good",
            where,
            len(pairs),
            len(texts[1]),
            row_number(train, first),
            row_number(validation, second),
        )
    return _label_problems(where, train, validation)


def _joined(data: GenerationData) -> list[str]:
    return [f"{prompt}\n{response}" for prompt, response in zip(data.prompts, data.responses, strict=True)]


def _length_problems(where: str, data: Data | None, context: int | None, virtual: int) -> list[str]:
    if data is None or context is None or data.max_length + virtual <= context:
        return []
    if virtual:
        return [f"{where}: {room_problem(virtual, data.max_length, context)}"] if virtual <= context // 2 else []
    return [f"{where}: max_length is {data.max_length}, but the base's context is {context}"]


def _label_problems(where: str, train: Data | None, data: Data | None) -> list[str]:
    if isinstance(train, ClassificationData) and isinstance(data, ClassificationData):
        if isinstance(train, MultiLabelData) != isinstance(data, MultiLabelData):
            return [f"{where}: multi_label must be as in the training data"]
        try:
            data.check_labels(train.label_names)
        except OlivalError as error:
            return [f"{where}: {error}"]
    return []
