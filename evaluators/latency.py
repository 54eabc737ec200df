"""Latency of generation and classification, after a warm-up: distributions, and only where the samples support them.

What is measured, of one prompt or of a batch of them that is computed together:

- time to first token: from the call that starts a run until its first token is there, which is prompt processing and
  the first choice of a token (MLPerf Client rules, section 2.1; onnxruntime-genai's benchmark/python/benchmark_e2e.py
  calls the two parts prompt processing latency and sampling latency);
- time per output token: the times between later tokens of a run (token generation and sampling latency there);
- tokens per second: tokens after the first, of all rows, by the time that they took. Prompt tokens do not count, nor
  does the first token: MLPerf Client's tokens per second and benchmark_e2e.py's token generation throughput. (Its wall
  clock throughput is another number: it counts prompt tokens.)
- end to end: from the call that starts a run until its last token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

# a percentile needs samples on both sides of it: of 20 two lie above p90, of 1,000 ten above p99
LEAST_SAMPLES = {50: 5, 90: 20, 99: 1000}
TABLE_PERCENTILES = (50, 90)  # those of a workflow's table, whose runs are few
PROMPT_TEXT = "The quick brown fox jumps over the lazy dog. "  # repeated, it makes a prompt of any length
_RESAMPLES = 1000
_KINDS = {"ttft": "ttft_ms", "tpot": "tpot_ms", "classify": "latency_ms"}  # a table's names: a measurement's


class WarmUp(NamedTuple):
    """How long to warm up: until the medians of the last two windows of runs differ by at most a share of the earlier.

    least, most: runs; at least two windows are needed to see that they agree. window: runs. within: a share.
    """

    least: int = 6
    most: int = 20
    window: int = 3
    within: float = 0.05

    def stable(self, seconds: Sequence[float]) -> bool:
        """Whether runs that took these seconds ended stable; fewer than two windows cannot say so."""
        if len(seconds) < 2 * self.window:
            return False
        before, last = np.median(seconds[-2 * self.window : -self.window]), np.median(seconds[-self.window :])
        return bool(abs(last - before) <= self.within * before)


UNTIL_STABLE = WarmUp()


def measure_generation(
    streams: Mapping[str, Callable[[], Iterable[object]]],
    runs: int = 20,
    warmup: WarmUp = UNTIL_STABLE,
    batch_size: int = 1,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Times `runs` runs of each stream after the warm-up, in turn, so that a noisy machine hits all of them alike.

    Args:
        streams: by name; a stream is started by calling it and yields once a step, one token of each row.
        runs: that count, of each stream.
        warmup: the same number of runs for all streams.
        batch_size: rows of each stream.
        tell: called with a line about the progress before each turn.

    Returns:
        For each name {"batch_size", "runs", "ttft_ms", "tpot_ms", "end_to_end_ms", "tokens_per_second",
        "warmup_runs", "stable"}: distributions (see `distribution`), a rate (see `rate`), and whether the warm-up ended
        stable. A stream without tokens has no samples.
    """
    loads = {name: partial(stream_marks, stream) for name, stream in streams.items()}
    measured = {}
    for name, timed in _timed(loads, runs, warmup, tell).items():
        gaps = [1000 * np.diff(marks) for marks in timed.marks]
        measured[name] = {
            "batch_size": batch_size,
            "runs": runs,
            "ttft_ms": distribution([run[:1] for run in gaps]),
            "tpot_ms": distribution([run[1:] for run in gaps]),
            "end_to_end_ms": distribution([[run.sum()] for run in gaps if len(run)]),
            "tokens_per_second": rate([1000 * batch_size / run[1:].mean() for run in gaps if len(run) > 1]),
            "warmup_runs": timed.warmup_runs,
            "stable": timed.stable,
        }
    return measured


