"""What is wrong with `training_args`, before transformers meets it in the middle of a run."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from passes.training.schedule import CYCLICAL
from runtime.errors import nearest

# training_args is handed to transformers' TrainingArguments; these keys belong to the workspace
OWN_ARGUMENTS = {
    "output_dir": "the workspace keeps adapters in its cache",
    "report_to": "monitoring is set by the workspace",
    "remove_unused_columns": "batches are made by the workspace",
    "label_names": "labels come from the data",
    "push_to_hub": "the workspace sends nothing anywhere",
    "batch_eval_metrics": "validation scores are made of all rows together",
    "eval_do_concat_batches": "validation scores are made of all rows together",
}
_NUMBERS = {int: "a whole number", float: "a number", bool: "true or false"}
_AT_LEAST_ONE = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("save_total_limit", "eval_accumulation_steps"),
)
_NOT_NEGATIVE = ("weight_decay", "max_grad_norm", "warmup_steps", "label_smoothing_factor", "neftune_noise_alpha")
_ABOVE_ZERO = ("learning_rate", "num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps", "save_steps")
_BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing_factor")


def argument_problems(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with keys and values, a line each: unknown keys, types, ranges, the schedule and its options."""
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    kinds = typing.get_type_hints(TrainingArguments)
    problems = []
    for key, value in given.items():
        where = f"training_args.{key}"
        if key in OWN_ARGUMENTS:
            problems.append(f"{where}: cannot be set, {OWN_ARGUMENTS[key]}")
        elif key not in known:
            match = nearest(key, known).split("Valid:")[0].strip() or "see transformers.TrainingArguments"
            problems.append(f"{where}: unknown argument of transformers' TrainingArguments; {match}")
        elif problem := _type_problem(value, kinds[key]) or _range_problem(key, value, given):
            problems.append(f"{where}: {problem}, but got {value!r}")
    return problems or _schedule_problems(given)


def _type_problem(value: Any, kind: Any) -> str:
    """Of an argument that is a number or a truth value; others are left to transformers."""
    kinds = set(typing.get_args(kind)) or {kind}
    if not kinds <= {*_NUMBERS, type(None)} or (value is None and type(None) in kinds):
        return ""
    (wanted,) = kinds - {type(None)}
    if isinstance(value, bool):
        fits = wanted is bool
    else:
        fits = isinstance(value, int | float if wanted is float else wanted) and math.isfinite(value)
    return "" if fits else f"must be {_NUMBERS[wanted]}"


def _range_problem(key: str, value: Any, given: Mapping[str, Any]) -> str:
    if value is None:
        return ""
    if key == "max_steps":
        return "" if value == -1 or value >= 1 else "must be 1 or more, or -1 for num_train_epochs"
    if key == "num_train_epochs" and given.get("max_steps", -1) != -1:
        return ""  # max_steps counts
    ranges: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
        (_AT_LEAST_ONE, lambda v: v >= 1, "1 or more"),
        (_NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (_ABOVE_ZERO, lambda v: v > 0, "above 0"),
        (_BELOW_ONE, lambda v: 0 <= v < 1, "from 0 and below 1"),
    ]
    return next((f"must be {text}" for keys, holds, text in ranges if key in keys and not holds(value)), "")


def _schedule_problems(given: Mapping[str, Any]) -> list[str]:
    """The schedule is tried on one number: transformers looks at its options when the training starts."""
    import torch
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    name, options = given.get("lr_scheduler_type", "linear"), given.get("lr_scheduler_kwargs")
    if name == CYCLICAL:
        if given.get("warmup_steps"):
            return [
                f"training_args.warmup_steps: is not for lr_scheduler_type '{CYCLICAL}', whose first rise is the "
                "warm-up (lr_scheduler_kwargs: cycles, lowest); leave it out"
            ]
        return []  # passes.training.schedule looks at its options
    names = [CYCLICAL, *(kind.value for kind in SchedulerType)]
    if name not in names:
        return [f"training_args.lr_scheduler_type: {name!r} is unknown; {nearest(name, names)}"]
    if options is not None and not isinstance(options, dict):
        return [f"training_args.lr_scheduler_kwargs: must be an object, but got {options!r}"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=options)
    except (TypeError, ValueError) as error:
        return [f"training_args.lr_scheduler_kwargs: '{name}' does not take {options}: {error}"]
    return []
