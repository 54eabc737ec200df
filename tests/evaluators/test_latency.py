"""Timing with a clock of our own: what is counted, in which order, and when a percentile is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from evaluators.latency import LEAST_SAMPLES, call_latencies, generation_latencies, percentiles


class Clock:
    """Stands for time.perf_counter; time passes only by `wait`."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.log: list[str] = []

    def seconds(self) -> float:
        return self.now_ms / 1000

    def wait(self, milliseconds: float) -> None:
        self.now_ms += milliseconds

    def stream(self, name: str, first: float, gaps: list[float]) -> Callable[[], Iterator[str]]:
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("evaluators.latency.time.perf_counter", clock.seconds)
    return clock


def test_warm_up_runs_but_does_not_count(clock: Clock) -> None:
    """Starts 1 and 2 are warm-up; starts 3 to 7 take 100 + 3..7 ms for the first token and 10 + 3..7 for each other."""
    timings = generation_latencies({"a": clock.stream("a", 100, [10, 10])}, repeats=5, warmup=2)
    assert clock.log == ["a"] * 7
    assert timings["a"]["ttft_p50_ms"] == pytest.approx(105)
    assert timings["a"]["tpot_p50_ms"] == pytest.approx(15)
    assert timings["a"]["tokens_per_second"] == pytest.approx(1000 / 15)


def test_streams_take_turns(clock: Clock) -> None:
    streams = {"a": clock.stream("a", 1, [1]), "b": clock.stream("b", 50, [5])}
    timings = generation_latencies(streams, repeats=5, warmup=1)
    assert clock.log == ["a", "b"] * 6
    assert timings["a"]["ttft_p50_ms"] == pytest.approx(1 + 4) and timings["b"]["ttft_p50_ms"] == pytest.approx(50 + 4)


def test_the_first_token_is_not_in_the_time_per_token(clock: Clock) -> None:
    timings = generation_latencies({"a": clock.stream("a", 1000, [2] * 8)}, repeats=1, warmup=0)
    assert timings["a"]["tpot_p50_ms"] == pytest.approx(3) and timings["a"]["ttft_p50_ms"] is None


@pytest.mark.parametrize(("gaps", "rate"), [([], None), ([10], 1000 / 13)])
def test_one_token_has_no_rate(clock: Clock, gaps: list[float], rate: float | None) -> None:
    timings = generation_latencies({"a": clock.stream("a", 1, gaps)}, repeats=5, warmup=0)["a"]
    assert timings["tokens_per_second"] == (None if rate is None else pytest.approx(rate))
    assert (timings["tpot_p50_ms"] is None) == (rate is None) and timings["ttft_p50_ms"] is not None


def test_an_empty_stream_is_not_a_measurement(clock: Clock) -> None:
    timings = generation_latencies({"a": lambda: iter(())}, repeats=20, warmup=0)
    assert set(timings["a"].values()) == {None}


def test_calls_take_turns_after_their_warm_up(clock: Clock) -> None:
    durations = {"a": iter(range(100)), "b": iter(range(1000, 1100))}

    def call(name: str) -> None:
        clock.log.append(name)
        clock.wait(next(durations[name]))

    timings = call_latencies({"a": lambda: call("a"), "b": lambda: call("b")}, repeats=20, warmup=3)
    assert clock.log == ["a", "b"] * 23
    counted = np.arange(3, 23)
    assert timings["a"]["classify_p50_ms"] == pytest.approx(np.percentile(counted, 50))
    assert timings["b"]["classify_p90_ms"] == pytest.approx(np.percentile(counted + 1000, 90))


@pytest.mark.parametrize("count", [0, 4, 5, 19, 20, 50])
def test_a_percentile_needs_enough_samples(count: int) -> None:
    samples = [float(value) for value in range(count)]
    result = percentiles("ttft", samples)
    assert list(result) == ["ttft_p50_ms", "ttft_p90_ms"]
    for percentile, least in LEAST_SAMPLES.items():
        value = result[f"ttft_p{percentile}_ms"]
        assert (value is None) == (count < least)
        assert value is None or value == pytest.approx(np.percentile(samples, percentile))
