"""The adapter benchmark end to end on a tiny shape: structure and arithmetic of its results, never its times."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.adapter_speed import main
from benchmark.interleaved import Ratio, interleave, paired_ratio
from benchmark.random_base import SHAPES, save_random_base
from benchmark.speed_table import Row, as_markdown

TARGETS = {">= 0.97", ">= 0.9", ">= 0.84", ">= 0.72", ">= 0.75", ">= 2.5", ">= 1.19", "<= 1.05", "<= 1.5", "<= 1"}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """The command on the tiny shape; returns the content of its results file."""
    out = folder / "results.json"
    sizes = ["--rounds", "3", "--tokens", "2", "--prompt", "16"]
    arguments = ["--shape", "tiny", "--work", str(folder), "--out", str(out), *sizes, *options]
    monkeypatch.setattr(sys, "argv", ["adapter_speed", *arguments])
    main()
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return results


def check(results: dict[str, Any], targets: set[str]) -> None:
    rows = results["rows"]
    assert {row["target"] for row in rows} - {None} == targets
    for row in rows:
        assert 0 < row["low"] <= row["median"] <= row["high"] < math.inf
        assert (row["met"] is None) == (row["target"] is None)
    assert (results["vocabulary"], results["layers"], results["threads"]) == (512, 2, 2)
    samples = results["samples"]
    assert {len(x) for x in samples["decode"].values()} == {3}
    assert {len(x) for x in samples["prefill"].values()} == {2}
    by_name = {row["what"]: row for row in rows}
    wanted = np.median(np.divide(samples["decode"]["base"], samples["decode"]["rank 8"]))
    assert by_name["decode: rank 8"]["median"] == pytest.approx(wanted)
    mixed = np.median(8 * np.divide(samples["batch"]["rank 16"], samples["batch"]["8 adapters"]))
    assert by_name["batch of 8 adapters / one after the other"]["median"] == pytest.approx(mixed)
    assert all(entry["peak_rss_bytes"] > 2**20 for entry in results["memory"].values())
    assert results["errors"]["adapter_int8"]["mean"] > 0


@pytest.mark.slow
def test_tiny_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path, monkeypatch, "--skip-stock")
    check(results, TARGETS)
    table = as_markdown(results)
    assert table.count("\n| ") == len(results["rows"]) + 1
    assert "vocabulary 512" in table
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["adapter_speed", "--out", str(tmp_path / "results.json"), "--markdown"])
    main()
    assert capsys.readouterr().out == table


@pytest.mark.slow
def test_stock_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(tmp_path, monkeypatch)
    check(results, {*TARGETS, ">= 1.5"})
    assert len(results["samples"]["decode"]["stock"]) == 3


def test_random_base_is_what_transformers_expects(tmp_path: Path) -> None:
    """No weight is missing, none is left over, and a second call changes nothing."""
    from transformers import AutoModelForCausalLM

    save_random_base(tmp_path, "tiny")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vocab_size == SHAPES["tiny"]["vocab_size"]
    weight = model.model.layers[1].mlp.down_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    before = (tmp_path / "model.safetensors.index.json").stat().st_mtime_ns
    save_random_base(tmp_path, "tiny")
    assert (tmp_path / "model.safetensors.index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("shape, millions", [("qwen2.5-0.5b", 494.0), ("llama-3.2-1b", 1235.8)])
def test_shapes_have_the_published_size(shape: str, millions: float) -> None:
    """Parameter counts of the model cards; transformers builds the models without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {key: value for key, value in SHAPES[shape].items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(SHAPES[shape]["model_type"], **config, tie_word_embeddings=True)
        )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_interleave_runs_each_load_once_a_round() -> None:
    calls: list[str] = []
    loads = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    lines: list[str] = []
    seconds = interleave(loads, rounds=4, seed=1, tell=lines.append)
    assert {name: len(x) for name, x in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    turns = [calls[i : i + 3] for i in range(0, 15, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert lines == ["warm-up", *(f"round {i} of 4" for i in range(1, 5))]


def test_paired_ratio() -> None:
    """A common slowdown of a round cancels; the interval holds the median."""
    slow = np.array([1.0, 5.0, 2.0, 9.0, 1.0])
    assert paired_ratio((2 * slow).tolist(), slow.tolist()) == Ratio(2.0, 2.0, 2.0)
    found = paired_ratio([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert found.low < found.median == 3 < found.high


@pytest.mark.parametrize(
    "row, target, met",
    [
        (Row("a", Ratio(0.9, 0.8, 1.0), at_least=0.9), ">= 0.9", True),
        (Row("a", Ratio(0.89, 0.8, 1.0), at_least=0.9), ">= 0.9", False),
        (Row("a", Ratio(1.06, 0.8, 1.1), at_most=1.05), "<= 1.05", False),
        (Row("a", Ratio(1.0, 1.0, 1.0)), "", None),
    ],
)
def test_targets(row: Row, target: str, met: bool | None) -> None:
    assert (row.target, row.met) == (target, met)
