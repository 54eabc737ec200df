"""Says what a training would have needed when memory ran out, and which options would fit; loses no checkpoint."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from passes.training.memory import Estimate, Plan, Shape, estimate, most, shape_of
from runtime.errors import OlivalError

if TYPE_CHECKING:
    from passes.training.kept import Method

_SHARE = 0.9  # of the free memory that an option may need: estimates are up to 15 % off
_CLEARLY = 0.75  # of what did not fit, where that should have: an option must need clearly less
_OPTIONS = 3
_SMALLEST_LENGTH = 32  # tokens; shorter rows say little
# what the allocators of torch say on the CPU, on Linux and on Windows, where they raise a plain RuntimeError
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


class StoppedTraining(OlivalError):
    """A training that ended before its time; what it had done is kept."""


class OutOfMemory(StoppedTraining):
    """A training that did not fit into memory."""


@dataclass(frozen=True)
class Situation:
    """A training as it is about to begin."""

    adapter_name: str
    shape: Shape
    plan: Plan
    accumulation: int  # gradient_accumulation_steps
    free: float  # bytes, before the base was loaded
    whole: float  # bytes of the machine, the container or the GPU
    nf4: str | None = "quantization nf4"  # how the options say it, where the method takes it
    processes: int = 1  # which share a batch; the plan is of one of them
    base: Path | None = None  # its folder, where autograd can be asked what it keeps
    method: Method | None = None

    def counted(self) -> Situation:
        """With what autograd keeps, which takes a second or two."""
        if self.base is None or self.shape.kept is not None:
            return self
        return replace(self, shape=shape_of(self.base, self.method))

    def warning(self) -> str | None:
        """What to say before the training where it needs more than is free."""
        if most(self.shape, self.plan) <= self.free:
            return None
        exact = self.counted()
        need = estimate(exact.shape, self.plan)
        if need.total <= self.free:
            return None
        said = f"warning: adapter '{self.adapter_name}' may run out of memory: {self._need(need)}."
        return said + exact._options(need)

    def error(self, checkpoints: Path) -> OutOfMemory:
        """`checkpoints`: folder of the training's checkpoints."""
        exact = self.counted()
        need = estimate(exact.shape, self.plan)
        shared = f", shared by {self.processes} processes," if self.processes > 1 else ""
        less = "" if need.total > self.free else "; it failed all the same, as the estimate is rough"
        return OutOfMemory(
            f"adapter '{self.adapter_name}': out of memory while training with per_device_train_batch_size "
            f"{self.plan.batch * self.processes}{shared} on rows of up to {self.plan.length} tokens: "
            f"{self._need(need)}{less}.{exact._options(need)}\n{what_is_kept(checkpoints)}"
        )

    def _need(self, need: Estimate) -> str:
        trained = need.adapter + need.gradients + need.optimizer
        parts = [("weights", need.weights), ("adapter, gradients and optimizer", trained)]
        parts += [("activations", need.activations), ("logits", need.logits)]
        said = ", ".join(f"{name} {gb(value)}" for name, value in parts if value)
        return f"it needs about {gb(need.total)} ({said}), and {gb(self.free)} of {gb(self.whole)} were free"

    def _options(self, need: Estimate) -> str:
        most = min(_SHARE * self.free, _CLEARLY * need.total)
        found = [(words, total) for words, plan in self._choices(most) if (total := _total(self.shape, plan)) <= most]
        if not found:
            return " No option makes it fit here: take a smaller base or more memory."
        return " These would fit:" + "".join(f"\n  - {words}: {gb(total)}" for words, total in found[:_OPTIONS])

    def _choices(self, most: float) -> Iterator[tuple[str, Plan]]:
        """Options, those first that change least of what is learned. Each is named once, at its largest that fits."""
        plan = self.plan
        batch, checkpointing = "training_args.per_device_train_batch_size", "training_args.gradient_checkpointing true"
        yield from self._smaller_batches(plan, most, batch)
        slower = replace(plan, checkpointing=True)
        if not plan.checkpointing:
            yield f"{checkpointing} (the same result, slower)", slower
            yield from self._smaller_batches(slower, most, f"{checkpointing} and {batch}")
        small = plan
        if plan.quantization is None and self.nf4:
            small = replace(plan, quantization="nf4")
            yield self.nf4, small
            yield from self._smaller_batches(small, most, f"{self.nf4} and {batch}")
        yield from self._shorter_rows(plan, most, "")
        least = replace(small, checkpointing=True, batch=1)
        quantized = f"{self.nf4}, " if small is not plan else ""
        others = f"{quantized}{checkpointing}, {batch} {self.processes}"
        yield f"{others} with gradient_accumulation_steps {plan.batch * self.accumulation}", least
        yield from self._shorter_rows(least, most, f"{others} and ")

    def _smaller_batches(self, plan: Plan, most: float, words: str) -> Iterator[tuple[str, Plan]]:
        """Of a batch that can be halved evenly: a step then sees as many rows as before."""
        size, steps = plan.batch // 2, self.accumulation * 2
        while size >= 1:
            smaller = replace(plan, batch=size)
            if size * steps == plan.batch * self.accumulation and _total(self.shape, smaller) <= most:
                yield (
                    f"{words} {size * self.processes} with gradient_accumulation_steps {steps} (the same result)",
                    smaller,
                )
                return
            size, steps = size // 2, steps * 2

    def _shorter_rows(self, plan: Plan, most: float, words: str) -> Iterator[tuple[str, Plan]]:
        length = plan.length // 2
        while length >= _SMALLEST_LENGTH:
            if _total(self.shape, shorter := replace(plan, length=length)) <= most:
                yield f"{words}max_length {length} in the data configs (longer texts are cut)", shorter
                return
            length //= 2


def what_is_kept(checkpoints: Path) -> str:
    """What the next run goes on from; `checkpoints` is the folder of the training's own."""
    steps = [int(found.name.rpartition("-")[2]) for found in checkpoints.glob("checkpoint-*")]
    if not steps:
        return "There was no checkpoint yet; finished adapters are kept."
    return (
        f"With unchanged options, or with gradient_checkpointing alone, the next run goes on from step {max(steps)}; "
        "finished adapters are kept."
    )


@contextmanager
def explained(situation: Situation, checkpoints: Path) -> Iterator[None]:
    """Turns a failed allocation into OutOfMemory; warns before where the estimate is above what is free."""
    if said := situation.warning():
        print(said, file=sys.stderr)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise situation.error(checkpoints) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a GPU or torch's allocator on the CPU had no more memory to give."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):  # a file that has no room to be mapped
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR)


def _total(shape: Shape, plan: Plan) -> float:
    return estimate(shape, plan).total


def gb(size: float) -> str:
    """A size in words, such as 4.25 GB."""
    return f"{size / 1e9:.2f} GB" if size < 9.995e9 else f"{size / 1e9:.1f} GB"
