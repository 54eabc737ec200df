"""What a recommendation weighs: quality as a share of the best, speed as a time with its noise, size in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from evaluators.report import number_text
from search.metric_names import kind
from search.records import StudyRecord, TrialRecord

# Trials run one after another, and a machine drifts between them by more than the noise inside one run: allowed beside
# 95 % intervals, which know the noise of their own run only, ...
DRIFT = 0.10
# ... and where no interval is known, for noise and drift together
DRIFT_AND_NOISE = 0.25
SIZE_TOLERANCE = 0.01  # share of the smallest package's bytes: tokenizer files and names differ by less
_SPEED_ORDER = ("classify_p50_ms", "tpot_p50_ms", "ttft_p50_ms")


def shares_of_best(values: Sequence[float], direction: str) -> list[float]:
    """Each value as a share of the best one: value / best where more is better, best / value where less is.

    That holds for positive values. For all real numbers: with g = value (maximize) or -value (minimize) and G the
    largest g, the share is g / G if G > 0, else G / g. So the best has 1, no other has more, a worse value never has a
    larger share than a better one, and the unit cancels out. A best value of 0 leaves others a share of 0: nothing is
    within a percent of zero. A share is negative where the best is on the other side of zero.
    """
    goods = [value if direction == "maximize" else -value for value in values]
    best = max(goods, default=0.0)
    return [1.0 if good == best else good / best if best > 0 else best / good for good in goods]


def mean_quality(study: StudyRecord, target: str, trials: Sequence[TrialRecord]) -> list[float] | None:
    """Each trial's mean share of the best over the target's quality objectives; None where it has none."""
    objectives = [o for o in study.space.objectives_of(target) if kind(o.metric) == "quality"]
    if not objectives:
        return None
    columns = [shares_of_best([t.metrics[target][o.metric] for t in trials], o.direction) for o in objectives]
    return [sum(shares) / len(shares) for shares in zip(*columns, strict=True)]


def least_equal(best: float, tolerance: float) -> float:
    """The smallest mean share that counts as equal to the best one; the edge itself counts."""
    return best - tolerance * abs(best) - 1e-12


class Speed(NamedTuple):
    """The metric that decides about speed, and whether the space asks for it."""

    metric: str
    asked: bool


def speed_metric(study: StudyRecord, target: str, trials: Sequence[TrialRecord]) -> Speed | None:
    """The target's first latency objective, else its first throughput objective, else a p50 latency of all `trials`.

    Of those first the ones of adapters that quality objectives name, then the base's, then other adapters'; of each
    classification before output tokens before the first token. None where nothing was measured.
    """
    asked = [o.metric for o in study.space.objectives_of(target)]
    for wanted in ("latency", "throughput"):
        if metrics := [metric for metric in asked if kind(metric) == wanted]:
            return Speed(metrics[0], True)
    named = {_owner(metric) for metric in asked if kind(metric) == "quality"}
    common = set.intersection(*(set(t.metrics.get(target, {})) for t in trials)) if trials else set()
    found = [metric for metric in common if metric.rpartition("-")[2] in _SPEED_ORDER]

    def order(metric: str) -> tuple[int, int, str]:
        owner = _owner(metric)
        place = 0 if owner in named else 1 if owner == "" else 2
        return place, _SPEED_ORDER.index(metric.rpartition("-")[2]), metric

    return Speed(min(found, key=order), False) if found else None


def _owner(metric: str) -> str:
    """The adapter of a metric's name, "" for the base."""
    return metric.rpartition("-")[0]


class Time(NamedTuple):
    """A measured time and its 95 % interval, where one is known; the unit is the metric's, or of its inverse."""

    value: float
    interval: tuple[float, float] | None

    def within_noise_of(self, fastest: Time) -> bool:
        """Whether this time could be the fastest one's, after the drift that is allowed."""
        if self.interval is not None and fastest.interval is not None:
            return self.interval[0] <= fastest.interval[1] * (1 + DRIFT)
        return self.value <= fastest.value * (1 + DRIFT_AND_NOISE)


def time_of(trial: TrialRecord, target: str, metric: str) -> Time:
    """A trial's latency; of a throughput its inverse, so that less is always better."""
    value, interval = trial.metrics[target][metric], trial.intervals.get(target, {}).get(metric)
    if kind(metric) == "throughput":
        inverse = tuple(1 / x if x > 0 else math.inf for x in (value, *(interval or ())))
        return Time(inverse[0], (inverse[2], inverse[1]) if interval is not None else None)
    return Time(value, interval)


def value_text(metric: str, value: float | None, unit: bool = True) -> str:
    """A metric's value as people read it: `0.975`, `1.21 ms`, `2.94 MB`, `2,534 tokens/s`."""
    if value is None:
        return "-"
    what = kind(metric)
    if what == "size":
        return f"{value / 1e6:.2f}{' MB' if unit else ''}"
    if what == "throughput":
        return f"{value:,.{0 if value >= 1000 else 1}f}{' tokens/s' if unit else ''}"
    return number_text(metric.rpartition("-")[2], value) + (" ms" if unit and what == "latency" else "")
