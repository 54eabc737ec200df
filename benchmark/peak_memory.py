"""Peak memory and load time of a model with adapters, in a process of its own: `python -m benchmark.peak_memory`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.peak_memory import peak_rss_bytes


def peak_memory(folder: Path, filename: str, threads: int, adapters: Sequence[Path]) -> dict[str, float]:
    """Loads a graph in a new process, generates 16 tokens with each adapter (or once without).

    Returns:
        {"peak_rss_bytes", "load_seconds"}: of the whole process; of model and first adapter.
    """
    command = [sys.executable, "-m", "benchmark.peak_memory", str(folder), filename, str(threads)]
    output = subprocess.run([*command, *map(str, adapters)], check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    """Prints the result as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("filename")
    parser.add_argument("threads", type=int)
    parser.add_argument("adapters", type=Path, nargs="*")
    args = parser.parse_args()
    from benchmark.speed_loads import Decode, Engine

    start = time.perf_counter()
    engine = Engine(args.folder, args.filename, args.threads)
    prompt = np.arange(3, 35)[None]
    seconds = 0.0
    for adapter in args.adapters or [None]:
        load = Decode(engine, prompt, max_length=64, tokens=16, adapter=adapter)
        seconds = seconds or time.perf_counter() - start
        load()
    print(json.dumps({"peak_rss_bytes": peak_rss_bytes(), "load_seconds": seconds}))


if __name__ == "__main__":
    main()
