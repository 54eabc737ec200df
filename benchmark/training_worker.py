"""One training of one side, in a process of its own: `python -m benchmark.training_worker CONFIG OUTPUT`.

Runs an Olive workflow of one training pass, ours or Olive's, by `olive.workflows.run`, as `olive run` does. Timed are
the steps of transformers' Trainer, which trains on both sides, from the first to the last (`seconds`, wall clock;
`cpu_seconds`, of all threads, which other programs on the machine disturb less), and the whole run without imports.

With `--stop-at N` a training is stopped after the step at which it has taken more than N seconds of the processor:
`done` is then below `steps`, and what it took is a lower bound.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.fresh_process import write_result


def train(config: Path, stop_at: float | None) -> dict[str, Any]:
    """{"seconds", "cpu_seconds", "run_seconds" (None where stopped), "steps", "done", "rows", "trainable"}."""
    import bitsandbytes  # noqa: F401, so that no training's memory has the libraries in it
    import peft  # noqa: F401
    import transformers
    from olive.workflows import run

    found: dict[str, Any] = {}

    class Clock(transformers.TrainerCallback):
        """Reads the clocks around the steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun = time.perf_counter(), time.process_time()
            model = kwargs["model"]
            found["steps"] = state.max_steps
            found["rows"] = len(kwargs["train_dataloader"].dataset)
            found["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["seconds"] = time.perf_counter() - self.begun[0]
            found["cpu_seconds"] = time.process_time() - self.begun[1]
            found["done"] = state.global_step
            if stop_at and found["cpu_seconds"] > stop_at:
                control.should_training_stop = True

    plain = transformers.Trainer.__init__

    def with_clock(trainer: Any, *arguments: Any, **options: Any) -> None:
        plain(trainer, *arguments, **options)
        trainer.add_callback(Clock())

    transformers.Trainer.__init__ = with_clock
    start = time.perf_counter()
    run(str(config))
    found["run_seconds"] = time.perf_counter() - start if found["done"] == found["steps"] else None
    return found


def main() -> int:
    """Returns the exit code; see `benchmark.fresh_process.write_result`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--stop-at", type=float, metavar="N")
    args = parser.parse_args()
    return write_result(args.output, lambda: train(args.config, args.stop_at))


if __name__ == "__main__":
    sys.exit(main())
