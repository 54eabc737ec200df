"""`python -m benchmark`: a real package through all of it, and everything that is wrong with a command line at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.__main__ import main
from benchmark.results import read_results
from benchmark.table import print_results
from tests.benchmark.example_results import example_results, generation, measurement

FEW = ["--runs", "5", "--new-tokens", "4", "--prompt-tokens", "8", "--batch-sizes", "1,2"]


def test_a_package_is_measured(package_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results"
    assert main([str(package_folder), *FEW, "--output", str(output)]) == 0
    results = read_results(output / "results.json")
    (measured,) = results["measurements"]
    assert measured["package"] == "tiny" and measured["execution_provider"] == "cpu"
    runs = {(run["adapter"], run["batch_size"]) for run in measured["generation"]}
    assert runs == {(adapter, size) for adapter in (None, "story") for size in (1, 2)}
    absent = {t["execution_provider"]: t["install"] for t in results["targets"] if not t["available"]}
    assert "cpu" not in absent
    shown = capsys.readouterr().out
    assert "tiny on cpu" in shown and "(base)" in shown and "p50/p90/p99" in shown
    assert all(f"{name}: not here" in shown for name in absent)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "Benchmark of tiny" in page and {p.name for p in output.iterdir()} == {
        "results.json",
        "report.html",
        "measurements",
    }


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            ["--runs", "2", "--new-tokens", "x", "--threads", "0"],
            ["--runs: must be 5", "--new-tokens: ", "--threads: "],
        ),
        (["--targets", "cpu,cud"], ["--targets: 'cud' is no target; did you mean 'cuda'?"]),
        (["--adapters", "stry"], ["--adapters: no package has 'stry'; did you mean 'story'?"]),
        (["nowhere"], ["nowhere", "is no package"]),
        (["--output", "full"], ["--output full: has other things in it (letter.txt)"]),
    ],
)
def test_mistakes_are_named(
    package_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problems: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/letter.txt").write_text("keep me")
    assert main([str(package_folder), *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and [p for p in problems if p not in message] == []
    assert not Path("benchmark-results/results.json").exists() and Path("full/letter.txt").read_text() == "keep me"


def test_compare_is_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = example_results({**measurement(), "generation": [generation(None, tpot=0.9)], "classification": []})
    before = example_results({**measurement(), "generation": [generation(None)], "classification": []})
    for name, results in (("a", before), ("b", slower)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results), encoding="utf-8")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["compare", *files]) == 1
    assert "REGRESSION" in capsys.readouterr().out
    assert main(["compare", *reversed(files)]) == 0


def test_the_table_says_what_failed_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    unstable = {**generation("[red]name[/red]"), "stable": False}
    results = example_results({**measurement("[bold]"), "generation": [unstable]})
    results["failures"] = [{"package": "x", "execution_provider": "cpu", "reason": "the disk is full"}]
    results["agreement"] = [
        {"package": "x", "reference": "cpu", "execution_provider": "cuda", "adapter": None, "top1_agreement": 0.75,
         "kl_divergence": 0.001, "max_abs_difference": 0.5, "positions": 40}
    ]  # fmt: skip
    print_results(results)
    shown = capsys.readouterr().out
    names = ["[bold] on cpu", "[red]name[/red]", "cuda / cpu"]
    words = ["not stable after the warm-up", "FAILED x on cpu: the disk is full", "cuda: not here"]
    assert [text for text in (*names, *words, "0.7500", "6.80/8.84/-") if text not in shown] == []
