"""Compares loads on a noisy machine: each round runs all, in random order, and only ratios within a round count."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """Median of the rounds' ratios, with the bootstrap interval that holds it, with 95 % confidence unless said."""

    median: float
    low: float
    high: float


def interleave(
    loads: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0, tell: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Seconds of each call of each load, round by round, after one round that is not counted.

    Args:
        loads: what to time, by name.
        rounds: at least 1.
        seed: of the order within each round.
        tell: called before each round with a line about the progress.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in loads}
    for turn in range(rounds + 1):
        tell(f"round {turn} of {rounds}" if turn else "warm-up")
        for name in order.sample(list(loads), len(loads)):
            start = time.perf_counter()
            loads[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], seed: int = 0, confidence: float = 0.95
) -> Ratio:
    """Median over rounds of numerator / denominator; the interval resamples rounds 2,000 times (Efron 1979)."""
    ratios = np.asarray(numerator, float) / np.asarray(denominator, float)
    draws = np.random.default_rng(seed).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high))
