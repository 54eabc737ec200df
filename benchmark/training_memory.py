"""Peak resident memory of training one adapter on deployed integers, against bitsandbytes nf4.

`python -m benchmark.training_memory --work DIR --out X.json` trains LoRA of rank 8 for a few steps on a random model of
a published shape, each training in a process of its own, the two in turn. The integers are made before: that is the
export's work, done once in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.fresh_process import run_fresh
from benchmark.random_base import SHAPES, save_random_base
from benchmark.results import machine, versions, write_json

QUANTIZATIONS = ("nf4", "deployed")
EXPORT: dict[str, Any] = {"precision": "int4", "execution_provider": "cpu", "quantization": {"algorithm": "rtn_last"}}
STEPS, BATCH, TOKENS = 3, 2, 128


def train(base: Path, quantization: str, cache: Path, folder: Path) -> None:
    """One short training in this process; training.json in `folder` has its peak."""
    import os

    from data.examples import GenerationData
    from passes.deployed_check import deployed_options
    from passes.training.settings import AdapterSettings
    from passes.training.train import train_adapter

    os.environ["OLIVE_CACHE_DIR"] = str(cache / "workflow")
    texts = [f"row {number}: {'abcdefg ' * TOKENS}" for number in range(STEPS * BATCH)]  # a byte or more a token
    settings = AdapterSettings(
        "memory",
        method="qlora",
        quantization=quantization,
        deployed=deployed_options(**EXPORT) if quantization == "deployed" else None,
        training_args={"per_device_train_batch_size": BATCH, "max_steps": STEPS, "save_strategy": "no"},
    )
    folder.mkdir(parents=True)
    train_adapter(folder, base, settings, GenerationData([""] * len(texts), texts, max_length=TOKENS), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.training_memory", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the cache")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", nargs=2, metavar=("QUANTIZATION", "FOLDER"), help="what each process is called with")
    options = parser.parse_args(arguments)
    base = options.work / options.shape
    if options.train:
        train(base, options.train[0], options.work / "cache", Path(options.train[1]))
        return 0
    if options.out is None:
        parser.error("--out is needed")
    if not base.is_dir():
        save_random_base(base, options.shape)
    from passes.deployed_check import deployed_options
    from passes.training.deployed_base import quantized_base

    quantized_base(base, deployed_options(**EXPORT), options.work / "cache")
    peaks: dict[str, list[float]] = {quantization: [] for quantization in QUANTIZATIONS}
    seconds: dict[str, list[float]] = {quantization: [] for quantization in QUANTIZATIONS}
    for _ in range(options.rounds):
        for quantization in QUANTIZATIONS:
            folder = options.work / f"trained-{quantization}"
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, "-m", "benchmark.training_memory", "--work", str(options.work)]
            run_fresh([*command, "--shape", options.shape, "--train", quantization, str(folder)])
            record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            peaks[quantization].append(record["peak_rss_bytes"])
            seconds[quantization].append(record["seconds"])
    ratios = [deployed / nf4 for nf4, deployed in zip(peaks["nf4"], peaks["deployed"], strict=True)]
    result: dict[str, Any] = {"shape": options.shape, "peak_bytes": peaks, "seconds": seconds, "ratios": ratios}
    write_json(options.out, {"machine": machine(), "versions": versions(), **result})
    nf4, deployed = (statistics.median(peaks[quantization]) / 1e6 for quantization in QUANTIZATIONS)
    print(
        f"{options.shape}: peak {nf4:.0f} MB with nf4, {deployed:.0f} MB with deployed; ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds; wanted 1.15)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
