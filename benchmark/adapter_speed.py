"""Speed and memory of adapters in slots against the same base without: `python -m benchmark.adapter_speed --work DIR`.

Everything runs in one process and in turn, in random order, so that a ratio compares neighbours in time. The base has
random weights in a published shape and its true vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.interleaved import interleave
from benchmark.peak_memory import peak_memory
from benchmark.quantization_error import quantization_errors
from benchmark.random_base import SHAPES
from benchmark.speed_graphs import QUANTIZATION, ROWS, Prepared, prepare
from benchmark.speed_loads import Classify, Decode, Engine, Prefill
from benchmark.speed_table import about, as_json, as_markdown, error_row, memory_row, speed_rows

RANKS = (8, 16, 64)
START = 32  # tokens in the cache before decoding is timed
_TOOLS = ("onnxruntime", "onnxruntime-genai", "olive-ai", "onnx", "numpy")


def main() -> None:
    """Measures, or renders the file of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--work", type=Path, help="folder for models and adapters, kept for the next run")
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    parser.add_argument("--rounds", type=int, default=40, help="of decoding; prompts take a fifth of it")
    parser.add_argument("--tokens", type=int, default=8, help="decoded by each load in each round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the timed prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-stock", action="store_true", help="leave out Olive's own route, the slowest to build")
    parser.add_argument("--markdown", action="store_true", help="print the table of --out for docs/performance.md")
    args = parser.parse_args()
    if args.markdown:
        print(as_markdown(json.loads(args.out.read_text(encoding="utf-8"))), end="")
        return
    if args.work is None:
        parser.error("--work is needed to measure")
    results = measure(args.shape, args.work, args.rounds, args.tokens, args.prompt, args.threads, not args.skip_stock)
    args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_table(results)


