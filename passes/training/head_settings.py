"""The options that only a classification head has, beside those that all adapters share."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.base_model import pooling_of
from passes.training.loss_choice import DEFAULT, LOSSES, Choice, loss_key, loss_problems
from runtime.errors import nearest

POOLINGS = ("first", "last", "mean", "max")


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; see docs/finetuning.md."""

    loss: Choice = DEFAULT
    pooling: str | None = None
    head_dropout: float = 0.0

    @classmethod
    def from_config(cls, config: Any) -> HeadSettings:
        """Reads the fields from a pass config object of Olive."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(cls)})

    def key(self) -> dict[str, Any]:
        """What differs from the defaults, for cache keys; a user's file by its content."""
        others = ("pooling", self.pooling), ("head_dropout", self.head_dropout)
        return {name: value for name, value in (("loss", loss_key(self.loss)), *others) if value}


def head_options() -> dict[str, Any]:
    """The options as Olive's PassConfigParam table."""
    from olive.passes.pass_config import PassConfigParam

    losses = f"One of {', '.join(LOSSES)}, or file.py:Class; with options {{'type': ..., ...}}."
    pooling = f"What the head reads of the final states: {', '.join(POOLINGS)}; null is the base's own."
    dropout = "Dropout of the pooled features before the head."
    return {
        "loss": PassConfigParam(type_=str | dict, default_value=DEFAULT, description=losses),
        "pooling": PassConfigParam(type_=str, default_value=None, description=pooling),
        "head_dropout": PassConfigParam(type_=float, default_value=0.0, description=dropout),
    }


def head_problems(config: Any) -> list[str]:
    """What is wrong with the values of a pass config; each line starts with the option's name."""
    problems = loss_problems(config.loss)
    if config.pooling is not None and config.pooling not in POOLINGS:
        problems.append(f"pooling: '{config.pooling}' is unknown; {nearest(config.pooling, POOLINGS)}")
    if not 0 <= config.head_dropout < 1:
        problems.append(f"head_dropout: 0 <= head_dropout < 1 must hold, but got {config.head_dropout}")
    if (config.training_args or {}).get("label_smoothing_factor") and config.loss != DEFAULT:
        problems.append(
            "training_args.label_smoothing_factor: replaces the loss by the Trainer's own cross-entropy; take "
            "loss: {'type': 'cross_entropy', 'label_smoothing': ...}"
        )
    return problems


def pooling_problems(poolings: dict[str, str | None], base: Path, exported: bool) -> list[str]:
    """What keeps heads on `base` from pooling as they are told.

    Args:
        poolings: {pass: its option `pooling`} of the workflow's ClassificationHead passes.
        base: folder of the base.
        exported: the heads come into one package, whose graph pools in one way.
    """
    default = pooling_of(json.loads((base / "config.json").read_text(encoding="utf-8"))["model_type"])
    problems = []
    if default != "first":
        problems += [
            f"passes.{name}.pooling: 'first' is for encoders; this base reads from left to right, so its first token "
            "knows nothing of the others; Valid: last, max, mean"
            for name, pooling in poolings.items()
            if pooling == "first"
        ]
    chosen = {name: pooling or default for name, pooling in poolings.items()}
    if exported and len(set(chosen.values())) > 1:
        listed = ", ".join(f"passes.{name} has '{pooling}'" for name, pooling in chosen.items())
        problems.append(f"pooling: {listed}; all heads of one package pool in one way: choose one, or two workflows")
    return problems
