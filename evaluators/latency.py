"""Latency of generation: time to first token and time per output token, after a warm-up.

Definitions as in MLPerf Client and onnxruntime-genai's benchmark: time to first token covers the prompt's prefill and
the first sampled token; time per output token is the time between later tokens of one answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

# a percentile p needs samples on both sides of it: p50 from 5, p90 from 20 (two samples above it)
LEAST_SAMPLES = {50: 5, 90: 20}


def generation_latencies(
    streams: Mapping[str, Callable[[], Iterator[object]]], repeats: int = 20, warmup: int = 3
) -> dict[str, dict[str, float | None]]:
    """Times `repeats` answers of each stream, in turn, so that a noisy machine hits all of them alike.

    A stream is started by calling it and yields once a token. Returns for each name milliseconds ttft_p50_ms,
    ttft_p90_ms, tpot_p50_ms, tpot_p90_ms, and tokens_per_second (median over answers, tokens after the first); None
    where the samples do not support a percentile.
    """
    first: dict[str, list[float]] = {name: [] for name in streams}
    between: dict[str, list[float]] = {name: [] for name in streams}
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for run in range(warmup + repeats):
        for name, stream in streams.items():
            marks = [time.perf_counter()]
            for _ in stream():
                marks.append(time.perf_counter())
            if run < warmup or len(marks) < 2:
                continue
            gaps = np.diff(marks) * 1000
            first[name].append(float(gaps[0]))
            between[name] += gaps[1:].tolist()
            if len(gaps) > 1:
                rates[name].append(1000 * (len(gaps) - 1) / float(gaps[1:].sum()))
    return {
        name: {
            **percentiles("ttft", first[name]),
            **percentiles("tpot", between[name]),
            "tokens_per_second": float(np.median(rates[name])) if rates[name] else None,
        }
        for name in streams
    }


def call_latencies(
    calls: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 3
) -> dict[str, dict[str, float | None]]:
    """Times `repeats` calls of each function in turn: classify_p50_ms and classify_p90_ms for each name."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(warmup + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if run >= warmup:
                samples[name].append((time.perf_counter() - start) * 1000)
    return {name: percentiles("classify", values) for name, values in samples.items()}


def percentiles(kind: str, samples: list[float]) -> dict[str, float | None]:
    """The percentiles that the sample count supports, None for the others."""
    return {
        f"{kind}_p{p}_ms": float(np.percentile(samples, p)) if len(samples) >= least else None
        for p, least in LEAST_SAMPLES.items()
    }
