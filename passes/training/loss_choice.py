"""Reads the option `loss`: a name, {"type": name, ...options}, or "file.py:Class" for a user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.base_model import local_folder
from passes.training.teacher import teacher_labels
from runtime.errors import ConfigError, OlivalError, nearest
from runtime.manifest import base_fingerprint

if TYPE_CHECKING:
    from torch import nn

Choice = str | dict[str, Any]
DEFAULT = "cross_entropy"
BINARY = "binary_cross_entropy"  # the default where a text has several labels
BALANCED = "balanced"
# name -> its options with their defaults; the second and third are the first with other defaults
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"class_weights": None, "label_smoothing": 0.0},
    "class_weighted": {"class_weights": BALANCED, "label_smoothing": 0.0},
    "label_smoothing": {"class_weights": None, "label_smoothing": 0.1},  # 0.1: Szegedy et al. 2016
    "focal": {"gamma": 2.0, "class_weights": None},  # 2: the best of Lin et al. 2017
    "binary_cross_entropy": {"class_weights": None},
    "contrastive": {"margin": 1.0, "weight": 0.5},
    "distillation": {"teacher": None, "temperature": 2.0, "weight": 0.5},
}
# option -> whether a value is right, and what is
_RANGES: dict[str, tuple[Any, str]] = {
    "label_smoothing": (lambda v: 0 <= v < 1, "0 <= label_smoothing < 1"),
    "gamma": (lambda v: v >= 0, "gamma >= 0"),
    "temperature": (lambda v: v > 0, "temperature > 0"),
    "margin": (lambda v: 0 < v <= 2, "0 < margin <= 2"),
    "weight": (lambda v: 0 < v < 1, "0 < weight < 1"),
}


def loss_problems(choice: Choice) -> list[str]:
    """What is wrong with the option, a line each that starts with its name. A user's file is imported and its class
    made, so that its own errors show here."""
    name, options = _parts(choice)
    if not isinstance(name, str):
        return [f"loss.type: is required; {nearest('', LOSSES)}, or file.py:Class"]
    if _is_own(name):
        try:
            _own_loss(name, options)
        except ConfigError as error:
            return error.problems
        return []
    if name not in LOSSES:
        return [f"loss: '{name}' is unknown; {nearest(name, LOSSES)}, or file.py:Class"]
    problems = []
    for key, value in options.items():
        if key not in LOSSES[name]:
            problems.append(f"loss.{key}: unknown option of {name}; {nearest(key, LOSSES[name])}")
        elif key == "class_weights":
            problems += _weights_problems(value)
        elif key == "teacher":
            problems += _teacher_problems(value)
        elif not _is_number(value) or not _RANGES[key][0](value):
            problems.append(f"loss.{key}: {_RANGES[key][1]} must hold, but got {value!r}")
    if name == "distillation" and "teacher" not in options:
        problems.append("loss.teacher: is required, the folder or the repository of a classifier of transformers")
    return problems


def data_problems(choice: Any, label_names: Sequence[str], multi_label: bool) -> list[str]:
    """What is wrong with a loss for the training data: labels that `class_weights` names and they do not have, a
    teacher with other labels than these, a loss that is for one label a text where `multi_label` says there are more.

    The option may be wrong; what `loss_problems` says of it is left to that. None is the default.
    """
    name, options = _parts(choice if choice is not None else DEFAULT)
    if isinstance(name, str) and name in LOSSES and multi_label != (name == BINARY):
        if not multi_label:
            return [f"loss: '{name}' is for data with multi_label: true"]
        if options or name != DEFAULT:
            return [
                f"loss: '{name}' is for one label a text, but the data have several; Valid: {BINARY}, file.py:Class"
            ]
    if name == "distillation" and not loss_problems(choice):
        labels = teacher_labels(local_folder(options["teacher"]))
        if sorted(labels) != sorted(label_names):
            return [f"loss.teacher: its labels are {', '.join(labels)}, but those of the data {', '.join(label_names)}"]
    weights = options.get("class_weights")
    return [
        f"loss.class_weights: unknown label {label!r}; {nearest(label, label_names)}"
        for label in (weights if isinstance(weights, dict) else {})
        if label not in label_names
    ]


def loss_key(choice: Choice) -> dict[str, Any] | None:
    """What decides the loss, defaults filled in: for cache keys. None for the default; a file counts by its content.

    Two ways to say one loss have one key.
    """
    name, options = _parts(choice)
    if _is_own(name):
        return {"type": name, **options, "file_sha256": content_sha256(choice)}
    values = {**LOSSES[name], **options}
    if name == "distillation":
        values["teacher"] = content_sha256(choice)
    if name in ("class_weighted", "label_smoothing"):
        name = DEFAULT
    return None if (name, values) == (DEFAULT, LOSSES[DEFAULT]) else {"type": name, **values}


def teacher_of(choice: Choice) -> Path | None:
    """The teacher's folder of a distillation, None for other losses. Raises OlivalError when there is none."""
    name, options = _parts(choice)
    return local_folder(options["teacher"]) if name == "distillation" else None


