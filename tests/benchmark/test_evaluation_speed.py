"""The evaluation benchmark end to end on few rows: structure and arithmetic of its results, never its times."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.evaluation_speed import as_line, main, text, texts
from tests.evaluators.conftest import adapter_folders, package_folder

__all__ = ["adapter_folders", "package_folder"]  # fixtures

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "data" / "samples"


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    sizes = ["--rounds", "2", "--rows", "20", "--text-bytes", "900", "--batch-size", "4", "--samples", str(SAMPLES)]
    monkeypatch.setattr(sys, "argv", ["evaluation_speed", *sizes, *options])
    main()


def check(results: dict[str, Any]) -> None:
    against = [(row["task"], row["against"]) for row in results["rows"]]
    assert against == [
        ("classification", "PyTorch"),
        ("classification", "PyTorch, unsorted"),
        ("classification", "package, one batch after the other"),
        ("perplexity", "PyTorch"),
        ("perplexity", "package, one batch after the other"),
    ]
    assert results["batch_size"] == 4 and results["rounds"] == 2
    for row in results["rows"]:
        assert 0 < row["low"] <= row["ratio"] <= row["high"] < math.inf
        assert all(len(values) == 2 for values in row["seconds"].values())
        assert row["samples"] == (20 if row["task"] == "classification" else row["samples"]) > 0


def test_a_new_package_of_a_tiny_base(
    tiny_llama_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    run(monkeypatch, "--base", str(tiny_llama_path), "--precision", "fp32", "--out", str(out))
    results = json.loads(out.read_text(encoding="utf-8"))
    check(results)
    assert results["precision"] == "fp32"
    assert results["perplexity"]["package"] == pytest.approx(results["perplexity"]["PyTorch"], rel=1e-4)
    assert capsys.readouterr().out.splitlines()[-5:] == [as_line(row) for row in results["rows"]]


def test_a_finished_package(
    tiny_llama_path: Path,
    package_folder: Path,
    adapter_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "results.json"
    given = [f"--adapter={name}={folder}" for name, folder in adapter_folders.items()]
    run(monkeypatch, "--base", str(tiny_llama_path), "--package", str(package_folder), *given, "--out", str(out))
    results = json.loads(out.read_text(encoding="utf-8"))
    check(results)
    assert results["package"] == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--package", "PACKAGE"], "--package needs its adapters"),
        (["--package", "PACKAGE", "--adapter", "mood"], "--package needs its adapters"),
        (["--package", "PACKAGE", "--adapter", "mood=MOOD"], "none of mood is an adapter for generation"),
        (["--package", "PACKAGE", "--adapter", "mood=MOOD", "--samples", "EMPTY"], "no .csv or .jsonl file"),
    ],
)
def test_mistakes_are_named(
    options: list[str],
    message: str,
    tiny_llama_path: Path,
    package_folder: Path,
    adapter_folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = {"PACKAGE": str(package_folder), "MOOD": str(adapter_folders["mood"]), "EMPTY": str(tmp_path)}
    for word, path in paths.items():
        options = [option.replace(word, path) for option in options]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(monkeypatch, "--base", str(tiny_llama_path), *options)


def test_texts_are_the_samples_over_and_over() -> None:
    rows = texts(SAMPLES, 2000)
    assert len(rows) == 2000 and all(rows) and len(set(rows)) > 1000
    whole = text(SAMPLES, 200_000)
    assert 200_000 - 1 <= len(whole.encode("utf-8")) < 200_400 and whole.startswith(rows[0])
