"""Times the same work of several packages in turn, in this fresh process: `python -m search.latency_worker ...`.

A process of its own: what a command has loaded before (torch, other packages) leaves threads and memory behind.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.fresh_process import write_result
from benchmark.interleaved import interleave
from evaluators.latency import PROMPT_TEXT, stream_marks
from runtime.model import MultiAdapterModel

LEAST_ROUNDS, MOST_ROUNDS = 20, 200  # a median's interval needs some; small packages have them in seconds
AIM_SECONDS = 30.0  # as many rounds between them as fit into this time
_WARM_UP = 3  # rounds before the one that says how long a round takes


def time_packages(
    folders: Mapping[str, Path],
    metric: str,
    prompt_tokens: int,
    new_tokens: int,
    tell: Callable[[str], None] = print,
    aim_seconds: float = AIM_SECONDS,
) -> dict[str, list[float]]:
    """Seconds by package and round of what `metric` times, such as `tpot_p50_ms` and `spam-classify_p50_ms`.

    A round's sample is one classification of a text, one first token, or the median of the times between the tokens
    after the first (what `tokens_per_second` is made of as well). All packages are loaded side by side.

    Args:
        folders: packages, already compared with their manifests.
        metric: see search.metric_names.
        prompt_tokens, new_tokens: as in evaluators.scoring.latency_rows.
        tell: called with a line about the progress before each round.
        aim_seconds: see AIM_SECONDS.

    Raises:
        PackageError: the adapter is not in a package, or does other things.
        ProviderError: this machine cannot run a package.
    """
    samples: dict[str, list[float]] = {name: [] for name in folders}

    def load(name: str, sample: Callable[[], float]) -> Callable[[], object]:
        return lambda: samples[name].append(sample())

    loads = {}
    for number, (name, folder) in enumerate(folders.items(), 1):
        tell(f"loading package {number} of {len(folders)}")
        model = MultiAdapterModel.load(folder, verify=False)
        loads[name] = load(name, _sample(model, metric, prompt_tokens, new_tokens))
    for _ in range(_WARM_UP):
        for run in loads.values():
            run()
    start = time.perf_counter()
    for run in loads.values():
        run()
    seconds = time.perf_counter() - start
    rounds = int(min(max(aim_seconds / seconds, LEAST_ROUNDS), MOST_ROUNDS))
    interleave(loads, rounds, tell=tell)
    return {name: found[-rounds:] for name, found in samples.items()}


def _sample(model: MultiAdapterModel, metric: str, prompt_tokens: int, new_tokens: int) -> Callable[[], float]:
    adapter, _, kind = metric.rpartition("-")
    ids = list(model.tokenizer.encode(PROMPT_TEXT * prompt_tokens).ids[:prompt_tokens])

    def classify() -> float:
        start = time.perf_counter()
        model.class_logits([ids], adapter, 1)
        return time.perf_counter() - start

    def gaps(tokens: int) -> np.ndarray:
        return np.diff(stream_marks(lambda: model.tokens(ids, adapter or None, tokens, stop_at_eos=False)))

    if kind.startswith("classify"):
        return classify
    if kind.startswith("ttft"):
        return lambda: float(gaps(1)[0])
    return lambda: float(np.median(gaps(new_tokens)[1:]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error; then nothing is written."""
    parser = argparse.ArgumentParser(prog="python -m search.latency_worker")
    parser.add_argument("packages", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is written")
    options = parser.parse_args(arguments)
    pairs = [text.partition("=") for text in options.packages]
    folders = {name: Path(folder) for name, _, folder in pairs}
    said = -2.0

    def tell(line: str) -> None:
        nonlocal said
        if time.monotonic() - said >= 2:
            said = time.monotonic()
            print(f"  {line}", file=sys.stderr, flush=True)

    def seconds() -> dict[str, Any]:
        return {"seconds": time_packages(folders, options.metric, options.prompt_tokens, options.new_tokens, tell)}

    return write_result(options.output, seconds)


if __name__ == "__main__":
    raise SystemExit(main())
