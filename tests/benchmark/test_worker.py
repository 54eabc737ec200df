"""One package measured in a process of its own: what the result holds, and what is said of wrong arguments."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.worker import main
from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from tests.passes.test_torch_bases import save_package

SMALL = ["--runs", "5", "--prompt-tokens", "8,16", "--new-tokens", "4", "--batch-sizes", "1,3", "--threads", "1"]
DISTRIBUTION = ["samples", "p50", "p90", "p99", "missing", "p50_low", "p50_high"]


def check_distribution(found: dict[str, Any], samples: int) -> None:
    assert list(found) == DISTRIBUTION and found["samples"] == samples
    assert 0 < found["p50_low"] <= found["p50"] <= found["p50_high"] < math.inf
    assert (found["p90"] is None) == (samples < 20) and found["p99"] is None
    assert found["missing"]["p99"] == f"needs 1,000 samples, has {samples}"


def check_rate(found: dict[str, float]) -> None:
    assert 0 < found["low"] <= found["median"] <= found["high"] < math.inf


def test_a_package_in_a_process_of_its_own(package_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    command = [sys.executable, "-m", "benchmark.worker", str(package_folder), "--output", str(out), *SMALL]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "" and "base, story: 3 x 16 tokens, 4 new" in run.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]
    result = json.loads(out.read_text(encoding="utf-8"))
    manifest = json.loads((package_folder / "package.json").read_text(encoding="utf-8"))
    assert (result["package"], result["precision"]) == (manifest["name"], "fp32")
    assert (result["execution_provider"], result["threads"]) == ("cpu", 1)
    assert result["fingerprint"] == manifest["base"]["fingerprint"]
    assert result["load_seconds"] > 0 and result["peak_rss_bytes"] > 2**24
    sizes = result["size_bytes"]
    assert sizes["adapters"] == {
        n: (package_folder / e["file"]).stat().st_size for n, e in manifest["adapters"].items()
    }
    assert sizes["base"] == sum((package_folder / name).stat().st_size for name in manifest["files"])
    assert sizes["total"] == sizes["base"] + sum(sizes["adapters"].values())
    loads = [(p, b) for p in (8, 16) for b in (1, 3)]
    wanted = [(a, p, b) for p, b in loads for a in (None, "story")]
    assert [(g["adapter"], g["prompt_tokens"], g["batch_size"]) for g in result["generation"]] == wanted
    for measured in result["generation"]:
        assert (measured["new_tokens"], measured["runs"]) == (4, 5)
        assert 6 <= measured["warmup_runs"] <= 20 and isinstance(measured["stable"], bool)
        check_distribution(measured["ttft_ms"], 5)
        check_distribution(measured["tpot_ms"], 15)
        check_distribution(measured["end_to_end_ms"], 5)
        check_rate(measured["tokens_per_second"])
        assert measured["end_to_end_ms"]["p50"] > measured["ttft_ms"]["p50"]
    wanted = [("mood", p, b) for p, b in loads]
    assert [(c["adapter"], c["prompt_tokens"], c["batch_size"]) for c in result["classification"]] == wanted
    for measured in result["classification"]:
        check_distribution(measured["latency_ms"], 5)
        check_rate(measured["rows_per_second"])
    assert result["quality"] == {"mood": {}, "story": {}}  # nothing has scored these adapters


def test_a_chosen_adapter_alone(package_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.json"
    assert main([str(package_folder), "--output", str(out), "--adapters", "story", *SMALL[:6]]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {measured["adapter"] for measured in result["generation"]} == {"story"}
    assert result["classification"] == [] and result["threads"] == 2  # the target's
    assert set(result["size_bytes"]["adapters"]) == {"mood", "story"}


def test_an_encoder_classifies_only(tmp_path: Path) -> None:
    _, _, folder = save_package(tmp_path, "bert", {"mood": "classification"})
    out = tmp_path / "m.json"
    assert main([str(folder), "--output", str(out), "--runs", "5", "--prompt-tokens", "8"]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["generation"] == [] and [c["adapter"] for c in result["classification"]] == ["mood"]
    assert result["load_seconds"] > 0


def test_everything_wrong_is_said_at_once(
    package_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "absent" / "m.json"
    arguments = ["--output", str(out), "--execution-provider", "cud", "--adapters", "moood,base", "--runs", "4"]
    arguments += ["--batch-sizes", "1,0", "--prompt-tokens", "100,x", "--new-tokens", "1", "--threads", "1,2"]
    assert main([str(package_folder), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines() == [
        "error: 8 problems:",
        "  - --batch-sizes: must be 1 or more, but got '1,0'",
        "  - --prompt-tokens: must be 1 or more, but got '100,x'",
        "  - --new-tokens: must be 2 or more: one token has no time per token, but got '1'",
        "  - --runs: must be 5 or more: fewer have no median, but got '4'",
        "  - --threads: takes one number, but got '1,2'",
        "  - --execution-provider: there is no 'cud'; did you mean 'cuda'? Valid: cpu, cuda, dml",
        f"  - --output {out}: there is no folder {out.parent}",
        "  - --adapters: there is no 'moood'; did you mean 'mood'? Valid: base, mood, story",
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--prompt-tokens", "100", "--new-tokens", "29"], "--prompt-tokens and --new-tokens: the longest makes 129"),
        (["--prompt-tokens", "129", "--adapters", "mood"], "--prompt-tokens: the longest makes 129 tokens, but the"),
        (["--execution-provider", "cuda", *SMALL], "this onnxruntime has no CUDAExecutionProvider"),
    ],
)
def test_what_does_not_fit_writes_nothing(
    package_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    out = tmp_path / "m.json"
    out.write_text("before", encoding="utf-8")
    assert main([str(package_folder), "--output", str(out), *arguments]) == 1
    assert f"error: {problem}" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_no_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "m.json"), "--runs", "x"]) == 1
    message = capsys.readouterr().err
    assert "--runs: must be 5 or more" in message and f"{tmp_path}: is no package" in message


def test_rows_of_a_batch_are_streamed_as_if_alone(package_folder: Path) -> None:
    model = MultiAdapterModel.load(package_folder)
    rows: list[tuple[list[int], str | None]] = [([1, 40, 41, 42], None), ([1, 50, 51], "story"), ([1, 60], None)]
    steps = list(model.tokens_batch(rows, 6, stop_at_eos=False))
    alone = [list(model.tokens(ids, adapter, 6, stop_at_eos=False)) for ids, adapter in rows]
    assert [list(row) for row in zip(*steps, strict=True)] == alone


@pytest.mark.parametrize(("rows", "options"), [([], {}), ([([1, 2], None)] * 2, {"repetition_penalty": 1.5})])
def test_rows_that_cannot_be_computed_together(package_folder: Path, rows: list[Any], options: dict[str, Any]) -> None:
    model = MultiAdapterModel.load(package_folder)
    with pytest.raises(PackageError, match=f"these {len(rows)} rows cannot be computed together"):
        model.tokens_batch(rows, 6, **options)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the threads of a process")
def test_threads_hold_for_generation(package_folder: Path) -> None:
    """onnxruntime starts one thread less than it computes with: the caller's is one of them."""
    started = {}
    for threads in (1, 4):
        before = len(list(Path("/proc/self/task").iterdir()))
        model = MultiAdapterModel.load(package_folder, threads=threads)
        list(model.tokens([1, 2], None, 2))
        started[threads] = len(list(Path("/proc/self/task").iterdir())) - before
    assert started[4] - started[1] == 3
