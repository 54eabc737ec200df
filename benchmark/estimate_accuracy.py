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
from unittest.mock import patch

from benchmark.fresh_process import run_fresh
from benchmark.random_base import SHAPES, save_random_base
from benchmark.results import machine, read_json, versions, write_json
from runtime.errors import OlivalError

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
    from passes.training.memory import estimate
    from passes.training.planned import situation
    from passes.training.settings import AdapterSettings
    from passes.training.train import train_adapter

    found: dict[str, Any] = {}

    def noted(*arguments: Any, **options: Any) -> Any:
        found["about"] = situation(*arguments, **options)
        return found["about"]

    texts = [f"row {number}: {'abcdefg ' * tokens}" for number in range(STEPS * batch)]  # a byte or more a token
    arguments = {"per_device_train_batch_size": batch, "max_steps": STEPS, "save_strategy": "no"}
    settings = AdapterSettings(
        "memory", training_args={**arguments, "gradient_checkpointing": checkpointing}, **METHODS[method]
    )
    folder = output.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = GenerationData([""] * len(texts), texts, max_length=tokens)
    with patch("passes.training.train.situation", noted):
        train_adapter(folder, base, settings, data, None)
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
        "| shape | method | rows x tokens | estimate, MB | tensors, MB | ratio | with the store, MB | ratio |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        need = run["estimate"]["total"]
        words = f"{run['method']}, checkpointing" if run["checkpointing"] else run["method"]
        measured = [
            "- | -" if size is None else f"{size / 1e6:,.0f} | {need / size:.2f}"
            for size in (run["tensors"], run["with_store"])
        ]
        rows = f"{run['batch']} x {run['length']}"
        lines.append(f"| {run['shape']} | {words} | {rows} | {need / 1e6:,.0f} | {' | '.join(measured)} |")
    return "\n".join(lines) + "\n"


def measure(
    work: Path, shape: str, method: str, batch: int, length: int, checkpointing: bool, store: bool = True
) -> dict[str, Any]:
    """Both runs of one training; without `store` the first alone."""
    base, output = work / shape, work / f"{shape}-{method}.json"
    save_random_base(base, shape)
    command = [sys.executable, "-m", "benchmark.estimate_accuracy", "--train", str(base), method, str(batch)]
    command += [str(length), str(int(checkpointing)), str(output)]
    before = os.environ.pop(THRESHOLD, None)
    found: dict[bool, Any] = {True: None}
    try:
        for stored in (True, False) if store else (False,):
            os.environ.pop(THRESHOLD, None)
            if not stored:
                os.environ[THRESHOLD] = RETURNED
            run_fresh(command)
            found[stored] = read_json(output)
    finally:
        os.environ.pop(THRESHOLD, None)
        if before is not None:
            os.environ[THRESHOLD] = before
    return {
        "shape": shape,
        "method": method,
        "batch": batch,
        "length": length,
        "checkpointing": checkpointing,
        "estimate": found[False]["estimate"],
        "tensors": found[False]["measured"],
        "with_store": found[True] and found[True]["measured"],
        "seconds": {"tensors": found[False]["seconds"], "with_store": found[True] and found[True]["seconds"]},
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
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-160m", "smollm-135m"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--tensors-only", action="store_true", help="without the run that has the allocator's store")
    options = parser.parse_args(given)
    try:
        runs = _measure_all(options)
    except OlivalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(runs))
    return 0


def _measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = read_json(options.out)["runs"] if options.out.is_file() else []
    how = (options.batch, options.tokens, options.checkpointing, not options.tensors_only)
    for shape in options.shapes:
        for method in options.methods:
            found = measure(options.work, shape, method, *how)
            names = ("shape", "method", "batch", "length", "checkpointing")
            runs = [run for run in runs if any(run[name] != found[name] for name in names)] + [found]
            write_json(options.out, {"machine": machine(), "versions": versions(), "runs": runs})
            print(markdown([found]), file=sys.stderr)
    return runs


if __name__ == "__main__":
    sys.exit(main())
