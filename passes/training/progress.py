"""A progress bar with loss and time left on a terminal; on anything else one line when training ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

VALIDATION = {
    "eval_loss": "validation loss",
    "eval_accuracy": "accuracy",
    "eval_f1_micro": "f1_micro",  # where a text has several labels
    "eval_perplexity": "perplexity",
}


class ProgressBar(TrainerCallback):
    """Shows one adapter's training: steps, loss, validation loss, accuracy or perplexity."""

    def __init__(self, adapter_name: str) -> None:
        self.adapter_name = adapter_name
        self.bar: tqdm[Any] | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            print(f"train {self.adapter_name}: goes on from step {state.global_step}", file=sys.stderr)
        self.bar = tqdm(
            total=state.max_steps, desc=f"train {self.adapter_name}", unit="step", disable=not sys.stderr.isatty()
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._show({"loss": logs["loss"]})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self._show(_validation(args, metrics))

    def _show(self, values: dict[str, float]) -> None:
        self.shown |= {label: f"{float(value):.3f}" for label, value in values.items()}
        if self.bar is not None:
            self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if not sys.stderr.isatty():
            steps = f"{state.global_step} steps"
            if state.global_step < state.max_steps:
                steps = f"stopped after {state.global_step} of {state.max_steps} steps"
            if args.load_best_model_at_end and state.best_global_step:
                steps += f", weights of step {state.best_global_step}"
                found = [log for log in state.log_history if log["step"] == state.best_global_step]
                self._show({k: v for log in found if "eval_loss" in log for k, v in _validation(args, log).items()})
            losses = ", ".join(f"{label} {value}" for label, value in self.shown.items())
            print(f"train {self.adapter_name}: {steps}, {losses}", file=sys.stderr)


def _validation(args: TrainingArguments, metrics: Mapping[str, float]) -> dict[str, float]:
    """What of a validation's metrics is shown: the usual ones, and the one that decides which weights are the best."""
    deciding = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
    labels = {**VALIDATION, deciding: VALIDATION.get(deciding, deciding.removeprefix("eval_"))}
    return {label: metrics[key] for key, label in labels.items() if key in metrics}
