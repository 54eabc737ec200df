"""Memory that trainings take against what is estimated before: `python -m benchmark.estimate_accuracy`.

Full fine-tuning, LoRA and QLoRA of random models of published shapes for a few steps, each in a process of its own.
Measured is the largest resident memory on the CPU less that before the base is loaded, with all libraries imported. The
C library keeps what is freed in pieces below 32 MB for itself; MALLOC_MMAP_THRESHOLD_ makes it give them back, and each
training is run with and without it: the estimate is of the tensors alone, that is of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.fresh_process import run_fresh
from benchmark.random_base import SHAPES, save_random_base
from benchmark.results import machine, read_json, versions, write_json

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora", "quantization": "nf4"},
}
STEPS = 2  # in the second one the optimizer has its moments
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
RETURNED = "65536"  # bytes: what is as large goes back to the system at once


def train(base: Path, method: str, batch: int, tokens: int, checkpointing: bool, output: Path) -> None:
    """One short training in this process; `output` gets {"measured", "estimate": parts and total, "seconds"}."""
    import bitsandbytes  # noqa: F401, so that it does not count
    import peft  # noqa: F401

    from data.examples import GenerationData
    from passes.training import train as training
    from passes.training.memory import estimate
    from passes.training.settings import AdapterSettings

    found: dict[str, Any] = {}
    situation = training.situation

    def noted(*arguments: Any) -> Any:
        about = situation(*arguments)
        found["about"] = about
        return about

    training.situation = noted
    texts = [f"row {number}: {'abcdefg ' * tokens}" for number in range(STEPS * batch)]  # a byte or more a token
    arguments = {"per_device_train_batch_size": batch, "max_steps": STEPS, "save_strategy": "no"}
    settings = AdapterSettings(
        "memory", training_args={**arguments, "gradient_checkpointing": checkpointing}, **METHODS[method]
    )
    folder = output.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    training.train_adapter(folder, base, settings, GenerationData([""] * len(texts), texts, max_length=tokens), None)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    need = estimate(found["about"].counted().shape, found["about"].plan)
    write_json(
        output,
        {
            "measured": record["peak_rss_bytes"] - record["rss_before_bytes"],
            "estimate": {**asdict(need), "total": need.total},
            "seconds": record["seconds"],
        },
    )


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line for each training: estimate, measured, and the estimate's share of it."""
    lines = [
        "| shape | method | rows x tokens | estimate, MB | measured, MB | ratio | with the allocator's store | ratio |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        need, tensors, all_of_it = run["estimate"]["total"], run["tensors"], run["with_store"]
        words = f"{run['method']}, checkpointing" if run["checkpointing"] else run["method"]
        measured = f"{tensors / 1e6:,.0f} | {need / tensors:.2f} | {all_of_it / 1e6:,.0f} | {need / all_of_it:.2f}"
        lines.append(
            f"| {run['shape']} | {words} | {run['batch']} x {run['tokens']} | {need / 1e6:,.0f} | {measured} |"
        )
    return "\n".join(lines) + "\n"


def measure(work: Path, shape: str, method: str, batch: int, tokens: int, checkpointing: bool) -> dict[str, Any]:
    """Both runs of one training."""
    base, output = work / shape, work / "training.json"
    save_random_base(base, shape)
    command = [sys.executable, "-m", "benchmark.estimate_accuracy", "--train", str(base), method, str(batch)]
    command += [str(tokens), str(int(checkpointing)), str(output)]
    run: dict[str, Any] = {"shape": shape, "method": method, "batch": batch, "tokens": tokens}
    run["checkpointing"] = checkpointing
    before = os.environ.pop(THRESHOLD, None)
    try:
        run_fresh(command)
        stored = read_json(output)
        os.environ[THRESHOLD] = RETURNED
        run_fresh(command)
        returned = read_json(output)
    finally:
        os.environ.pop(THRESHOLD, None)
        if before is not None:
            os.environ[THRESHOLD] = before
    return {
        **run,
        "estimate": returned["estimate"],
        "tensors": returned["measured"],
        "with_store": stored["measured"],
        "seconds": {"tensors": returned["seconds"], "with_store": stored["seconds"]},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--train"]:
        base, method, batch, tokens, checkpointing, output = given[1:]
        train(Path(base), method, int(batch), int(tokens), checkpointing == "1", Path(output))
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.estimate_accuracy", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the models")
    parser.add_argument("--out", type=Path, required=True, help="results as JSON; those of other trainings stay in it")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-160m", "qwen2.5-0.5b"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args(given)
    runs: list[dict[str, Any]] = read_json(options.out)["runs"] if options.out.is_file() else []
    for shape in options.shapes:
        for method in options.methods:
            found = measure(options.work, shape, method, options.batch, options.tokens, options.checkpointing)
            names = ("shape", "method", "batch", "tokens", "checkpointing")
            runs = [run for run in runs if any(run[name] != found[name] for name in names)] + [found]
            write_json(options.out, {"machine": machine(), "versions": versions(), "runs": runs})
            print(markdown([found]), file=sys.stderr)
    print(markdown(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