def measure(
    shape: str,
    work: Path,
    rounds: int,
    tokens: int = 8,
    prompt_tokens: int = 512,
    threads: int = 2,
    with_stock: bool = True,
) -> dict[str, Any]:
    """Runs the whole benchmark. Returns what `as_markdown` reads: rows, absolute numbers, machine and versions."""

    def tell(line: str) -> None:
        print(f"{datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)

    load_average = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    paths = prepare(work, shape, RANKS, threads, with_stock, tell)
    few = max(2, rounds // 5)
    decode, batch, prefill = _through_genai(paths, rounds, few, tokens, prompt_tokens, threads, tell)
    classify = _through_onnxruntime(paths, few, prompt_tokens, threads, tell)
    rows = speed_rows(decode, batch, prefill, classify)
    tell("memory")
    row_files = [paths.adapters / f"row{row}.onnx_adapter" for row in range(ROWS)]
    memory = {
        "base": peak_memory(paths.int4, "model.onnx", threads, []),
        "8 adapters": peak_memory(paths.int4, "slots.onnx", threads, row_files),
    }
    tell("errors")
    largest = f"r{max(RANKS)}"
    errors = quantization_errors(
        paths.base,
        paths.int4,
        paths.adapters / f"{largest}.onnx_adapter",
        paths.adapters / f"{largest}_int8.onnx_adapter",
    )
    rows += [memory_row(memory["base"], memory["8 adapters"]), error_row(errors)]
    speeds = {name: tokens / float(np.median(x)) for name, x in decode.items()}
    speeds |= {f"batch of 8, {name}": 8 * tokens / float(np.median(batch[name])) for name in ("base", "8 adapters")}
    seconds = {f"prompt, {name}": float(np.median(x)) for name, x in prefill.items()}
    seconds |= {f"classify, {name} vocabulary": float(np.median(x)) for name, x in classify.items()}
    return {
        "shape": shape,
        "layers": SHAPES[shape]["num_hidden_layers"],
        "vocabulary": SHAPES[shape]["vocab_size"],
        "quantization": QUANTIZATION,
        "threads": threads,
        "rounds": rounds,
        "tokens": tokens,
        "prompt_tokens": prompt_tokens,
        "rows": as_json(rows),
        "tokens_per_second": speeds,
        "seconds": seconds,
        "memory": memory,
        "errors": errors,
        "samples": {"decode": decode, "batch": batch, "prefill": prefill, "classify": classify},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "load_average": load_average},
        "versions": {"python": platform.python_version(), **{tool: version(tool) for tool in _TOOLS}},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


Seconds = dict[str, list[float]]


def _through_genai(
    paths: Prepared,
    rounds: int,
    few: int,
    tokens: int,
    prompt_tokens: int,
    threads: int,
    tell: Callable[[str], None],
) -> tuple[Seconds, Seconds, Seconds]:
    """Seconds of decoding, of batches and of prompts."""
    tell("loading")
    base, slots = Engine(paths.int4, "model.onnx", threads), Engine(paths.int4, "slots.onnx", threads)
    int8 = Engine(paths.int4, "slots_int8.onnx", threads)
    ids = np.random.default_rng(0).integers(3, 259, (ROWS, max(START, prompt_tokens)))
    length = START + (rounds + 1) * tokens + 1

    def decoding(engine: Engine, adapter: str | None = None, rows: int = 1) -> Decode:
        file = None if adapter is None else paths.adapters / f"{adapter}.onnx_adapter"
        return Decode(engine, ids[:rows, :START], length, tokens, file)

    loads: dict[str, Callable[[], object]] = {
        "base": decoding(base),
        "base again": decoding(base),
        "none active": decoding(slots),
        **{f"rank {rank}": decoding(slots, f"r{rank}") for rank in RANKS},
        "int8 none active": decoding(int8),
        **{f"int8 rank {rank}": decoding(int8, f"r{rank}_int8") for rank in RANKS},
    }
    if paths.stock:
        stock = Engine(paths.stock, "model.onnx", threads)
        adapter = paths.stock / "adapter_weights.onnx_adapter"
        loads["stock"] = Decode(stock, ids[:1, :START], length, tokens, adapter)
        del stock
    decode = interleave(loads, rounds, tell=lambda line: tell(f"decode: {line}"))
    loads.clear()
    del int8
    loads = {
        "base": decoding(base, rows=ROWS),
        "8 adapters": decoding(slots, "rows", rows=ROWS),
        "rank 16": decoding(slots, "r16"),
    }
    batch = interleave(loads, rounds, tell=lambda line: tell(f"batch: {line}"))
    loads.clear()
    pruned = Engine(paths.int4, "pruned.onnx", threads)
    prompt = ids[:1, :prompt_tokens]
    prefill = interleave(
        {
            "base": Prefill(base, prompt),
            "pruned base": Prefill(pruned, prompt),
            "rank 16": Prefill(slots, prompt, paths.adapters / "r16.onnx_adapter"),
        },
        few,
        tell=lambda line: tell(f"prompt: {line}"),
    )
    return decode, batch, prefill


def _through_onnxruntime(
    paths: Prepared, rounds: int, tokens: int, threads: int, tell: Callable[[str], None]
) -> Seconds:
    """Seconds of one classification, without the vocabulary's logits and with them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(paths.int4 / "slots.onnx"), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(1).integers(3, 259, (1, tokens))
    loads = {
        "without": Classify(session, ids, 4, with_vocabulary=False),
        "with": Classify(session, ids, 4, with_vocabulary=True),
    }
    return interleave(loads, rounds, tell=lambda line: tell(f"classify: {line}"))


def print_table(results: dict[str, Any]) -> None:
    """Rows and what they were measured on, to the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "ratio", "95 % interval", "target", "", title=f"adapters in slots, {results['shape']}")
    for row in results["rows"]:
        verdict = {True: "met", False: "[bold red]MISSED[/]", None: ""}[row["met"]]
        interval = f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] != row["high"] else ""
        table.add_row(row["what"], f"{row['median']:.3f}", interval, row["target"] or "", verdict)
    console = Console()
    console.print(table)
    console.print(about(results), highlight=False)


def _processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _commit() -> str:
    """The repository's commit, with + where the work tree differs from it; "unknown" outside a repository."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
