"""The two loops that are compared, with a clock of our own and on a tiny package; what measuring costs."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark import genai_loop, harness_cost
from benchmark.genai_loop import Speed, compare, genai_run, our_run, ratios
from benchmark.harness_cost import marks_cost_us, measure_costs, stack_cost_us
from benchmark.interleaved import Ratio
from runtime.model import MultiAdapterModel
from runtime.options import GenerationOptions


class Machine:
    """A clock that only a fake onnxruntime-genai moves: prompt 100 ms, first token 10, others 5, 7, 9, ..."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.tokens = 0
        self.log: list[Any] = []
        self.length = 0

    def spend(self, milliseconds: float) -> None:
        self.now_ms += milliseconds

    def module(self) -> types.SimpleNamespace:
        machine = self

        class Params:
            def __init__(self, model: object) -> None:
                machine.log.append(model)

            def set_search_options(self, **options: Any) -> None:
                machine.log.append(options)
                machine.length = options["max_length"]

        class Generator:
            def __init__(self, model: object, params: Params) -> None:
                machine.tokens = 0

            def append_tokens(self, ids: np.ndarray) -> None:
                machine.log.append(ids.tolist())
                machine.tokens += ids.shape[1]
                machine.spend(100)

            def generate_next_token(self) -> None:
                later = machine.tokens - len(machine.log[-1][0])
                machine.spend(5 + 2 * (later - 1) if later else 10)
                machine.tokens += 1

            def get_next_tokens(self) -> np.ndarray:
                machine.spend(1)
                return np.array([7])

            def is_done(self) -> bool:
                machine.spend(50)
                return machine.tokens == machine.length

        return types.SimpleNamespace(GeneratorParams=Params, Generator=Generator)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", machine.module())
    monkeypatch.setattr("time.perf_counter", lambda: machine.now_ms / 1000)
    return machine


@pytest.mark.parametrize(("read", "per_token"), [(False, 7), (True, 8)])
def test_their_loop_times_each_token_alone(machine: Machine, read: bool, per_token: int) -> None:
    """Three tokens after the first take 5, 7 and 9 ms; asking for the end, and the prompt, are not in the rate."""
    speed = genai_run("model", [3, 4], new_tokens=4, read=read)
    assert speed.ttft_ms == pytest.approx(110)
    assert speed.tokens_per_second == pytest.approx(1000 / per_token)
    options = {"do_sample": False, "batch_size": 1, "max_length": 6, "min_length": 6}
    assert machine.log == ["model", options, [[3, 4]]] and machine.tokens == 6


def test_our_loop_times_what_a_reader_waits_for(machine: Machine) -> None:
    class Generator:
        def steps(self, rows: list[Any], options: GenerationOptions) -> Iterator[list[int]]:
            assert rows == [([3, 4], None)] and not options.stop_at_eos
            for token in range(options.max_new_tokens):
                machine.spend(5 + 2 * (token - 1) if token else 110)
                yield [token]

    speed = our_run(Generator(), [3, 4], 4)  # type: ignore[arg-type]
    assert (speed.ttft_ms, speed.tokens_per_second) == (pytest.approx(110), pytest.approx(1000 / 7))


def test_ratios_are_of_neighbours() -> None:
    speeds = {
        "ours": [Speed(10, 90), Speed(40, 9)],
        "theirs": [Speed(10, 100), Speed(20, 10)],
        "theirs, reading tokens": [Speed(10, 90), Speed(20, 9)],
    }
    found = ratios(speeds)
    assert found["tokens per second, ours / theirs"] == Ratio(*[pytest.approx(0.9)] * 3)  # type: ignore[arg-type]
    assert found["tokens per second, ours / theirs, reading tokens"] == Ratio(1, 1, 1)
    assert found["time to first token, ours / theirs"] == Ratio(1.5, 1, 2)


def test_on_a_package(package_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    speeds = compare(package_folder, rounds=3, prompt_tokens=8, new_tokens=4, tell=lines.append)
    assert list(speeds) == ["ours", "theirs", "theirs, reading tokens"]
    assert all(len(runs) == 3 and min(map(min, runs)) > 0 for runs in speeds.values())
    assert lines == ["warm-up", "round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert genai_loop.main([str(package_folder), "--rounds", "1", "--new-tokens", "3"]) == 0
    assert "agree within 5%" in capsys.readouterr().out
    assert genai_loop.main([str(package_folder), "--rounds", "0", "--new-tokens", "1"]) == 1
    message = capsys.readouterr().err
    assert "--rounds: must be 1 or more, but got 0" in message
    assert "--new-tokens: must be 2 or more, but got 1" in message


def test_costs(package_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How large they are is the machine's matter."""
    costs = measure_costs(package_folder, rounds=2, new_tokens=4, tell=lambda line: None)
    assert min(costs.marks_us, costs.stack_us, costs.token_us, costs.in_place.low) > 0
    assert costs.share == costs.marks_us / costs.token_us
    assert harness_cost.main([str(package_folder), "--rounds", "1"]) == 0
    assert "a token of tiny: " in capsys.readouterr().out
    assert harness_cost.main([str(package_folder / "adapters")]) == 1
    assert "is no package" in capsys.readouterr().err


def test_costs_are_per_token(package_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each reading moves by 1 us: a run of n marks reads it n + 1 times within one interval of two."""
    readings = iter(range(10**7))
    monkeypatch.setattr("time.perf_counter", lambda: next(readings) * 1e-6)
    assert marks_cost_us(tokens=100) == pytest.approx((100 + 2) / 100)
    assert stack_cost_us(MultiAdapterModel.load(package_folder), tokens=100) == pytest.approx(1 / 100)
