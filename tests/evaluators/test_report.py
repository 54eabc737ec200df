"""The table that a run ends with, and the goals that decide its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluators.report import goal_bound, goal_met, goal_text, missed_goals, print_report


def row(metric: str = "accuracy", **changes: Any) -> dict[str, Any]:
    values = {"adapter": "spam", "metric": metric, "base": 0.7, "pytorch": 0.8, "package": 0.79, "tfidf": None}
    return {**values, "higher_is_better": metric != "perplexity", "goal": None, **changes}


def goal(kind: str, value: float) -> dict[str, Any]:
    return {"type": kind, "value": value}


def size(value: float, most: float) -> dict[str, Any]:
    total = {"part": "total", "pytorch": 9e9, "package": value}
    return {**total, "higher_is_better": False, "goal": goal("threshold", most)}


@pytest.mark.parametrize(
    ("kind", "value", "higher_is_better", "bound"),
    [
        ("threshold", 0.9, True, 0.9),
        ("threshold", 0.9, False, 0.9),
        # PyTorch is at 20; better is up
        ("max-degradation", 2, True, 18),
        ("percent-max-degradation", 5, True, 19),
        ("min-improvement", 2, True, 22),
        ("percent-min-improvement", 5, True, 21),
        # better is down
        ("max-degradation", 2, False, 22),
        ("percent-max-degradation", 5, False, 21),
        ("min-improvement", 2, False, 18),
        ("percent-min-improvement", 5, False, 19),
    ],
)
def test_bounds_of_every_kind_of_goal(kind: str, value: float, higher_is_better: bool, bound: float) -> None:
    entry = row("score", pytorch=20.0, goal=goal(kind, value), higher_is_better=higher_is_better)
    assert goal_bound(entry) == pytest.approx(bound)
    step = 0.01 if higher_is_better else -0.01
    assert goal_met({**entry, "package": bound + step}) and goal_met({**entry, "package": goal_bound(entry)})
    assert not goal_met({**entry, "package": bound - step})


def test_before_the_export_a_goal_holds_for_pytorch() -> None:
    entry = row(package=None, goal=goal("threshold", 0.75))
    assert goal_met(entry) and not goal_met({**entry, "pytorch": 0.7})


def test_what_was_not_measured_misses_its_goal() -> None:
    assert not goal_met(
        row("tpot_p50_ms", pytorch=None, package=None, goal=goal("threshold", 5), higher_is_better=False)
    )


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (row(), ""),
        (row(goal=goal("threshold", 0.75)), ">= 0.750 met"),
        (row(goal=goal("threshold", 0.8)), ">= 0.800 MISSED"),
        (row("perplexity", pytorch=4.0, package=4.5, goal=goal("percent-max-degradation", 5)), "<= 4.20 MISSED"),
        (row("tpot_p90_ms", package=3.0, goal=goal("threshold", 2.5), higher_is_better=False), "<= 2.5 MISSED"),
        (size(5e6, 6e6), "<= 6.00 MB met"),
    ],
)
def test_goals_as_text(entry: dict[str, Any], text: str) -> None:
    assert goal_text(entry) == text


def evaluation(**changes: Any) -> dict[str, Any]:
    times = {"ttft_p50_ms": (30.0, 12.345), "ttft_p90_ms": (None, None), "tokens_per_second": (1.0, 2.0)}
    content: dict[str, Any] = {
        "machine": {"cores": 2, "system": "Linux", "processor": "x86_64"},
        "versions": {"torch": "2.13.0", "onnxruntime-genai": None},
        "precision": "int4",
        "quality": [
            row(low=0.71, high=0.85),
            row("f1_macro", goal=goal("threshold", 0.75)),
            row("perplexity", adapter="story", base=9.876),
        ],
        "latency": [{"adapter": None, "metric": m, "pytorch": p, "package": q} for m, (p, q) in times.items()],
        "sizes": [
            {"part": "base", "pytorch": 2_000_000, "package": 500_000},
            {"part": "total", "pytorch": 2_100_000, "package": None},
        ],
    }
    return {**content, **changes}


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_report(evaluation(), None, tmp_path / "out")
    lines = lines_of(capsys)
    assert lines[0] == ["out:", "int4", "ONNX", "package"]
    assert lines[1] == ["adapter", "metric", "base", "PyTorch", "package", "95", "%", "TF-IDF", "goal"]
    assert lines[3:9] == [
        ["spam", "accuracy", "0.700", "0.800", "0.790", "0.710-0.850", "-"],
        ["f1_macro", "0.700", "0.800", "0.790", "-", "-", ">=", "0.750", "met"],
        ["story", "perplexity", "9.88", "0.80", "0.79", "-", "-"],
        ["(base)", "ttft", "ms", "p50/p90", "30/-", "12.3/-"],
        ["base", "size", "MB", "2.00", "0.50"],
        ["total", "size", "MB", "2.10", "-"],
    ]
    assert lines[-2] == ["2", "cores,", "Linux", "x86_64;", "torch", "2.13.0"]
    assert lines[-1] == ["Written", "to", str(tmp_path / "out")]


def test_missing_values_are_dashes_and_no_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quality = [row(base=None, package=None)]
    print_report(evaluation(precision=None, quality=quality, latency=[], sizes=[]), None, tmp_path, written=False)
    lines = lines_of(capsys)
    assert lines[0] == [f"{tmp_path.name}:", "PyTorch", "model"]
    assert lines[1][-1] == "TF-IDF"  # no goal, no column for it
    assert lines[3] == ["spam", "accuracy", "-", "0.800", "-", "-", "-"]
    assert not any(line[0] == "Written" for line in lines)


def test_goals_of_latency_and_size_are_shown_and_count(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    content = evaluation()
    content["latency"][0] |= {"goal": goal("threshold", 12), "higher_is_better": False}
    content["sizes"][0] |= {"goal": goal("threshold", 600_000), "higher_is_better": False}
    print_report(content, None, tmp_path)
    lines = lines_of(capsys)
    assert ["(base)", "ttft", "ms", "p50/p90", "30/-", "12.3/-", "<=", "12", "MISSED"] in lines
    assert ["base", "size", "MB", "2.00", "0.50", "<=", "0.60", "MB", "met"] in lines
    assert missed_goals(content) == ["(base) ttft_p50_ms is 12.3, the goal is <= 12"]


def test_missed_goals_are_all_named() -> None:
    quality = [
        row(goal=goal("threshold", 0.9)),
        row("f1_macro", goal=goal("max-degradation", 0.02)),
        row("perplexity", adapter="story", pytorch=4.0, package=4.5, goal=goal("max-degradation", 0.1)),
    ]
    assert missed_goals(evaluation(quality=quality, sizes=[size(7e6, 6e6)])) == [
        "spam accuracy is 0.790, the goal is >= 0.900",
        "story perplexity is 4.50, the goal is <= 4.10",
        "total size is 7.00 MB, the goal is <= 6.00 MB",
    ]


def manifest(**target: str) -> dict[str, Any]:
    scores = {"max_abs_difference": 0.81, "mean_abs_difference": 0.143, "kl_divergence": 0.0021, "top1_agreement": 0.98}
    exact = {**dict.fromkeys(scores, 3.1e-5), "samples": 16, "executed_on": "cpu"}
    spam = {**scores, "label_flips": 2, "flipped_rows": [], "samples": 256, "executed_on": "cpu"}
    entries = {"spam": spam, "story": {**scores, "samples": 16, "executed_on": "cpu"}, "last": {"executed_on": None}}
    adapters = {name: {"parity": {"fp32": exact, "int4": entry}} for name, entry in entries.items()}
    added: dict[str, Any] = {"added": {"parity": {}}}  # by hand, later
    return {"precision": "int4", "target": {"execution_provider": "dml", **target}, "adapters": {**adapters, **added}}


def test_the_parity_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Beside an evaluation and without one; at most 100 columns wide."""
    print_report(None, manifest(not_executed="no DmlExecutionProvider"), tmp_path / "out")
    output = capsys.readouterr().out
    assert max(len(line) for line in output.splitlines() if "out" not in line) <= 100
    lines = [line.split() for line in output.splitlines() if line.strip()]
    assert lines[0] == ["Not", "executed", "here", "on", "its", "target", "dml:", "no", "DmlExecutionProvider"]
    assert lines[1] == ["adapter", "parity", "max", "diff", "mean", "diff", "KL", "top-1", "label", "flips", "samples"]
    assert lines[3:6] == [
        ["spam", "int4", "on", "cpu", "0.81", "0.14", "0.0021", "0.980", "2", "256"],
        ["story", "int4", "on", "cpu", "0.81", "0.14", "0.0021", "0.980", "-", "16"],
        ["last", "int4,", "not", "executed", "here"],
    ]
    assert lines[6][-1] == "3.1e-05" and lines[7] == ["Written", "to", str(tmp_path / "out")]
    print_report(evaluation(), manifest(), tmp_path / "out")
    both = capsys.readouterr().out
    assert "Not executed" not in both
    assert both.index("int4 on cpu") < both.index("accuracy") < both.index("2 cores, Linux")


def test_what_cannot_be_measured_here_is_not_missed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Even where PyTorch's value, which stands in for it before an export, would miss the goal; sizes still count."""
    quality = [row(package=None, goal=goal("threshold", 0.9), not_measured=True)]
    content = evaluation(quality=quality, sizes=[size(7e6, 6e6)])
    assert missed_goals(content) == ["total size is 7.00 MB, the goal is <= 6.00 MB"]
    print_report(content, None, tmp_path)
    assert ["spam", "accuracy", "0.700", "0.800", "-", "-", "-", ">=", "0.900", "unmeasured"] in lines_of(capsys)
