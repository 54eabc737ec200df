"""The Trainer of adapters: checkpoints hold what is trained, and a resumed training ends as an uninterrupted one."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
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
from transformers.trainer_pt_utils import LengthGroupedSampler

from passes.training.schedule import CyclicalSchedule
from passes.training.sharded import fill, gather_none, whole
from passes.training.shared_batches import SharedOrder, stands_in

_WEIGHTS = "model.safetensors"  # a name that the Trainer looks for
_OF_TRAINER = "rng_state.pth"  # state of the random numbers at a checkpoint
_EPOCH = "epoch_rng.pth"  # state of the random numbers at the beginning of a checkpoint's epoch


class AdapterTrainer(Trainer):
    """Saves and restores the weights that are trained; the base is frozen and lies in a file of its own.

    A schedule "cyclical" beside those of transformers, see `passes.training.schedule`. Several processes go through the
    batches of one, of which each takes its share, see `passes.training.shared_batches`.
    """

    def __init__(self, *arguments: Any, cycles: CyclicalSchedule | None = None, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.resumed_from_step: int | None = None
        self._cycles = cycles
        self.can_return_loss = True  # the Trainer sees this in a signature only, and PEFT hides the signature
        self._order = _SameOrder()
        self.add_callback(self._order)
        if self.several:  # frozen weights and buffers are the same in all processes: DDP need not send them
            kept = [name for name, p in self.model.named_parameters() if not p.requires_grad]
            self.model._ddp_params_and_buffers_to_ignore = kept + [name for name, _ in self.model.named_buffers()]

    @property
    def several(self) -> bool:
        """Whether other processes train with this one."""
        return self.args.world_size > 1

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.several:
            self.accelerator.prepare_data_loader = self._whole_batches

    def _whole_batches(self, loader: Any, device_placement: bool | None = None) -> Any:
        """What accelerate makes of a loader in one process."""
        prepared = prepare_data_loader(
            loader,
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )
        self.accelerator._dataloaders.append(prepared)
        return prepared

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if self.several and isinstance(sampler, LengthGroupedSampler):
            return SharedOrder(sampler.batch_size, lengths=sampler.lengths)
        return sampler

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.several and stands_in(inputs, self.args.process_index, self.args.world_size):
            inputs = {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)

    def evaluation_loop(self, *arguments: Any, **others: Any) -> Any:
        if self.several:
            self.gather_function = partial(_last_rows, self.accelerator.gradient_state)
        return super().evaluation_loop(*arguments, **others)

    def prediction_step(self, *arguments: Any, **others: Any) -> Any:
        loss, *outputs = super().prediction_step(*arguments, **others)
        if self.several and loss is not None:  # of generated text it is of the own rows, times the processes
            loss = self.accelerator.reduce(loss, "mean")
        return loss, *outputs

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save(output_dir)  # of a sharded model, too, only what is trained

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or "")
        weights = {n: whole(p.detach()).contiguous().cpu() for n, p in self._trained().items()}
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / _WEIGHTS)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if not self.args.should_save:
            return
        folder = Path(output_dir)
        torch.save(self._order.begun, folder / _EPOCH)
        if self.several:  # so that one process can go on from it, or another number of them
            shutil.copyfile(folder / f"rng_state_{self.args.process_index}.pth", folder / _OF_TRAINER)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        own = f"rng_state_{self.args.process_index}.pth"
        if checkpoint is not None and self.several and not (Path(checkpoint) / own).is_file():
            _set_random(torch.load(Path(checkpoint) / _OF_TRAINER, weights_only=False))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._restore(Path(self.state.best_model_checkpoint))

    def _restore(self, folder: Path) -> None:
        weights, trained = load_file(folder / _WEIGHTS), self._trained()
        assert weights.keys() == trained.keys(), f"{folder} is of another model"
        for name, parameter in trained.items():
            fill(parameter, weights[name])

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        gather_none(self.model)
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


def _last_rows(state: Any, values: Any) -> Any:
    """What one process keeps of a batch in a validation: of the last one, as many values as it has rows."""
    if isinstance(values, tuple):
        return tuple(_last_rows(state, value) for value in values)
    return values[: state.remainder] if state.end_of_dataloader and state.remainder > 0 else values


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