def measure_calls(
    calls: Mapping[str, Callable[[], object]],
    runs: int = 20,
    warmup: WarmUp = UNTIL_STABLE,
    batch_size: int = 1,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Times calls, each of which handles `batch_size` rows; the other arguments as in `measure_generation`.

    Returns:
        For each name {"batch_size", "runs", "latency_ms", "rows_per_second", "warmup_runs", "stable"}.
    """
    loads = {name: partial(_call_marks, call) for name, call in calls.items()}
    measured = {}
    for name, timed in _timed(loads, runs, warmup, tell).items():
        seconds = [end - start for start, end in timed.marks]
        measured[name] = {
            "batch_size": batch_size,
            "runs": runs,
            "latency_ms": distribution([[1000 * x] for x in seconds]),
            "rows_per_second": rate([batch_size / x for x in seconds]),
            "warmup_runs": timed.warmup_runs,
            "stable": timed.stable,
        }
    return measured


def distribution(runs: Sequence[Sequence[float] | np.ndarray]) -> dict[str, Any]:
    """Percentiles of the samples of all runs, in the samples' unit; those that they do not support are None.

    The interval of the median is a bootstrap's, of 95 % (Efron 1979). It draws whole runs, for the samples of one run
    are alike (cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Returns:
        {"samples", "p50", "p90", "p99", "missing", "p50_low", "p50_high"}; "missing" says of each None why.
    """
    values = [np.asarray(run, float) for run in runs if len(run)]
    samples = np.concatenate(values) if values else np.zeros(0)
    missing: dict[str, str] = {}
    result: dict[str, Any] = {"samples": len(samples)}
    for percentile, least in LEAST_SAMPLES.items():
        name = f"p{percentile}"
        result[name] = float(np.percentile(samples, percentile)) if len(samples) >= least else None
        if len(samples) < least:
            missing[name] = f"needs {least:,} samples, has {len(samples):,}"
    low, high = _median_interval(values)
    result |= {"missing": missing, "p50_low": low, "p50_high": high}
    if low is None:
        missing |= dict.fromkeys(("p50_low", "p50_high"), f"needs {LEAST_SAMPLES[50]} runs, has {len(values)}")
    return result


def rate(values: Sequence[float]) -> dict[str, float | None]:
    """{"median", "low", "high"} of one value a run: median and its interval as in `distribution`, None for few runs."""
    found = distribution([[value] for value in values])
    return {"median": found["p50"], "low": found["p50_low"], "high": found["p50_high"]}


def table_values(measured: Mapping[str, Any]) -> dict[str, float | None]:
    """A measurement as a workflow's table has it: ttft_p50_ms, tpot_p90_ms, tokens_per_second, classify_p50_ms, ..."""
    values = {
        f"{kind}_p{percentile}_ms": measured[key][f"p{percentile}"]
        for kind, key in _KINDS.items()
        if key in measured
        for percentile in TABLE_PERCENTILES
    }
    if "tokens_per_second" in measured:
        values["tokens_per_second"] = measured["tokens_per_second"]["median"]
    return values


def table_intervals(measured: Mapping[str, Any]) -> dict[str, list[float] | None]:
    """95 % intervals of `table_values`: of the medians, as far as the runs support them; None for the rest."""
    found: dict[str, list[float] | None] = dict.fromkeys(table_values(measured))
    for kind, key in _KINDS.items():
        if key in measured and measured[key]["p50_low"] is not None:
            found[f"{kind}_p50_ms"] = [measured[key]["p50_low"], measured[key]["p50_high"]]
    if "tokens_per_second" in measured and measured["tokens_per_second"]["low"] is not None:
        found["tokens_per_second"] = [measured["tokens_per_second"][end] for end in ("low", "high")]
    return found


class _Timed(NamedTuple):
    marks: list[list[float]]  # of each run that counts: seconds when it started and after each step
    warmup_runs: int
    stable: bool


def _timed(
    loads: Mapping[str, Callable[[], list[float]]], runs: int, warmup: WarmUp, tell: Callable[[str], object]
) -> dict[str, _Timed]:
    """Runs all loads in turn: the warm-up, then the runs that count."""
    seconds: dict[str, list[float]] = {name: [] for name in loads}
    stable, turns = dict.fromkeys(loads, False), 0
    while turns < warmup.least or (turns < warmup.most and not all(stable.values())):
        turns += 1
        tell(f"warm-up {turns} (at most {warmup.most})")
        for name, load in loads.items():
            marks = load()
            seconds[name].append(marks[-1] - marks[0])
            stable[name] = warmup.stable(seconds[name])
    counted: dict[str, list[list[float]]] = {name: [] for name in loads}
    for run in range(1, runs + 1):
        tell(f"run {run} of {runs}")
        for name, load in loads.items():
            counted[name].append(load())
    return {name: _Timed(counted[name], turns, stable[name]) for name in loads}


def stream_marks(start: Callable[[], Iterable[object]]) -> list[float]:
    """Seconds when the stream was started, and after each step; nothing else is done between the steps."""
    clock = time.perf_counter
    marks = [clock()]
    mark = marks.append
    for _ in start():
        mark(clock())
    return marks


def _call_marks(call: Callable[[], object]) -> list[float]:
    start = time.perf_counter()
    call()
    return [start, time.perf_counter()]


def _median_interval(runs: Sequence[np.ndarray]) -> tuple[float | None, float | None]:
    if len(runs) < LEAST_SAMPLES[50]:
        return None, None
    samples, owners = np.concatenate(runs), np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    order = np.argsort(samples)
    samples, owners = samples[order], owners[order]
    medians = []
    for draw in np.random.default_rng(0).integers(len(runs), size=(_RESAMPLES, len(runs))):
        # a run drawn twice counts twice: where each sample, from the smallest, ends in the resampled order
        ends = np.cumsum(np.bincount(draw, minlength=len(runs))[owners])
        middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
        medians.append(samples[np.searchsorted(ends, middle, side="right")].mean())
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)
