"""Two results side by side: verdicts, what is missing, warnings, and the exit codes that CI relies on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.compare import Value, compare, main, read_threshold, verdict
from benchmark.results import write_json
from runtime.errors import ConfigError, DataError
from tests.benchmark.example_results import distribution, example_results, measurement

Edit = Callable[[dict[str, Any]], object]


def edited(*edits: Edit) -> dict[str, Any]:
    results = example_results()
    for edit in edits:
        edit(results)
    return results


def first(results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = results["measurements"][0]
    return found


def run(results: dict[str, Any], kind: str, adapter: str | None, batch_size: int = 1) -> dict[str, Any]:
    return next(r for r in first(results)[kind] if (r["adapter"], r["batch_size"]) == (adapter, batch_size))


def scaled(part: dict[str, Any], factor: float) -> None:
    for key, value in part.items():
        if key != "samples" and isinstance(value, float):
            part[key] = value * factor


def of(found: dict[str, list[Any]], name: str) -> list[tuple[Any, ...]]:
    """What a change of this verdict concerns."""
    keys = ("adapter", "batch_size", "figure")
    return [tuple(change[key] for key in keys) for change in found["changes"] if change["verdict"] == name]


@pytest.mark.parametrize(
    ("before", "after", "higher", "expected"),
    [
        (Value(10, 9.7, 10.3), Value(10, 9.7, 10.3), False, "unchanged"),
        (Value(10, 9.7, 10.3), Value(8, 7.8, 8.2), False, "better"),
        (Value(10, 9.7, 10.3), Value(8, 7.8, 8.2), True, "REGRESSION"),
        (Value(10, 9.7, 10.3), Value(10.4, 10.31, 10.5), False, "worse"),  # 4 %
        (Value(10, 9.7, 10.3), Value(9.6, 9.5, 9.69), False, "better"),
        (Value(10, 9, 11.5), Value(11, 10.5, 12), False, "unchanged"),  # 10 %, the intervals overlap
        (Value(10, 9.7, 10.3), Value(10.3, 10.3, 10.5), False, "unchanged"),  # they touch
        (Value(10, 9.7, 10.3), Value(12, 11.7, 12.3), False, "REGRESSION"),
        (Value(10), Value(10.5), False, "unchanged"),  # 5 % is not above 5 %
        (Value(0.5), Value(0.525), False, "unchanged"),
        (Value(10), Value(10.6), False, "REGRESSION"),
        (Value(10), Value(9.4), False, "better"),
        (Value(10, 9.9, 10.1), Value(10.4), False, "unchanged"),  # no interval after
        (Value(10, 9.9, 10.1), Value(10.6), False, "REGRESSION"),
        (Value(0.9, 0.9, 0.9), Value(0.89, 0.89, 0.89), True, "worse"),
        (Value(0.9, 0.9, 0.9), Value(0.85, 0.85, 0.85), True, "REGRESSION"),
        (Value(0.0, 0.0, 0.0), Value(0.01, 0.01, 0.01), False, "REGRESSION"),  # a share of nothing
        (Value(0.0, 0.0, 0.0), Value(0.0, 0.0, 0.0), False, "unchanged"),
    ],
)
def test_verdict(before: Value, after: Value, higher: bool, expected: str) -> None:
    assert verdict(before, after, higher, 0.05) == expected


@pytest.mark.parametrize(
    ("edit", "figure"),
    [
        (lambda r: scaled(run(r, "generation", "blurbs", 4)["ttft_ms"], 1.2), ("blurbs", 4, "ttft_ms")),
        (lambda r: scaled(run(r, "generation", None, 4)["tpot_ms"], 1.2), (None, 4, "tpot_ms")),
        (lambda r: scaled(run(r, "generation", None)["end_to_end_ms"], 1.2), (None, 1, "end_to_end_ms")),
        (lambda r: scaled(run(r, "generation", None)["tokens_per_second"], 0.8), (None, 1, "tokens_per_second")),
        (lambda r: scaled(run(r, "classification", "spam")["latency_ms"], 1.2), ("spam", 1, "latency_ms")),
        (lambda r: scaled(run(r, "classification", "spam")["rows_per_second"], 0.8), ("spam", 1, "rows_per_second")),
        (lambda r: first(r).update(load_seconds=0.62), (None, None, "load_seconds")),
        (lambda r: first(r).update(peak_rss_bytes=330_000_000), (None, None, "peak_rss_bytes")),
        (lambda r: first(r)["size_bytes"].update(base=4_000_000), (None, None, "size_bytes")),
        (lambda r: first(r)["size_bytes"]["adapters"].update(spam=1_400_000), ("spam", None, "size_bytes")),
        (lambda r: first(r)["quality"]["spam"].update(accuracy=0.9), ("spam", None, "accuracy")),
        (lambda r: first(r)["quality"]["blurbs"].update(perplexity=51.0), ("blurbs", None, "perplexity")),
    ],
)
def test_a_regression_in_each_figure_and_its_way_back(edit: Edit, figure: tuple[Any, ...]) -> None:
    before, after = edited(), edited(edit)
    worse, better = compare(before, after, 0.05), compare(after, before, 0.05)
    assert of(worse, "REGRESSION") == [figure] and of(worse, "worse") == of(worse, "better") == []
    assert of(better, "better") == [figure] and of(better, "REGRESSION") == of(better, "worse") == []
    for found in (worse, better):
        assert found["missing"] == found["warnings"] == []
        # 6 runs that write x 4 figures, 6 that classify x 2, load, memory, 4 sizes, 5 metrics
        assert len(found["changes"]) == 24 + 12 + 2 + 4 + 5
    assert of(compare(before, after, 0.5), "REGRESSION") == []


def test_the_change_is_a_share_of_before() -> None:
    before = edited(lambda r: first(r)["quality"]["spam"].update(flip_rate=0.0, accuracy=0.8))
    after = edited(lambda r: first(r)["quality"]["spam"].update(flip_rate=0.1, accuracy=0.6))
    changes = {(c["adapter"], c["figure"]): c for c in compare(before, after, 0.05)["changes"]}
    accuracy, flips = changes["spam", "accuracy"], changes["spam", "flip_rate"]
    assert accuracy["change"] == pytest.approx(-0.25)
    assert (accuracy["before"], accuracy["after"]) == (0.8, 0.6)
    assert (flips["change"], flips["verdict"]) == (None, "REGRESSION")
    run_of = changes["spam", "latency_ms"]
    assert (run_of["package"], run_of["execution_provider"]) == ("quickstart", "cpu")
    assert (run_of["prompt_tokens"], run_of["new_tokens"]) == (64, None)


def without_spam(results: dict[str, Any]) -> None:
    m = first(results)
    m["classification"] = [r for r in m["classification"] if r["adapter"] != "spam"]
    del m["size_bytes"]["adapters"]["spam"], m["quality"]["spam"]


def failed(results: dict[str, Any]) -> None:
    results["failures"] = [{"package": "other", "execution_provider": "cpu", "reason": "the worker was killed"}]


WITH_OTHER = example_results(measurement(), measurement("other"))


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [
        (edited(), edited(without_spam), ["quickstart on cpu, spam: only before"]),
        (edited(without_spam), edited(), ["quickstart on cpu, spam: only after"]),
        (
            edited(),
            edited(lambda r: first(r).update(generation=[])),
            [
                f"quickstart on cpu, {name}: only before: 1 x 64+32; 4 x 64+32; 16 x 64+32"
                for name in ("(base)", "blurbs")
            ],
        ),
        (
            edited(lambda r: first(r).pop("classification")),
            edited(lambda r: run(r, "generation", None, 16).update(new_tokens=8)),
            [
                "quickstart on cpu, (base): only before: 16 x 64+32",
                "quickstart on cpu, (base): only after: 16 x 64+8",
                "quickstart on cpu, spam: only after: 1 x 64; 4 x 64; 16 x 64",
                "quickstart on cpu, intent_pt: only after: 1 x 64; 4 x 64; 16 x 64",
            ],
        ),
        (
            edited(),
            edited(lambda r: run(r, "generation", None).update(ttft_ms=distribution(6.8, samples=3))),
            ["quickstart on cpu, (base): only before: first token, ms 1 x 64+32"],
        ),
        (
            edited(),
            edited(lambda r: first(r)["quality"]["spam"].update(accuracy=None)),
            ["quickstart on cpu, spam: only before: accuracy"],
        ),
        (WITH_OTHER, edited(), ["other on cpu: only before"]),
        (
            WITH_OTHER,
            edited(failed),
            ["other on cpu: only before; the other has no measurement: the worker was killed"],
        ),
        (
            example_results(measurement(), measurement(provider="cuda")),
            edited(),
            [
                "quickstart on cuda: only before; the other has no measurement: "
                "onnxruntime 1.31.1 has no CUDAExecutionProvider"
            ],
        ),
    ],
)
def test_what_is_missing_on_one_side(before: dict[str, Any], after: dict[str, Any], missing: list[str]) -> None:
    found = compare(before, after, 0.05)
    assert found["missing"] == missing
    assert {change["verdict"] for change in found["changes"]} == {"unchanged"}


@pytest.mark.parametrize(
    ("edit", "warning"),
    [
        (lambda r: r["machine"].update(model="Other CPU"), "machine model differs: Example CPU 9000 before, Other CPU"),
        (lambda r: r["machine"].pop("cores"), "machine cores differs: 2 before, none after"),
        (lambda r: r["machine"].update(gpus=["A", "B"]), "machine gpus differs: none before, A, B after"),
        (lambda r: r["versions"].update(numpy="2.5"), "version of numpy differs: 2.4.6 before, 2.5 after"),
        (lambda r: r["options"].update(threads=1), "option threads differs: none before, 1 after"),
        (lambda r: r["options"].update(runs=5), "option runs differs: 20 before, 5 after"),
        (lambda r: r.update(dirty=True), "after was measured with changes that are not committed"),
        (lambda r: r.update(dirty=None, commit=None), "after was measured outside a git repository"),
        (lambda r: first(r).update(threads=None), "quickstart on cpu, threads differs: 2 before, none after"),
        (lambda r: first(r).update(precision="fp16"), "quickstart on cpu, precision differs: int4 before, fp16 after"),
        (
            lambda r: first(r).update(fingerprint="ab"),
            "quickstart on cpu, fingerprint differs: c4832e8576c9 before, ab",
        ),
        (
            lambda r: run(r, "generation", None).update(stable=False),
            "quickstart on cpu, after: not stable after the warm-up: (base)",
        ),
    ],
)
def test_a_warning_is_no_error(edit: Edit, warning: str) -> None:
    found = compare(edited(), edited(edit), 0.05)
    assert len(found["warnings"]) == 1 and found["warnings"][0].startswith(warning)
    assert {change["verdict"] for change in found["changes"]} == {"unchanged"}


def test_another_commit_and_free_memory_are_no_warning() -> None:
    after = edited(lambda r: r.update(commit="f" * 40), lambda r: r["machine"].update(memory_bytes=1))
    assert compare(edited(), after, 0.05)["warnings"] == []


def test_nothing_in_common() -> None:
    nothing = example_results()
    nothing["measurements"] = []
    with pytest.raises(DataError, match="before has quickstart on cpu, after has nothing"):
        compare(example_results(), nothing, 0.05)


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), (" 2.5 % ", 0.025), ("0.05", 0.05), ("0", 0), ("150%", 1.5), ("1e-3", 0.001)]
)
def test_thresholds(text: str, share: float) -> None:
    assert read_threshold(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "1", "-1%", "nan", "inf%", "", "%", "five"])
def test_no_thresholds(text: str) -> None:
    with pytest.raises(ConfigError, match="--threshold: must be a percentage such as 5%, or a share"):
        read_threshold(text)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The same results twice; the second with a base of 1 % and a spam adapter of 6 % more bytes."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write_json(before, example_results())
    grown = example_results()
    sizes = first(grown)["size_bytes"]
    sizes["base"] = round(1.01 * sizes["base"])
    sizes["adapters"]["spam"] = round(1.06 * sizes["adapters"]["spam"])
    write_json(after, grown)
    return before, after


def test_exit_codes_and_the_table(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = map(str, files)
    assert main([before, after]) == 1
    lines = capsys.readouterr().out.splitlines()
    regression = next(line for line in lines if "REGRESSION" in line)
    assert " ".join(regression.split()) == "quickstart cpu spam on disk, MB 1.32 1.399 +6.0 % REGRESSION"
    worse = next(line for line in lines if line.rstrip().endswith("worse"))
    assert "(base)" in worse and "+1.0 %" in worse
    assert lines[-1] == "1 worse by more than 5 %, 1 worse by less, 0 better, 45 unchanged or within noise"
    assert main([before, after, "--threshold", "0.1"]) == 0
    assert main([after, before]) == 0
    assert main([before, before]) == 0
    assert capsys.readouterr().out.endswith(
        "\n0 worse by more than 5 %, 0 worse by less, 0 better, 47 unchanged or within noise\n"
    )


def test_names_are_no_markup_and_lose_no_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "[red]a-package-with-a-long-name-that-does-not-fit-beside-the-digits-of-the-table[/red]"
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    write_json(before, example_results(measurement(name), measurement("[/]gone")))
    write_json(after, example_results(measurement(name, slower=2.0)))
    assert main([str(before), str(after)]) == 1
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(" ") and "─" not in line][1:]
    packages = "".join(row[1:].partition(" ")[0] for row in rows if row[1:2].strip())
    assert packages.count(name) == 36 and "[/]gone on cpu: only before" in out
    assert "+100.0 %" in out and "…" not in out


def damage(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_everything_unusable_is_named_at_once(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = files
    damage(before, lambda r: r.update(schema_version=2))
    damage(after, lambda r: first(r).pop("load_seconds"))
    assert main([str(before), str(after), "--threshold", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"error: {before}: schema_version is 2, but this version reads 1",
        f"error: {after}: is damaged: $.measurements[0]: 'load_seconds' is a required property",
        "error: --threshold: must be a percentage such as 5%, or a share such as 0.05, but got 'x'",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "there is no such file"),
        ("{", "is no JSON"),
        ("[]", "is no results.json of the benchmark"),
        (json.dumps({**example_results(), "measurements": []}), "after has nothing"),
        (json.dumps(example_results(measurement("other"))), "after has other on cpu"),
    ],
)
def test_unusable_files(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], text: str | None, problem: str
) -> None:
    before, after = files
    after.unlink()
    if text is not None:
        after.write_text(text, encoding="utf-8")
    assert main([str(before), str(after)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and problem in captured.err and captured.out == ""


def test_what_is_compared_is_left_alone() -> None:
    before, after = example_results(), example_results(measurement(slower=2.0))
    copies = copy.deepcopy((before, after))
    compare(before, after, 0.05)
    assert (before, after) == copies
