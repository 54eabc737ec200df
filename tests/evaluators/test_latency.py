"""Timing with a clock of our own: what is counted, in which order, when a percentile is given, when a warm-up ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from evaluators.latency import (
    LEAST_SAMPLES,
    WarmUp,
    distribution,
    measure_calls,
    measure_generation,
    rate,
    table_intervals,
    table_values,
)


class Clock:
    """Stands for time.perf_counter; time passes only by `wait`."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.log: list[str] = []

    def seconds(self) -> float:
        return self.now_ms / 1000

    def wait(self, milliseconds: float) -> None:
        self.now_ms += milliseconds

    def stream(self, name: str, first: float, gaps: Sequence[float]) -> Callable[[], Iterator[str]]:
        """A stream whose first token takes `first` ms and the others `gaps`; the n-th start of it adds n ms to each."""
        starts = 0

        def start() -> Iterator[str]:
            nonlocal starts
            starts += 1
            self.log.append(name)
            for gap in [first, *gaps]:
                self.wait(gap + starts)
                yield name

        return start

    def call(self, name: str, durations: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.wait(next(durations))

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("evaluators.latency.time.perf_counter", clock.seconds)
    return clock


def test_warm_up_runs_but_does_not_count(clock: Clock) -> None:
    """Starts 1 and 2 are warm-up; starts 3 to 7 take 100 + 3..7 ms for the first token and 10 + 3..7 for each other."""
    streams = {"a": clock.stream("a", 100, [10, 10])}
    measured = measure_generation(streams, runs=5, warmup=WarmUp(2, 2), batch_size=4)["a"]
    assert clock.log == ["a"] * 7
    assert measured["ttft_ms"]["p50"] == pytest.approx(105)
    assert measured["tpot_ms"]["p50"] == pytest.approx(15) and measured["tpot_ms"]["samples"] == 10
    assert measured["end_to_end_ms"]["p50"] == pytest.approx(105 + 2 * 15)
    assert measured["tokens_per_second"]["median"] == pytest.approx(4 * 1000 / 15)
    assert (measured["batch_size"], measured["runs"], measured["warmup_runs"]) == (4, 5, 2)
    assert measured["stable"] is False  # two runs cannot show it
    assert table_values(measured) == {
        "ttft_p50_ms": measured["ttft_ms"]["p50"],
        "ttft_p90_ms": None,
        "tpot_p50_ms": measured["tpot_ms"]["p50"],
        "tpot_p90_ms": None,
        "tokens_per_second": measured["tokens_per_second"]["median"],
    }
    distributions = {"ttft_p50_ms": measured["ttft_ms"], "tpot_p50_ms": measured["tpot_ms"]}
    assert table_intervals(measured) == {
        **{metric: [values["p50_low"], values["p50_high"]] for metric, values in distributions.items()},
        **dict.fromkeys(("ttft_p90_ms", "tpot_p90_ms")),
        "tokens_per_second": [measured["tokens_per_second"]["low"], measured["tokens_per_second"]["high"]],
    }
    assert measured["ttft_ms"]["p50_low"] < 105 < measured["ttft_ms"]["p50_high"]


def test_streams_take_turns(clock: Clock) -> None:
    lines: list[str] = []
    streams = {"a": clock.stream("a", 1, [1]), "b": clock.stream("b", 50, [5])}
    measured = measure_generation(streams, runs=5, warmup=WarmUp(1, 1), tell=lines.append)
    assert clock.log == ["a", "b"] * 6
    assert lines == ["warm-up 1 (at most 1)", *(f"run {n} of 5" for n in range(1, 6))]
    assert measured["a"]["ttft_ms"]["p50"] == pytest.approx(1 + 4)
    assert measured["b"]["ttft_ms"]["p50"] == pytest.approx(50 + 4)


def test_the_rate_is_later_tokens_by_their_time(clock: Clock) -> None:
    """Gaps of unequal length: by the mean gap (as tokens / time is), not by the median gap."""
    measured = measure_generation({"a": clock.stream("a", 500, [1, 1, 40])}, runs=5, warmup=WarmUp(0, 0))["a"]
    assert measured["tokens_per_second"]["median"] == pytest.approx(3 / (42 + 3 * 3) * 1000)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_stream_without_later_tokens_has_no_time_per_token(clock: Clock, tokens: int) -> None:
    stream = clock.stream("a", 1, []) if tokens else lambda: iter(())
    measured = measure_generation({"a": stream}, runs=5, warmup=WarmUp(0, 0))["a"]
    assert measured["ttft_ms"]["samples"] == measured["end_to_end_ms"]["samples"] == 5 * tokens
    assert measured["tpot_ms"]["samples"] == 0
    assert measured["tpot_ms"]["missing"]["p50"] == "needs 5 samples, has 0"
    assert measured["tokens_per_second"] == {"median": None, "low": None, "high": None}
    intervals = table_intervals(measured)
    assert intervals.keys() == table_values(measured).keys() and intervals["tpot_p50_ms"] is None
    assert (intervals["ttft_p50_ms"] is None) == (not tokens) and intervals["tokens_per_second"] is None


def test_calls_take_turns_after_their_warm_up(clock: Clock) -> None:
    calls = {"a": clock.call("a", iter(range(100))), "b": clock.call("b", iter(range(1000, 1100)))}
    measured = measure_calls(calls, runs=20, warmup=WarmUp(3, 3), batch_size=8)
    assert clock.log == ["a", "b"] * 23
    counted = np.arange(3, 23)
    assert table_values(measured["a"]) == {
        "classify_p50_ms": pytest.approx(np.percentile(counted, 50)),
        "classify_p90_ms": pytest.approx(np.percentile(counted, 90)),
    }
    low, high = measured["a"]["latency_ms"]["p50_low"], measured["a"]["latency_ms"]["p50_high"]
    assert table_intervals(measured["a"]) == {"classify_p50_ms": [low, high], "classify_p90_ms": None}
    assert 3 <= low < np.percentile(counted, 50) < high <= 22
    assert measured["b"]["latency_ms"]["p90"] == pytest.approx(np.percentile(counted + 1000, 90))
    assert measured["a"]["rows_per_second"]["median"] == pytest.approx(np.median(8000 / counted))


SLOW_START = [100, 60, 30, 12, 11, 10, 10, 10, 10, 10, 10]


@pytest.mark.parametrize(
    ("durations", "warmup", "runs", "stable"),
    [
        ([10] * 30, WarmUp(), 6, True),  # two windows of three
        ([10] * 30, WarmUp(least=9), 9, True),
        # medians of runs 1 to 3, 2 to 4, ...: 60 30 12 11 10 10; 11 (runs 4 to 6) and 10 (7 to 9) are 9 % apart
        ([*SLOW_START, *[10] * 30], WarmUp(), 10, True),
        ([*SLOW_START, *[10] * 30], WarmUp(within=0.1), 9, True),
        ([10.0 * 2**n for n in range(30)], WarmUp(most=12), 12, False),
        ([10] * 30, WarmUp(least=3, most=3), 3, False),
        ([10] * 30, WarmUp(window=2, least=2), 4, True),
        ([*[10] * 3, *[10.4] * 30], WarmUp(), 6, True),  # 4 % more is alike
        ([*[10] * 3, *[10.6] * 30], WarmUp(), 8, True),  # at 8 runs the earlier window is 10, 10.6, 10.6
    ],
)
def test_warm_up_ends_when_two_windows_agree(
    clock: Clock, durations: list[float], warmup: WarmUp, runs: int, stable: bool
) -> None:
    measured = measure_calls({"a": clock.call("a", iter(durations))}, runs=1, warmup=warmup)["a"]
    assert (measured["warmup_runs"], measured["stable"]) == (runs, stable)
    assert len(clock.log) == runs + 1


def test_the_slowest_to_settle_keeps_all_warming_up(clock: Clock) -> None:
    slow = iter([*SLOW_START, *[10] * 30])
    measured = measure_calls({"a": clock.call("a", iter([5] * 50)), "b": clock.call("b", slow)}, runs=1)
    assert [measured[name]["warmup_runs"] for name in "ab"] == [10, 10]
    assert clock.log == ["a", "b"] * 11


@pytest.mark.parametrize("count", [0, 4, 5, 19, 20, 640, 999, 1000, 1500])
def test_a_percentile_needs_enough_samples(count: int) -> None:
    samples = np.random.default_rng(count).gamma(2, 10, count)
    found = distribution(np.array_split(samples, 5))
    assert list(found) == ["samples", "p50", "p90", "p99", "missing", "p50_low", "p50_high"]
    assert found["samples"] == count
    for percentile, least in LEAST_SAMPLES.items():
        name = f"p{percentile}"
        if count < least:
            assert found[name] is None and found["missing"][name] == f"needs {least:,} samples, has {count:,}"
        else:
            assert found[name] == pytest.approx(np.percentile(samples, percentile))
    assert {name for name, value in found.items() if value is None} == set(found["missing"])


@pytest.mark.parametrize("per_run", [1, 7])
def test_the_interval_of_the_median_is_a_bootstrap_over_runs(per_run: int) -> None:
    """scipy's, of one value a run; values of one run that are all alike add no certainty."""
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).gamma(2, 10, 41)
    found = distribution([[value] * per_run for value in values])
    reference = bootstrap((values,), np.median, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    width = reference.high - reference.low
    assert found["p50_low"] == pytest.approx(reference.low, abs=0.1 * width)
    assert found["p50_high"] == pytest.approx(reference.high, abs=0.1 * width)
    assert found["p50_low"] < found["p50"] < found["p50_high"]


def test_runs_of_unequal_length_are_drawn_whole() -> None:
    """The definition, written out: runs drawn with replacement, the median of all their samples."""
    draw = np.random.default_rng(5)
    runs = [draw.gamma(2, 10, count) for count in [1, 9, 4, 4, 2, 7, 12, 3]]
    medians = [
        np.median(np.concatenate([runs[i] for i in draw.integers(len(runs), size=len(runs))])) for _ in range(5000)
    ]
    low, high = np.percentile(medians, [2.5, 97.5])
    found = distribution(runs)
    assert found["p50"] == np.median(np.concatenate(runs))
    assert found["p50_low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert found["p50_high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_few_runs_have_no_interval_however_many_tokens_they_have() -> None:
    found = distribution([[1.0] * 300] * 4)
    assert found["p50"] == 1 and found["p99"] == 1
    assert found["missing"] == dict.fromkeys(("p50_low", "p50_high"), "needs 5 runs, has 4")


def test_a_rate_is_the_median_of_the_runs() -> None:
    values = [3.0, 9.0, 4.0, 5.0, 8.0, 7.0]
    found = rate(values)
    assert found["median"] == np.median(values)
    assert 3 <= found["low"] < found["median"] < found["high"] <= 9  # type: ignore[operator]
    assert rate(values[:4]) == {"median": None, "low": None, "high": None}