def content_sha256(choice: Any) -> str:
    """sha256 (hex) of what the option names outside the workflow: a user's file, or a teacher's weights.

    "" where the option, which may be wrong, names nothing that is there.
    """
    name, options = _parts(choice)
    if name == "distillation":
        return "" if loss_problems(choice) else base_fingerprint(local_folder(options["teacher"]))
    file = Path(name.rpartition(":")[0]) if isinstance(name, str) and _is_own(name) else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else ""


def make_loss(
    choice: Choice, labels: Sequence[Any], label_names: Sequence[str], multi_label: bool = False
) -> nn.Module:
    """The loss as a module that takes logits (batch, classes), labels (batch,) and features (batch, hidden).

    Args:
        choice: an option without problems.
        labels: class of each row that is trained on, or its classes, from which balanced weights are made.
        label_names: in the order of the logits.
        multi_label: the loss takes labels (batch, classes) of 0 and 1.
    """
    import torch

    from passes.training.losses import (
        BinaryCrossEntropy,
        ContrastiveLoss,
        CrossEntropy,
        DistillationLoss,
        FocalLoss,
        balanced_positives,
        balanced_weights,
    )

    name, options = _parts(choice)
    if _is_own(name):
        return _own_loss(name, options)
    if multi_label:
        name = BINARY
    values = {**LOSSES[name], **options}
    values.pop("teacher", None)  # its logits come with each batch
    weights = values.pop("class_weights", None)
    if weights == BALANCED:
        values["weight"] = (balanced_positives if multi_label else balanced_weights)(list(labels), len(label_names))
    elif weights is not None:
        values["weight"] = torch.tensor([float(weights.get(label, 1.0)) for label in label_names])
    kinds: dict[str, Any] = {
        BINARY: BinaryCrossEntropy,
        "focal": FocalLoss,
        "contrastive": ContrastiveLoss,
        "distillation": DistillationLoss,
    }
    loss: nn.Module = kinds.get(name, CrossEntropy)(**values)
    return loss


def _parts(choice: Any) -> tuple[Any, dict[str, Any]]:
    """(name, options) of an option that may be wrong."""
    if not isinstance(choice, dict):
        return choice, {}
    return choice.get("type"), {key: value for key, value in choice.items() if key != "type"}


def _is_own(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py") or name.endswith(".py")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _weights_problems(weights: Any) -> list[str]:
    if weights is None or weights == BALANCED:
        return []
    if not isinstance(weights, dict):
        return [f"loss.class_weights: must be null, '{BALANCED}' or {{label: weight}}, but got {weights!r}"]
    return [
        f"loss.class_weights.{label}: must be a number above 0, but got {weight!r}"
        for label, weight in weights.items()
        if not _is_number(weight) or weight <= 0
    ]


def _teacher_problems(teacher: Any) -> list[str]:
    if not isinstance(teacher, str) or not teacher:
        return [f"loss.teacher: must be a folder or a repository, but got {teacher!r}"]
    try:
        teacher_labels(local_folder(teacher))
    except OlivalError as error:
        return [f"loss.teacher: {error}"]
    return []


def _own_loss(name: str, options: dict[str, Any]) -> nn.Module:
    """Raises ConfigError: no such file or class, a file that fails, or a class that does not take the options."""
    from torch import nn

    from passes.training.losses import UserLoss

    path, _, class_name = name.rpartition(":")
    file = Path(path or name)
    if not path:
        raise ConfigError([f"loss: '{name}' names no class; right is {name}:CLASS"])
    if not file.is_file():
        siblings = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise ConfigError([f"loss: there is no file '{file}' (from {Path.cwd()}); {nearest(str(file), siblings)}"])
    spec = importlib.util.spec_from_file_location(f"loss_of_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError([f"loss: {file} cannot be imported"])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the names of annotations
    sys.path.insert(0, str(file.parent.resolve()))  # as of a script: modules beside it can be imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file raises anything
        raise ConfigError([f"loss: {file} cannot be imported: {type(error).__name__}: {error}"]) from error
    finally:
        sys.path.remove(str(file.parent.resolve()))
    classes = {k: v for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, nn.Module)}
    if class_name not in classes:
        raise ConfigError([f"loss: {file} has no torch.nn.Module '{class_name}'; {nearest(class_name, classes)}"])
    try:
        loss = classes[class_name](**options)
    except Exception as error:
        raise ConfigError([f"loss: {name} with {options}: {type(error).__name__}: {error}"]) from error
    parameters = inspect.signature(loss.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # what has a default is an option of the class's own, unless its name says that it is the features
    takes = [p for p in positional if p.default is p.empty or p.name == "features"]
    if len(takes) not in (2, 3) and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        raise ConfigError([f"loss: forward of {name} must take (logits, labels) or (logits, labels, features)"])
    return UserLoss(loss, name, len(takes) != 2)
