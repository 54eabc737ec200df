"""What a training leaves to be looked at: curves as a picture, speed, memory, and a word where it overfits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runtime.peak_memory import peak_rss_bytes

History = Sequence[Mapping[str, Any]]  # TrainerState.log_history
_RISES = 2  # validations after the best one that must be worse before a training is said to overfit
_RISE = 0.05  # by which share the last of them must be worse
PANELS = {  # of curves.png: (training's name or None, validation's names)
    "loss": ("loss", ("eval_loss",)),
    "accuracy and F1": (None, ("eval_accuracy", "eval_f1_macro", "eval_f1_micro")),
    "perplexity": (None, ("eval_perplexity",)),
    "learning rate": ("learning_rate", ()),
}


class Throughput(TrainerCallback):
    """Counts tokens (without padding) and the seconds of the steps alone, validations and checkpoints left out."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._begun, self._seen = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seen = int(state.num_input_tokens_seen)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._begun
        self.tokens += int(state.num_input_tokens_seen) - self._seen
        self._seen = int(state.num_input_tokens_seen)

    def record(self) -> dict[str, Any]:
        """For training.json; memory is of the whole process, and of the first GPU where there is one."""
        found: dict[str, Any] = {
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else None,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        if torch.cuda.is_available():
            found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        return found


def overfitting(history: History) -> str | None:
    """The evidence, in a sentence, that a training went on for too long; None where there is none.

    The validation loss must have been worse than its best in the last validations, of which there are at least two,
    and be 5 % above it at the end, while the training loss fell.
    """
    validations = [(float(h["epoch"]), float(h["eval_loss"])) for h in history if "eval_loss" in h]
    if not validations or not all(math.isfinite(loss) for _, loss in validations):
        return None
    best = min(range(len(validations)), key=lambda i: validations[i][1])
    (best_epoch, lowest), (last_epoch, last) = validations[best], validations[-1]
    losses = [(float(h["epoch"]), float(h["loss"])) for h in history if "loss" in h]
    before = [loss for epoch, loss in losses if epoch <= best_epoch] or [loss for _, loss in losses[:1]]
    if len(validations) - 1 - best < _RISES or last < lowest * (1 + _RISE) or not losses or losses[-1][1] >= before[-1]:
        return None
    return (
        f"validation loss rose from {lowest:.3f} (epoch {best_epoch:g}) to {last:.3f} (epoch {last_epoch:g}), while "
        f"training loss fell from {before[-1]:.3f} to {losses[-1][1]:.3f}"
    )


def plot_curves(history: History, name: str, file: Path) -> None:
    """Draws losses, scores and learning rate over epochs; only panels of which something was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    panels = []
    for title, (trained, validated) in PANELS.items():
        lines = [(key, label) for key, label in [(trained, "training"), *((v, _words(v)) for v in validated)] if key]
        curves = {label: _curve(history, key) for key, label in lines}
        curves = {label: curve for label, curve in curves.items() if curve}
        if curves:
            panels.append((title, curves))
    if not panels:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False, dpi=120)
    for axis, (title, curves) in zip(axes[0], panels, strict=True):
        for (label, curve), color in zip(curves.items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False):
            axis.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=label, color=color)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.25)
        if len(curves) > 1 or title == "loss":
            axis.legend(fontsize=8, frameon=False)
    figure.suptitle(name, fontsize=11)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def _words(key: str) -> str:
    return {"eval_loss": "validation", "eval_f1_macro": "macro F1", "eval_f1_micro": "micro F1"}.get(
        key, key.removeprefix("eval_")
    )


def _curve(history: History, key: str) -> list[tuple[float, float]]:
    points = [(float(h["epoch"]), float(h[key])) for h in history if h.get(key) is not None]
    return [(epoch, value) for epoch, value in points if math.isfinite(value)]
