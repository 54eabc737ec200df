"""What measuring costs, per token, against a token of a real package: `python -m benchmark.harness_cost PACKAGE`.

The measuring loop (evaluators.latency) is timed with a stream that yields at once; so is the runtime's own stack of
generators (runtime.model), with an engine that does nothing. In place, the same real stream is read with a mark after
every token and with none, in turn: there a mark also pays for caches that the model's weights have swept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.interleaved import Ratio, interleave, paired_ratio
from evaluators.latency import PROMPT_TEXT, stream_marks
from runtime.errors import OlivalError, PackageError
from runtime.model import MultiAdapterModel

AT_MOST = 0.01  # of a token's time
_NULL_TOKENS = 20_000  # of a stream without a model: some milliseconds
_REPEATS = 21


class Costs(NamedTuple):
    """Microseconds a token, medians of repeats; `in_place` is the ratio of times a token with marks and without."""

    marks_us: float
    stack_us: float
    token_us: float
    in_place: Ratio

    @property
    def share(self) -> float:
        """The measuring loop's part of a token's time."""
        return self.marks_us / self.token_us


class NullEngine:
    """In the place of runtime.generation.TextGenerator: gives the token 0 at once, as often as is asked."""

    def steps(self, rows: Sequence[object], options: Any) -> Generator[list[int], None, None]:
        """One run of options.max_new_tokens steps."""
        tokens = [0] * len(rows)
        for _ in range(options.max_new_tokens):
            yield tokens


def marks_cost_us(tokens: int = _NULL_TOKENS) -> float:
    """Microseconds a token of the measuring loop: with marks, on a stream that yields at once."""
    return _median_us(lambda: stream_marks(lambda: repeat(0, tokens)), tokens)


def stack_cost_us(model: MultiAdapterModel, tokens: int = _NULL_TOKENS) -> float:
    """Microseconds a token of the generators between onnxruntime-genai and whoever reads `model.tokens`.

    The model's engine is out of use afterwards.
    """
    model._generator = NullEngine()  # type: ignore[assignment]
    return _median_us(lambda: _read(model.tokens([0], None, tokens)), tokens)


def measure_costs(folder: Path, rounds: int = 40, new_tokens: int = 64, tell: Callable[[str], None] = print) -> Costs:
    """Measures a package's base on the CPU.

    Raises:
        PackageError: the package is damaged, or its base writes no text.
    """
    model = MultiAdapterModel.load(folder)
    ids = list(model.tokenizer.encode(PROMPT_TEXT * 32).ids[:32])
    seconds: dict[str, list[float]] = {"with": [], "without": []}

    def stream() -> Iterator[int]:
        """The tokens after the first, which the prompt's processing is in."""
        tokens = model.tokens(ids, None, new_tokens, stop_at_eos=False)
        next(tokens)
        return tokens

    def timed(name: str, read: Callable[[Iterator[int]], object]) -> None:
        tokens = stream()
        start = time.perf_counter()
        read(tokens)
        seconds[name].append((time.perf_counter() - start) / (new_tokens - 1))

    with_marks = partial(timed, "with", lambda tokens: stream_marks(lambda: tokens))
    interleave({"with": with_marks, "without": partial(timed, "without", _read)}, rounds, tell=tell)
    counted = {name: values[1:] for name, values in seconds.items()}  # the first round is the warm-up
    return Costs(
        marks_cost_us(),
        stack_cost_us(model),
        1e6 * float(np.median(counted["without"])),
        paired_ratio(counted["with"], counted["without"]),
    )


def _read(stream: Iterator[object]) -> None:
    for _ in stream:
        pass


def _median_us(run: Callable[[], object], tokens: int) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1e6 * float(np.median(seconds)) / tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.harness_cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("package", type=Path, help="folder of a finished package for the CPU")
    parser.add_argument("--rounds", type=int, default=40, help="runs with marks and without (default: 40)")
    options = parser.parse_args(arguments)
    try:
        if options.rounds < 1:
            raise PackageError(f"--rounds: must be 1 or more, but got {options.rounds}")
        costs = measure_costs(
            options.package,
            options.rounds,
            tell=lambda line: print(f"\r{line}   ", end="", file=sys.stderr, flush=True),
        )
    except (OlivalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(file=sys.stderr)
    print(f"a token of {options.package.name}: {costs.token_us:.1f} us")
    verdict = "met" if costs.share < AT_MOST else "MISSED"
    target = f"at most {AT_MOST:.0%}: {verdict}"
    print(f"the measuring loop: {costs.marks_us:.3f} us a token, {costs.share:.3%} of it ({target})")
    print(f"the runtime's generators: {costs.stack_us:.3f} us a token, {costs.stack_us / costs.token_us:.3%} of it")
    ratio = costs.in_place
    print(f"in place, time with marks / without: {ratio.median:.4f} ({ratio.low:.4f} to {ratio.high:.4f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
