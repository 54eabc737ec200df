"""The Trainer of adapters: checkpoints hold what is trained, and a resumed training ends as an uninterrupted one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from passes.training.schedule import CyclicalSchedule

_WEIGHTS = "model.safetensors"  # a name that the Trainer looks for
_OF_TRAINER = "rng_state.pth"  # state of the random numbers at a checkpoint
_EPOCH = "epoch_rng.pth"  # state of the random numbers at the beginning of a checkpoint's epoch


class AdapterTrainer(Trainer):
    """Saves and restores the weights that are trained; the base is frozen and lies in a file of its own.

    A schedule "cyclical" beside those of transformers, see `passes.training.schedule`.
    """

    def __init__(self, *arguments: Any, cycles: CyclicalSchedule | None = None, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.resumed_from_step: int | None = None
        self._cycles = cycles
        self.can_return_loss = True  # the Trainer sees this in a signature only, and PEFT hides the signature
        self._order = _SameOrder()
        self.add_callback(self._order)

    def train_on(self, checkpoints: Path) -> Any:
        """Trains; goes on from the newest checkpoint in the folder, if there is one. Returns the Trainer's output."""
        last = max(filter(_is_whole, checkpoints.glob("checkpoint-*")), key=_step, default=None)
        self.resumed_from_step = _step(last) if last else None
        return self.train(resume_from_checkpoint=str(last) if last else None)

    def _run_epoch(self, *arguments: Any, **others: Any) -> None:
        if not self.control.should_training_stop:  # as the checkpoint says that it goes on from
            super()._run_epoch(*arguments, **others)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self._cycles is None:
            scheduler: torch.optim.lr_scheduler.LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return scheduler
        wanted, cycles = optimizer or self.optimizer, self._cycles
        assert wanted is not None
        follow = torch.optim.lr_scheduler.LambdaLR(wanted, lambda step: cycles.factor(step, num_training_steps))
        self.lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = follow
        return follow

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or "")
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().contiguous().cpu() for n, p in self._trained().items()}, folder / _WEIGHTS)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self._order.begun, Path(output_dir) / _EPOCH)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._restore(Path(self.state.best_model_checkpoint))

    def _restore(self, folder: Path) -> None:
        weights, trained = load_file(folder / _WEIGHTS), self._trained()
        assert weights.keys() == trained.keys(), f"{folder} is of another model"
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


class StopsWhereItWouldHave(EarlyStoppingCallback):
    """Early stopping that goes on counting from a checkpoint, and has a training that had ended take no further step.

    transformers restores the count only together with every callback made anew
    (`restore_callback_states_from_checkpoint`), and then trains for one more validation at least.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if stored is not None:
            self.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]
            control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


class _SameOrder(TrainerCallback):
    """Gives an epoch that is resumed in its midst the order of rows that it had: random numbers shuffle them.

    A checkpoint that is due at an epoch's last step waits for the epoch's validation, which draws random numbers too.
    """

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}  # the random numbers at the beginning of this epoch
        self._resumed: Path | None = None
        self._waiting = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        self._resumed = checkpoint if state.global_step and checkpoint.is_dir() else None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begun = _random()
        if self._resumed is None:
            return
        if state.epoch is not None and state.epoch % 1 > 0:  # in its midst
            self.begun = torch.load(self._resumed / _EPOCH, weights_only=False)
            _set_random(self.begun)
        else:  # the Trainer sets them next
            self.begun = torch.load(self._resumed / _OF_TRAINER, weights_only=False)
        self._resumed = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._waiting = control.should_save and state.epoch is not None and state.epoch % 1 == 0
        control.should_save = control.should_save and not self._waiting

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save = control.should_save or self._waiting
        self._waiting = False


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    """Whether the Trainer finished it: what it writes last is there, and is JSON to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _random() -> dict[str, Any]:
    return {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}


def _set_random(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
