"""The whole benchmark with workers that measure nothing: failures, interruptions, options, names and agreement."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark import measuring
from benchmark.fresh_process import WorkerError, run_fresh
from benchmark.html_report import html_report
from benchmark.measuring import measure, package_names
from benchmark.output_folder import OutputFolder, read_measurement
from benchmark.results import read_results, write_json
from runtime.errors import ConfigError, DataError
from tests.benchmark.example_results import example_results

# Each notes its arguments in calls.txt of the package; a file fail.txt there is its error, one named kill its end.
_START = """
import json, os, signal, sys
from pathlib import Path
from tests.benchmark.example_results import measurement

folder, provider, output = Path(sys.argv[1]), sys.argv[3], sys.argv[5]
with open(folder / "calls.txt", "a") as file:
    file.write(json.dumps([KIND, provider, *sys.argv[6:]]) + "\\n")
"""
_WORKER = """
if (folder / "fail.txt").exists():
    sys.exit((folder / "fail.txt").read_text())
if (folder / "kill").exists():
    os.kill(os.getpid(), signal.SIGKILL)
text = json.dumps(measurement("name in the manifest", provider))
Path(output).write_text("{}" if (folder / "empty").exists() else text)
"""
_OUTPUTS = """
import numpy as np
if (folder / "no outputs on").exists() and provider == (folder / "no outputs on").read_text():
    sys.exit("error: no outputs here")
