"""The options that only a classification head has, beside those that all adapters share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from passes.training.loss_choice import DEFAULT, LOSSES, Choice, loss_key, loss_problems


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; see docs/finetuning.md."""

    loss: Choice = DEFAULT

    @classmethod
    def from_config(cls, config: Any) -> HeadSettings:
        """Reads the fields from a pass config object of Olive."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(cls)})

    def key(self) -> dict[str, Any]:
        """What differs from the defaults, for cache keys; a user's file by its content."""
        loss = loss_key(self.loss)
        return {} if loss is None else {"loss": loss}


def head_options() -> dict[str, Any]:
    """The options as Olive's PassConfigParam table."""
    from olive.passes.pass_config import PassConfigParam

    losses = f"One of {', '.join(LOSSES)}, or file.py:Class; with options {{'type': ..., ...}}."
    return {"loss": PassConfigParam(type_=str | dict, default_value=DEFAULT, description=losses)}


def head_problems(config: Any) -> list[str]:
    """What is wrong with the values of a pass config; each line starts with the option's name."""
    problems = loss_problems(config.loss)
    if (config.training_args or {}).get("label_smoothing_factor") and config.loss != DEFAULT:
        problems.append(
            "training_args.label_smoothing_factor: replaces the loss by the Trainer's own cross-entropy; take "
            "loss: {'type': 'cross_entropy', 'label_smoothing': ...}"
        )
    return problems
