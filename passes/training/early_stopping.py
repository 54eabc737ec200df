"""Ends a training when a validation metric no longer improves, and gives back the best weights that it had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import nearest

# of the task: which way each is better; the first one is taken where none is named
METRICS: dict[str, dict[str, bool]] = {  # True: the greater, the better
    "classification": {"loss": False, "accuracy": True, "f1_macro": True, "f1_micro": True},
    "generation": {"loss": False, "perplexity": False},
}

# of classification, by whether a text may have several labels: what its validation measures
OF_DATA = {False: ("loss", "accuracy", "f1_macro"), True: ("loss", "f1_micro", "f1_macro")}


@dataclass(frozen=True)
class EarlyStopping:
    """Prechelt 1998, "Early Stopping - But When?": stop after `patience` validations without improvement.

    Attributes:
        metric: of the validation, see METRICS.
        patience: validations in a row that improve by no more than `min_delta`, >= 1.
        min_delta: in the metric's unit, >= 0.
    """

    metric: str = "loss"
    patience: int = 2
    min_delta: float = 0.0

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What transformers' TrainingArguments need for it, beside what the user has `given`."""
        rhythm = given.get("eval_strategy", "epoch")
        steps = {"save_steps": given["eval_steps"]} if "eval_steps" in given else {}
        greater = any(metrics.get(self.metric, False) for metrics in METRICS.values())
        return {
            "load_best_model_at_end": True, "metric_for_best_model": self.metric, "greater_is_better": greater,
            "save_strategy": rhythm, **steps,
        }  # fmt: skip


def early_stopping_problems(option: Any, task: str, validated: bool, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the option `early_stopping`; each line starts with its name.

    Args:
        option: None, or an object of the fields of EarlyStopping.
        task: "classification" or "generation".
        validated: there are validation rows.
        given: the user's training_args.
    """
    if option is None:
        return []
    fields = {"metric": str, "patience": int, "min_delta": (int, float)}
    if not isinstance(option, Mapping):
        return [f"early_stopping: must be an object such as {{'metric': 'loss', 'patience': 2}}, but got {option!r}"]
    problems = [f"early_stopping.{key}: unknown; {nearest(key, fields)}" for key in option if key not in fields]
    for key, kind in fields.items():
        value = option.get(key)
        if key in option and (isinstance(value, bool) or not isinstance(value, kind)):  # type: ignore[arg-type]
            words = {"metric": "a name", "patience": "a whole number", "min_delta": "a number"}[key]
            problems.append(f"early_stopping.{key}: must be {words}, but got {value!r}")
    if problems:
        return problems
    wanted = EarlyStopping(**option)
    if wanted.metric not in METRICS[task]:
        problems.append(f"early_stopping.metric: '{wanted.metric}' is unknown; {nearest(wanted.metric, METRICS[task])}")
    if wanted.patience < 1:
        problems.append(f"early_stopping.patience: must be 1 or more, but got {wanted.patience}")
    if wanted.min_delta < 0:
        problems.append(f"early_stopping.min_delta: must be 0 or more, but got {wanted.min_delta}")
    if not validated:
        problems.append("early_stopping: needs validation_data_config, whose rows tell when to stop")
    if str(given.get("eval_strategy", "epoch")) == "no":
        problems.append("early_stopping: needs validations, but training_args.eval_strategy is 'no'")
    set_by_it = {*wanted.arguments(given)} - {"save_steps"}
    problems += [f"training_args.{key}: is set by early_stopping; leave it out" for key in given if key in set_by_it]
    return problems


def metric_problems(option: Any, several: bool) -> list[str]:
    """Where the validation of a classifier does not measure `early_stopping.metric`: `several` labels a text, or one.

    The option may be wrong; what `early_stopping_problems` says of it is left to that.
    """
    metric = option.get("metric") if isinstance(option, Mapping) else None
    if metric not in METRICS["classification"] or metric in OF_DATA[several]:
        return []
    labels = "several labels" if several else "one label"
    return [f"early_stopping.metric: '{metric}' is not measured on data with {labels} a text; Valid: "
            + ", ".join(OF_DATA[several])]  # fmt: skip