logits = np.array([[1.0, 2.0], [3.0, 0.0]]) + [[1.5 * (provider == "cuda"), 0]]
np.savez(output, **{"ids.0": np.array([1, 2]), "adapter.spam.0": logits})
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The fake commands, and a machine whose targets are those of `here`."""
    found = {}
    for kind, text in (("worker", _WORKER), ("outputs", _OUTPUTS)):
        script = tmp_path / f"{kind}.py"
        script.write_text(f"KIND = {kind!r}\n{_START}{text}", encoding="utf-8")
        found[kind] = [sys.executable, str(script)]
    entry = example_results()["targets"][1]

    def find(names: Sequence[str]) -> list[dict[str, Any]]:
        there = {"available": True, "reason": None, "install": None}
        return [{**entry, "execution_provider": name, **({} if name == "dml" else there)} for name in names]

    monkeypatch.setattr(measuring, "find_targets", find)
    return found


def package(folder: Path, *adapters: str, generates: bool = True) -> Path:
    """A folder with a manifest, which is all that is read of it outside the worker."""
    folder.mkdir(parents=True)
    base = {"fingerprint": "x", "generates": generates}
    entries = {name: {"file": f"adapters/{name}.safetensors"} for name in adapters}
    manifest = {"format_version": 2, "adapters": entries, "base": base, "files": {}, "slots": {}}
    text = json.dumps({**manifest, "precision": "int4", "target": {"execution_provider": "cpu"}})
    (folder / "package.json").write_text(text, encoding="utf-8")
    return folder


def calls(folder: Path) -> list[list[str]]:
    file = folder / "calls.txt"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def test_every_package_on_every_target(tmp_path: Path, commands: dict[str, list[str]]) -> None:
    folders = [package(tmp_path / name, "spam") for name in ("one", "two")]
    output = OutputFolder(tmp_path / "out")
    found, files = measure(folders, ["cpu", "cuda", "dml"], {}, output, **commands)
    write_json(tmp_path / "results.json", found)
    assert read_results(tmp_path / "results.json") == found and "<h1>Benchmark of one, two</h1>" in html_report(found)
    pairs = [(name, provider) for name in ("one", "two") for provider in ("cpu", "cuda")]
    assert [(m["package"], m["execution_provider"]) for m in found["measurements"]] == pairs
    assert [m["folder"] for m in found["measurements"]] == [str(folder) for folder in folders for _ in "12"]
    assert [t["available"] for t in found["targets"]] == [True, True, False]
    assert found["failures"] == [] and found["options"] == {}
    # logits (1, 2), (3, 0) become (2.5, 2), (4.5, 0): one position of two has another answer
    assert [(a["package"], a["reference"], a["execution_provider"], a["adapter"]) for a in found["agreement"]] == [
        ("one", "cpu", "cuda", "spam"),
        ("two", "cpu", "cuda", "spam"),
    ]
    for scores in found["agreement"]:
        assert (scores["top1_agreement"], scores["positions"]) == (0.5, 2)
        assert scores["max_abs_difference"] == pytest.approx(1.5) and scores["kl_divergence"] > 0
    wanted = [["worker", "cpu"], ["worker", "cuda"], ["outputs", "cpu"], ["outputs", "cuda"]]
    assert calls(folders[0]) == calls(folders[1]) == wanted
    output.finish(files)
    assert [path.name for path in output.folder.iterdir()] == ["measurements"]
    assert {path.name.split(".")[0] for path in (output.folder / "measurements").iterdir()} == {"one", "two"}


def test_one_target_needs_no_outputs(tmp_path: Path, commands: dict[str, list[str]]) -> None:
    folder = package(tmp_path / "one", "spam")
    found, _ = measure([folder], ["cpu"], {}, OutputFolder(tmp_path / "out"), **commands)
    assert found["agreement"] == [] and calls(folder) == [["worker", "cpu"]]


def test_options_are_flags_and_adapters_go_to_their_packages(tmp_path: Path, commands: dict[str, list[str]]) -> None:
    one, two = package(tmp_path / "one", "spam", "mood"), package(tmp_path / "two", "spam", "news")
    options = {"adapters": ["news", "spam", "base"], "batch_sizes": [1, 8], "new_tokens": 16, "threads": None}
    found, _ = measure([one, two], ["cpu", "cuda"], options, OutputFolder(tmp_path / "out"), **commands)
    assert found["options"] == {name: value for name, value in options.items() if name != "threads"}
    for folder, adapters in ((one, "spam,base"), (two, "news,spam,base")):
        flags = ["--adapters", adapters, "--batch-sizes", "1,8", "--new-tokens", "16"]
        wanted = [["worker", provider, *flags] for provider in ("cpu", "cuda")]
        assert calls(folder) == [*wanted, *(["outputs", provider, *flags[:2]] for provider in ("cpu", "cuda"))]


@pytest.mark.parametrize(
    ("adapters", "problems"),
    [
        (["spma", "x"], ["no package has 'spma'; did you mean 'spam'?", "no package has 'x'; Valid: base, mood, spam"]),
        (["mood"], ["two has none of them; Valid: base, spam"]),
        (["base"], ["three has none of them; Valid: mood"]),
    ],
)
def test_adapters_that_are_not_there(
    tmp_path: Path, commands: dict[str, list[str]], adapters: list[str], problems: list[str]
) -> None:
    folders = [package(tmp_path / "one", "spam", "mood"), package(tmp_path / "two", "spam")]
    folders += [package(tmp_path / "three", "mood", generates=False)] if adapters == ["base"] else []
    with pytest.raises(ConfigError) as error:
        measure(folders, ["cpu"], {"adapters": adapters}, OutputFolder(tmp_path / "out"), **commands)
    assert len(error.value.problems) == len(problems)
    for found, expected in zip(error.value.problems, problems, strict=True):
        assert found.startswith(f"--adapters: {expected}")
    assert calls(folders[0]) == []


def test_what_fails_is_recorded_and_the_run_goes_on(tmp_path: Path, commands: dict[str, list[str]]) -> None:
    names = ("fails", "lists", "crashes", "empty", "killed", "good")
    folders = {name: package(tmp_path / name, "spam") for name in names}
    texts = {
        "fails": "12:00:00 loading\nerror: it is damaged\n",
        "lists": "error: it cannot be used:\n  - a is missing\n  - b is altered\n[W] onnxruntime",
        "crashes": "Traceback\nRuntimeError: out of memory",
    }
    for name, text in texts.items():
        (folders[name] / "fail.txt").write_text(text, encoding="utf-8")
    (folders["empty"] / "empty").touch()
    (folders["killed"] / "kill").touch()
    found, files = measure(list(folders.values()), ["cpu"], {}, OutputFolder(tmp_path / "out"), **commands)
    assert [m["package"] for m in found["measurements"]] == ["good"]
    assert [file.name.split(".")[0] for file in files] == ["good"]
    reasons = {failure["package"]: failure["reason"] for failure in found["failures"]}
    assert reasons["fails"] == "it is damaged"
    assert reasons["lists"] == "it cannot be used: - a is missing - b is altered"
    assert reasons["crashes"] == "the worker ended with exit code 1: RuntimeError: out of memory"
    assert "is no measurement: $: 'package' is a required property" in reasons["empty"]
    if sys.platform != "win32":
        assert reasons["killed"] == "the worker was killed by signal 9, perhaps for want of memory"
    assert list(reasons) == ["fails", "lists", "crashes", "empty", "killed"]


@pytest.mark.parametrize(("provider", "agreed"), [("cpu", []), ("cuda", ["rocm"])])
def test_outputs_that_fail(tmp_path: Path, commands: dict[str, list[str]], provider: str, agreed: list[str]) -> None:
    folder = package(tmp_path / "one", "spam")
    (folder / "no outputs on").write_text(provider, encoding="utf-8")
    found, _ = measure([folder], ["cpu", "cuda", "rocm"], {}, OutputFolder(tmp_path / "out"), **commands)
    assert len(found["measurements"]) == 3
    assert [a["execution_provider"] for a in found["agreement"]] == agreed
    reason = "agreement with cpu: no outputs here"
    assert found["failures"] == [{"package": "one", "execution_provider": provider, "reason": reason}]


def interrupted_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The run ends as if by Ctrl+C when it starts that worker."""
    started = []

    def run(command: Sequence[str]) -> None:
        started.append(command)
        if len(started) == number:
            raise KeyboardInterrupt
        run_fresh(command)

    monkeypatch.setattr(measuring, "run_fresh", run)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("nothing", False),
        ("options", True),
        ("the package", True),
        ("versions", True),
        ("the commit", True),
        ("the work tree", True),
        ("the measurement is damaged", True),
    ],
)
def test_an_interrupted_run_goes_on(
    tmp_path: Path,
    commands: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    again: bool,
) -> None:
    monkeypatch.setattr("benchmark.measuring.results.commit", lambda: ("a" * 40, False))
    one, two = package(tmp_path / "one", "spam"), package(tmp_path / "two", "spam")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_at(patch, 2)
        measure([one, two], ["cpu"], {"runs": 5}, OutputFolder(tmp_path / "out"), **commands)
    assert len(calls(one)) == 1 and calls(two) == []
    options = {"runs": 5}
    if change == "options":
        options = {"runs": 6}
    elif change == "the package":
        (one / "package.json").write_text((one / "package.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    elif change == "versions":
        monkeypatch.setattr("benchmark.measuring.results.versions", lambda: {"python": "3.99.0"})
    elif change == "the commit":
        monkeypatch.setattr("benchmark.measuring.results.commit", lambda: ("b" * 40, False))
    elif change == "the work tree":
        monkeypatch.setattr("benchmark.measuring.results.commit", lambda: ("a" * 40, True))
    elif change == "the measurement is damaged":
        (file,) = (tmp_path / "out" / "unfinished").iterdir()
        file.write_text("{", encoding="utf-8")
    output = OutputFolder(tmp_path / "out")
    capsys.readouterr()
    found, files = measure([one, two], ["cpu"], options, output, **commands)
    assert [m["package"] for m in found["measurements"]] == ["one", "two"]
    assert len(calls(one)) == 1 + again and len(calls(two)) == 1
    assert ("1/2 one on cpu: measured before this run was interrupted, kept" in capsys.readouterr().err) is not again
    output.finish(files)  # what other options left goes
    assert len(list((tmp_path / "out" / "measurements").iterdir())) == 2
    measure([one, two], ["cpu"], options, OutputFolder(tmp_path / "out"), **commands)
    assert len(calls(two)) == 2  # a run that has ended is not taken up again


def test_names_tell_folders_apart(tmp_path: Path, commands: dict[str, list[str]]) -> None:
    folders = [package(tmp_path / name / "model", "spam") for name in ("int4", "fp16")]
    found, _ = measure(folders, ["cpu"], {}, OutputFolder(tmp_path / "out"), **commands)
    assert [m["package"] for m in found["measurements"]] == ["int4/model", "fp16/model"]
    names = list(package_names([*folders, package(tmp_path / "c", "spam")]))
    assert names == ["int4/model", "fp16/model", f"{tmp_path.name}/c"]


def test_folders_that_are_no_packages(tmp_path: Path) -> None:
    good = package(tmp_path / "good")
    with pytest.raises(ConfigError) as error:
        package_names([good, tmp_path, tmp_path / "nowhere", good / ".." / "good"])
    assert error.value.problems == [
        f"{good}: is named twice",
        f"{tmp_path}: is no package, it has no package.json",
        f"{tmp_path / 'nowhere'}: is no package, it has no package.json",
    ]


def test_an_output_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; name a folder"):
        OutputFolder(tmp_path / "file")
    with pytest.raises(DataError, match=r"has other things in it \(file\); name a new folder"):
        OutputFolder(tmp_path)
    (tmp_path / "newer").mkdir()
    write_json(tmp_path / "newer" / "results.json", {"schema_version": 2})
    with pytest.raises(DataError, match="schema_version is 2"):
        OutputFolder(tmp_path / "newer")
    assert [path.name for path in (tmp_path / "newer").iterdir()] == ["results.json"]


def test_a_worker_shows_its_progress(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import sys, benchmark.worker; print('hidden'); print('run 1 of 2 é', file=sys.stderr); sys.exit(3)"
    with pytest.raises(WorkerError, match=r"the worker ended with exit code 3: run 1 of 2"):
        run_fresh([sys.executable, "-X", "utf8", "-c", program])
    captured = capfd.readouterr()
    assert captured.err == "run 1 of 2 é\n" and captured.out == ""


def test_a_real_package(package_folder: Path, tmp_path: Path) -> None:
    """The flags are those that the worker knows, and what it writes keeps to the schema."""
    output = OutputFolder(tmp_path / "out")
    options = {"adapters": ["mood", "base"], "batch_sizes": [1, 2], "prompt_tokens": [4], "new_tokens": 2}
    found, (file,) = measure([package_folder], ["cpu"], {**options, "runs": 5, "threads": 1}, output)
    assert found["failures"] == [] and read_measurement(file)["package"] == "tiny"
    (m,) = found["measurements"]
    assert (m["package"], m["folder"], m["threads"]) == ("tiny", str(package_folder), 1)
    assert [(run["adapter"], run["batch_size"]) for run in m["generation"]] == [(None, 1), (None, 2)]
    assert [(run["adapter"], run["batch_size"]) for run in m["classification"]] == [("mood", 1), ("mood", 2)]
    write_json(tmp_path / "results.json", found)
    assert read_results(tmp_path / "results.json") == found
