"""results.json: what is written is read back, damage is named with its place, and the machine is described."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.results import commit, machine, read_json, read_results, versions, write_json
from runtime.errors import DataError
from tests.benchmark.example_results import example_results, measurement

Edit = Callable[[dict[str, Any]], object]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = example_results(measurement(), measurement("café [b]", "cuda"))
    content["commit"] = content["dirty"] = None
    content["measurements"][1].pop("generation")  # an encoder
    content["measurements"][1]["quality"]["spam"]["f1_macro"] = None
    content["later"] = "keys of later versions are no damage"
    file = tmp_path / "results.json"
    file.write_text("before", encoding="utf-8")
    write_json(file, content)
    assert read_results(file) == content
    assert "café" in file.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_written(tmp_path: Path, number: float) -> None:
    content = example_results()
    content["measurements"][0]["load_seconds"] = number
    file = tmp_path / "results.json"
    file.write_text("before", encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, content)
    assert file.read_text(encoding="utf-8") == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON: Expecting value"),
        ('{"schema_version": 1', "is no JSON: Expecting"),
        ('{"schema_version": NaN}', "is no JSON: NaN is no finite number"),
        ('{"schema_version": 1, "created": -Infinity}', "is no JSON: -Infinity is no finite number"),
        ('{"schema_version": 1, "created": 1e999}', "is no JSON: 1e999 is no finite number"),
        ("[" * 100_000, "is no JSON: "),
        ("[1]", "is no results.json of the benchmark, it has no schema_version"),
        ('{"version": 1}', "is no results.json of the benchmark, it has no schema_version"),
        ('{"schema_version": 2}', "schema_version is 2, but this version reads 1"),
        ('{"schema_version": "1"}', "schema_version is '1', but this version reads 1"),
    ],
)
def test_what_is_no_results(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_results(file)
    assert str(error.value).startswith(f"{file}: {problem}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json: there is no such file"):
        read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read: "):
        read_json(tmp_path)
    (tmp_path / "latin.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.json: is no JSON: 'utf-8' codec"):
        read_json(tmp_path / "latin.json")


def first(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["measurements"][0]
    return found


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c: c.pop("machine"), "$: 'machine' is a required property"),
        (lambda c: c.update(dirty="no"), "$.dirty: 'no' is not of type 'boolean', 'null'"),
        (lambda c: c.update(machine={}), "$.machine: 'model' is a required property"),
        (lambda c: c.update(measurements={}), "$.measurements: {} is not of type 'array'"),
        (lambda c: c["versions"].update(numpy=2.4), "$.versions.numpy: 2.4 is not of type 'string', 'null'"),
        (lambda c: c["targets"][1].pop("reason"), "$.targets[1]: 'reason' is a required property"),
        (lambda c: first(c).update(threads="2"), "$.measurements[0].threads: '2' is not of type 'integer', 'null'"),
        (lambda c: first(c).update(load_seconds=-1), "$.measurements[0].load_seconds: -1 is less than the minimum"),
        (lambda c: first(c).update(peak_rss_bytes=None), "$.measurements[0].peak_rss_bytes: None is not of type"),
        (lambda c: first(c)["size_bytes"].pop("base"), "$.measurements[0].size_bytes: 'base' is a required property"),
        (
            lambda c: first(c)["generation"][2]["ttft_ms"].update(p50="7"),
            "$.measurements[0].generation[2].ttft_ms.p50: '7' is not of type 'number', 'null'",
        ),
        (
            lambda c: first(c)["classification"][0]["rows_per_second"].pop("low"),
            "$.measurements[0].classification[0].rows_per_second: 'low' is a required property",
        ),
        (
            lambda c: first(c)["quality"]["spam"].update(accuracy="high"),
            "$.measurements[0].quality.spam.accuracy: 'high' is not of type 'number', 'null'",
        ),
        (lambda c: c["agreement"].append({}), "$.agreement[0]: 'package' is a required property"),
        (lambda c: c["failures"].append({"package": "a"}), "$.failures[0]: 'execution_provider' is a required"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, edit: Edit, problem: str) -> None:
    content = example_results()
    edit(content)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_results(file)
    assert str(error.value).startswith(f"{file}: is damaged: {problem}")


def test_all_damage_at_once(tmp_path: Path) -> None:
    content = example_results()
    content["created"] = 7
    first(content)["execution_provider"] = None
    write_json(tmp_path / "results.json", content)
    with pytest.raises(DataError, match=r"\$\.created: 7 is .*; \$\.measurements\[0\]\.execution_provider: None is"):
        read_results(tmp_path / "results.json")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_and_dirty_flag(tmp_path: Path) -> None:
    assert commit(tmp_path) == (None, None)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        run = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    git("init", "-q")
    assert commit(tmp_path) == (None, None)  # nothing is committed
    tracked = tmp_path / "tracked.txt"
    tracked.write_text("a", encoding="utf-8")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert len(head) == 40 and commit(tmp_path) == (head, False)
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    assert commit(tmp_path) == (head, False)  # files that git does not know change no result
    tracked.write_text("b", encoding="utf-8")
    assert commit(tmp_path) == (head, True)


def test_machine_and_versions() -> None:
    import numpy
    import onnxruntime

    found = machine()
    assert set(found) == {"system", "processor", "model", "cores", "memory_bytes", "gpus"}
    assert found["model"] and found["processor"] and found["system"]
    assert found["cores"] >= 1 and found["memory_bytes"] > 2**28 and isinstance(found["gpus"], list)
    there = versions()
    assert there["numpy"] == numpy.__version__
    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml") if name in there]
    assert [there[name] for name in wheels] == [onnxruntime.__version__]
    assert there["python"].count(".") == 2


def test_a_tool_that_hangs_or_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.results.shutil.which", lambda name: f"/bin/{name}")

    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr("benchmark.results.subprocess.run", hang)
    assert machine()["gpus"] == [] and commit() == (None, None)

    def failing(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 9, "NVIDIA-SMI has failed", "")

    monkeypatch.setattr("benchmark.results.subprocess.run", failing)
    assert machine()["gpus"] == []

    def answering(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "GPU A\nGPU B\n", "")

    monkeypatch.setattr("benchmark.results.subprocess.run", answering)
    assert machine()["gpus"] == ["GPU A", "GPU B"]
