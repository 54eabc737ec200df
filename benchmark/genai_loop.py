"""Our tokens per second against onnxruntime-genai's own benchmark loop: `python -m benchmark.genai_loop PACKAGE`.

Both generate from the base of the same package, with the same prompt, lengths and threads, in one process and in turn,
in random order, so that a ratio compares neighbours in time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from benchmark.interleaved import Ratio, interleave, paired_ratio
from evaluators.latency import PROMPT_TEXT, stream_marks
from runtime.errors import ConfigError, OlivalError, PackageError
from runtime.generation import TextGenerator
from runtime.manifest import read_manifest
from runtime.options import GenerationOptions

AGREES = 0.05  # a share: how far the two may lie apart


class Speed(NamedTuple):
    """One run: time to first token, and tokens after the first per second of the time that they took."""

    ttft_ms: float
    tokens_per_second: float


def our_run(generator: TextGenerator, ids: Sequence[int], new_tokens: int) -> Speed:
    """One run as evaluators.latency measures it: the runtime's stream of tokens, read one by one."""
    options = GenerationOptions(max_new_tokens=new_tokens, stop_at_eos=False)
    marks = stream_marks(partial(generator.steps, [(ids, None)], options))
    return Speed(1000 * (marks[1] - marks[0]), (len(marks) - 2) / (marks[-1] - marks[1]))


def genai_run(model: Any, ids: Sequence[int], new_tokens: int, read: bool = False) -> Speed:
    """One run of the loop in onnxruntime-genai's benchmark/python/benchmark_e2e.py.

    There the prompt, the first token and each later token are timed one by one, and the rate is 1 / the mean of the
    latter; no token is read, and asking whether the end is reached is not in the time.

    Args:
        model: an onnxruntime_genai.Model.
        ids: the prompt.
        new_tokens: at least 2.
        read: read each token too, within its time, as whoever wants an answer must.
    """
    import onnxruntime_genai

    params = onnxruntime_genai.GeneratorParams(model)
    length = len(ids) + new_tokens
    params.set_search_options(do_sample=False, batch_size=1, max_length=length, min_length=length)
    prompt = np.array([ids], np.int32)
    start = time.perf_counter()
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(prompt)
    generator.generate_next_token()
    first = time.perf_counter() - start
    seconds = []
    while not generator.is_done():
        start = time.perf_counter()
        generator.generate_next_token()
        if read:
            generator.get_next_tokens()
        seconds.append(time.perf_counter() - start)
    return Speed(1000 * first, len(seconds) / sum(seconds))


def compare(
    folder: Path,
    rounds: int = 40,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
    threads: int | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, list[Speed]]:
    """Runs each loop once a round; returns the speeds of "ours", "theirs" and "theirs, reading tokens" by round.

    All use one loaded model: the waiting threads of a second one would take time from the first.

    Raises:
        PackageError: the package is damaged, or not one for onnxruntime-genai on the CPU.
    """
    manifest = read_manifest(folder)
    if manifest.get("engine") == "onnxruntime" or manifest["target"]["execution_provider"] != "cpu":
        raise PackageError(f"{folder}: is not run by onnxruntime-genai on the CPU")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = list(tokenizer.encode(PROMPT_TEXT * prompt_tokens).ids[:prompt_tokens])
    generator = TextGenerator(folder, "cpu", threads or manifest["target"]["threads"])
    loads: dict[str, Callable[[], Speed]] = {
        "ours": partial(our_run, generator, ids, new_tokens),
        "theirs": partial(genai_run, generator.model, ids, new_tokens),
        "theirs, reading tokens": partial(genai_run, generator.model, ids, new_tokens, read=True),
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in loads}

    def kept(name: str) -> None:
        speeds[name].append(loads[name]())

    interleave({name: partial(kept, name) for name in loads}, rounds, tell=tell)
    return {name: found[1:] for name, found in speeds.items()}  # the first round is the warm-up


def ratios(speeds: Mapping[str, Sequence[Speed]]) -> dict[str, Ratio]:
    """Ours over theirs: tokens per second, also where they read tokens too, and time to first token."""

    def of(name: str, field: str) -> list[float]:
        return [getattr(speed, field) for speed in speeds[name]]

    ours = of("ours", "tokens_per_second")
    return {
        "tokens per second, ours / theirs": paired_ratio(ours, of("theirs", "tokens_per_second")),
        "tokens per second, ours / theirs, reading tokens": paired_ratio(
            ours, of("theirs, reading tokens", "tokens_per_second")
        ),
        "time to first token, ours / theirs": paired_ratio(of("ours", "ttft_ms"), of("theirs", "ttft_ms")),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.genai_loop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of a finished package for the CPU")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each loop (default: 40)")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--new-tokens", type=int, default=64, help="default: 64")
    parser.add_argument("--threads", type=int, help="of both (default: those of the package's target)")
    options = parser.parse_args(arguments)
    least = {"rounds": 1, "prompt_tokens": 1, "new_tokens": 2, "threads": 1}
    try:
        problems = [
            f"--{name.replace('_', '-')}: must be {low} or more, but got {value}"
            for name, low in least.items()
            if (value := getattr(options, name)) is not None and value < low
        ]
        if problems:
            raise ConfigError(problems)
        speeds = compare(
            options.package,
            options.rounds,
            options.prompt_tokens,
            options.new_tokens,
            options.threads,
            lambda line: print(f"\r{line}   ", end="", file=sys.stderr, flush=True),
        )
    except (OlivalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(file=sys.stderr)
    for name, runs in speeds.items():
        rate, first = np.median(runs, axis=0)[::-1]
        print(f"{name}: {rate:.1f} tokens per second, first token after {first:.2f} ms (medians of {len(runs)})")
    found = ratios(speeds)
    for name, ratio in found.items():
        print(f"{name}: {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})")
    main_ratio = next(iter(found.values()))
    verdict = "agree" if abs(main_ratio.median - 1) <= AGREES else "DO NOT agree"
    print(f"the two {verdict} within {AGREES:.0%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
