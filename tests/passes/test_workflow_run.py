"""The real `olive run` in a process of its own: it ends with a whole package, or says why not and changes nothing.

Runs are shared: one workflow is killed three times, completed, then changed. Each is forked from a server that has
imported Olive once, where the system can fork; the console script itself runs the workflow that fails at once.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from evaluators.intermediate_values import VARIABLE, read_from
from search.olive_run import PRELOADED
from tests.passes.conftest import REPOSITORY, adapter_step, data_config, mood_data, workflow, write_mood_csv

PATIENCE_S = 120  # for one run; on two free cores it takes about ten seconds


class Olive:
    """One workflow of three adapters in a folder, and the ways to run it."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base, self.out = folder, base, folder / "out"
        self.workflow()
        self.errors: list[str] = []  # stderr of each killed run

    def workflow(self) -> dict[str, Any]:
        """A fresh copy of the workflow: "mood", "story" and, with a data file of its own, "tone"."""
        content = workflow(self.folder, self.base)
        tone = self.folder / "tone.csv"
        if not tone.exists():
            write_mood_csv(tone)
        content["data_configs"].append(data_config("tone_train", tone))
        steps = content["passes"]
        tone_step = adapter_step("ClassificationHead", "tone", "tone")
        content["passes"] = {
            "mood": steps["mood"],
            "story": steps["story"],
            "tone": tone_step,
            "export": steps["export"],
        }
        return content

    def write(self, content: dict[str, Any]) -> Path:
        file = self.folder / "workflow.json"
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")
        return file

    def start(self, content: dict[str, Any]) -> multiprocessing.Process:
        way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(way)
        context.set_forkserver_preload(list(PRELOADED))
        # what the server had at its start is not what the test has set since
        process = context.Process(target=_olive, args=(self.folder, self.write(content), dict(os.environ)))
        process.start()
        return cast(multiprocessing.Process, process)

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(encoding="utf-8")

    def run(self, content: dict[str, Any]) -> tuple[int, str, str]:
        """Runs to the end: exit code, stdout, stderr."""
        process = self.start(content)
        process.join(PATIENCE_S)
        process.kill()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, (self.folder / "stdout").read_text(encoding="utf-8"), self.stderr()

    def kill_when(self, reached: Callable[[], bool], at_most_s: float) -> None:
        """Starts the workflow, waits for a moment and up to `at_most_s` more, and kills it with all its children."""
        process = self.start(self.workflow())
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not reached():
                assert process.is_alive(), f"the run ended before it could be killed:\n{self.stderr()}"
                assert time.monotonic() < deadline, f"the moment never came:\n{self.stderr()}"
                time.sleep(0.005)
            time.sleep(random.uniform(0, at_most_s))
            assert process.is_alive(), f"the run ended before it was killed:\n{self.stderr()}"
        finally:
            if process.is_alive():
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
            process.join()
        self.errors.append(self.stderr())

    def adapters(self) -> dict[str, tuple[str, int, int]]:
        """Finished adapters in the store: {name: (folder, inode, weights' time in ns)}; the newest of each."""
        found = {}
        for folder in sorted((self.folder / "cache" / "adapters").glob("*"), key=lambda f: f.stat().st_mtime_ns):
            if "unfinished" not in folder.name and not folder.name.endswith(".checkpoints"):
                weights = folder / "adapter_model.safetensors"
                name = folder.name.rsplit("-", 1)[0]
                found[name] = (folder.name, folder.stat().st_ino, weights.stat().st_mtime_ns)
        return found

    def unfinished(self, name: str) -> bool:
        return any((self.folder / "cache" / "adapters").glob(f"{name}-*.unfinished-*"))


def _olive(folder: Path, workflow: Path, environment: dict[str, str]) -> None:
    """In the new process: what the console script `olive` does."""
    os.environ.clear()
    os.environ.update(environment, COLUMNS="160")
    del os.environ["OLIVE_CACHE_DIR"]  # the workflow's cache_dir decides
    os.chdir(REPOSITORY)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["olive", "run", "--config", str(workflow)]
    from olive.cli.launcher import main

    sys.exit(main())


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def leftovers(folder: Path) -> list[str]:
    """Names in the folder of the workflow that only an unfinished run has."""
    return [entry.name for entry in folder.iterdir() if "unfinished" in entry.name or "-old-" in entry.name]


class Finished:
    """The workflow after three kills and a run to the end."""

    def __init__(self, olive: Olive) -> None:
        self.olive = olive
        olive.out.mkdir()
        (olive.out / "package.json").write_text('{"format_version": 1, "slots": {}}', encoding="utf-8")
        (olive.out / "model.onnx").write_bytes(bytes(1000))
        self.earlier = hashes(olive.out)
        self.after_kill: list[dict[str, str]] = []
        self.adapters: list[dict[str, tuple[str, int, int]]] = []
        moments: list[tuple[Callable[[], bool], float]] = [
            (lambda: olive.unfinished("story"), 0.05),  # "mood" is finished, "story" is being trained
            # all are trained, the package is being built; a later kill might find the whole export in Olive's cache
            (lambda: "building fp32" in olive.stderr(), 0.05),
            (lambda: "comparing 3 adapters" in olive.stderr(), 0.5),  # it is being compared, or measured
        ]
        for reached, at_most_s in moments:
            olive.kill_when(reached, at_most_s)
            self.after_kill.append(hashes(olive.out))
            self.adapters.append(olive.adapters())
        self.code, self.stdout, self.stderr = olive.run(olive.workflow())
        self.adapters.append(olive.adapters())


@pytest.fixture(scope="module")
def finished(tiny_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLIVE_CACHE_DIR", "unused")
        return Finished(Olive(tmp_path_factory.mktemp("olive"), tiny_llama_path))


def test_a_killed_run_is_completed_by_the_same_command(finished: Finished) -> None:
    assert finished.code == 0, finished.stderr
    assert leftovers(finished.olive.folder) == []
    assert finished.after_kill == [finished.earlier] * 3
    assert set(hashes(finished.olive.out)) > {"package.json", "evaluation.json", "model.onnx", "model.onnx.data"}


def test_finished_adapters_survive_a_kill_untouched(finished: Finished) -> None:
    first, second, third, last = finished.adapters
    assert set(first) == {"mood"} and set(second) == {"mood", "story", "tone"}
    assert second["mood"] == first["mood"] and third == second and last == second
    trained = [
        [name for name in last if f"train {name}: 3 steps" in text]
        for text in [*finished.olive.errors, finished.stderr]
    ]
    assert trained == [["mood"], ["story", "tone"], [], []]
    assert not finished.olive.unfinished("story")


def test_the_finished_run_prints_the_table(finished: Finished) -> None:
    lines = finished.stdout.splitlines()
    assert "out: fp32 ONNX package" in finished.stdout and f"Written to {finished.olive.out}" in lines
    rows = [line.split() for line in lines]
    evaluation = json.loads((finished.olive.out / "evaluation.json").read_text(encoding="utf-8"))
    scores = {(row["adapter"], row["metric"]): row for row in evaluation["quality"]}
    assert set(scores) == {("mood", m) for m in ("accuracy", "f1_macro", "f1_weighted")} | {("story", "perplexity")}
    accuracy, perplexity = scores["mood", "accuracy"], scores["story", "perplexity"]
    shown = [f"{accuracy[column]:.3f}" for column in ("base", "pytorch", "package", "low", "high", "tfidf")]
    assert ["mood", "accuracy", *shown[:3], "-".join(shown[3:5]), shown[5]] in rows
    shown = [f"{perplexity[column]:.2f}" for column in ("base", "pytorch", "package", "low", "high")]
    assert ["story", "perplexity", *shown[:3], "-".join(shown[3:]), "-"] in rows
    assert perplexity["pytorch"] < perplexity["base"]
    assert perplexity["package"] == pytest.approx(perplexity["pytorch"], rel=1e-4)
    assert [row[0] for row in rows if "size" in row] == ["base", "mood", "story", "tone", "total"]
    assert "error" not in finished.stderr and "Traceback" not in finished.stderr


def test_the_package_is_whole_and_serves_its_adapters(finished: Finished) -> None:
    from runtime.model import MultiAdapterModel

    model = MultiAdapterModel.load(finished.olive.out)
    assert {name: entry["task"] for name, entry in model.adapters.items()} == {
        "mood": "classification",
        "story": "generation",
        "tone": "classification",
    }
    for entry in model.adapters.values():
        parity = entry["parity"]["fp32"]
        assert 0 <= parity["max_abs_difference"] <= 1e-3 and parity["top1_agreement"] == 1.0
    assert model.adapters["mood"]["metrics"]["accuracy"]["package"] is not None
    assert {result.label for result in model.classify(mood_data(1).texts, "mood")} <= {"bad", "good"}
    assert model.generate("Count the stairs", "story", max_new_tokens=4)
    recorded = model.manifest["workflow"]
    assert list(recorded["passes"]) == ["mood", "story", "tone", "export"]
    for file in finished.olive.out.glob("*.json"):
        assert "unfinished" not in file.read_text(encoding="utf-8"), file.name


def command(olive: Olive, content: dict[str, Any]) -> tuple[int, str, str]:
    """As Olive.run, by the console script."""
    surroundings = {name: value for name, value in os.environ.items() if name != "OLIVE_CACHE_DIR"}
    arguments = ["olive", "run", "--config", str(olive.write(content))]
    done = subprocess.run(
        arguments, cwd=REPOSITORY, env=surroundings, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return done.returncode, done.stdout, done.stderr


def fails(
    olive: Olive, content: dict[str, Any], run: Callable[[Olive, dict[str, Any]], tuple[int, str, str]] = Olive.run
) -> tuple[str, str]:
    """Runs a workflow that must fail and leave the package as it is; returns its one error and its stdout."""
    before, adapters = hashes(olive.out), olive.adapters()
    code, stdout, stderr = run(olive, content)
    assert code == 1
    assert hashes(olive.out) == before and leftovers(olive.folder) == []
    assert olive.adapters() == adapters
    assert "Traceback" not in stderr and stderr.count("error:") == 1
    return stderr[stderr.index("error:") :].strip(), stdout


def test_a_bad_option_fails_before_anything_runs(finished: Finished) -> None:
    content = finished.olive.workflow()
    content["passes"]["mood"]["rnk"] = 4
    error, stdout = fails(finished.olive, content, command)
    file = finished.olive.folder / "workflow.json"
    assert error.startswith(f"error: {file}: passes.mood.rnk: unknown option; did you mean 'rank'? Valid: ")
    assert error.count("\n") == 0 and stdout == ""


@pytest.mark.slow  # tests/passes/test_certificate.py tests the same without Olive
def test_a_failing_parity_leaves_the_package(finished: Finished) -> None:
    content = finished.olive.workflow()
    content["passes"]["export"]["parity"] = {"fp32_max_abs_difference": 1e-30, "mean_abs_difference": 1e-31}
    error, stdout = fails(finished.olive, content)
    first, *lines = error.splitlines()
    assert first == "error: 6 problems:"
    bounds = (("max_abs_difference", "1e-30"), ("mean_abs_difference", "1e-31"))
    wanted = [(name, *bound) for name in ("mood", "story", "tone") for bound in bounds]
    for line, (name, score, bound) in zip(lines, wanted, strict=True):
        assert line.startswith(f"  - parity of adapter '{name}' with PyTorch: fp32 {score} is ")
        assert line.endswith(f", but must be at most {bound}")
    assert "Written to" not in stdout


@pytest.mark.slow  # tests/passes/test_certificate.py tests the same without Olive
def test_a_package_for_a_target_that_is_not_here(finished: Finished) -> None:
    """The same adapters for CUDA: nothing is trained again, the graph is compared on the CPU, a goal stays open."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDAExecutionProvider")
    before, adapters, content = hashes(finished.olive.out), finished.olive.adapters(), finished.olive.workflow()
    out = finished.olive.folder / "out_cuda"
    accelerator = {"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}
    content["systems"]["target"]["accelerators"] = [accelerator]
    content["passes"]["export"]["precision"] = "fp16"
    content["passes"]["export"]["parity"] = {"max_abs_difference": 0.2, "label_flips": 1}
    content["evaluators"]["all"]["metrics"][2]["sub_types"][0]["goal"] = {"type": "threshold", "value": 1e-6}
    code, stdout, stderr = finished.olive.run({**content, "output_dir": str(out)})
    assert code == 0, stderr
    assert not [line for line in stderr.splitlines() if line.startswith("train ") and "unchanged" not in line]
    assert finished.olive.adapters() == adapters
    assert hashes(finished.olive.out) == before
    reason = "this onnxruntime has no CUDAExecutionProvider, which the package asks for; available: cpu"
    assert f"Not executed here on its target cuda: {reason}" in stdout
    assert "<= 1e-06 unmeasured" in stdout and f"Written to {out}" in stdout
    manifest = json.loads((out / "package.json").read_text(encoding="utf-8"))
    assert manifest["target"]["not_executed"] == reason and manifest["precision"] == "fp16"
    for entry in manifest["adapters"].values():
        assert entry["parity"]["fp32"]["max_abs_difference"] < 1e-3
        assert entry["parity"]["fp16"]["executed_on"] == "cpu" and entry["parity"]["fp16"]["max_abs_difference"] > 0
        assert all(scores["package"] is None for scores in entry["metrics"].values())


@pytest.mark.slow
def test_a_missed_goal_leaves_the_package(finished: Finished) -> None:
    content = finished.olive.workflow()
    metrics = {metric["name"]: metric["sub_types"][0] for metric in content["evaluators"]["all"]["metrics"]}
    metrics["story"]["goal"] = {"type": "threshold", "value": 1.5}
    metrics["latency"]["goal"] = {"type": "min-improvement", "value": 10**6}  # ms faster than PyTorch
    metrics["size_on_disk"]["goal"] = {"type": "threshold", "value": 10**9}
    error, stdout = fails(finished.olive, content)
    first, second, third = error.splitlines()
    assert first == "error: 2 problems:"
    assert second.startswith(f"  - goal missed, {finished.olive.out} is left as it was: story perplexity is ")
    assert second.endswith(", the goal is <= 1.50")
    assert third.startswith(f"  - goal missed, {finished.olive.out} is left as it was: (base) tpot_p50_ms is ")
    assert "<= 1.50 MISSED" in stdout and "<= 1000.00 MB met" in stdout and "Written to" not in stdout


def test_only_what_changed_is_trained_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another option of "mood" and another row in the file of "tone": both are trained, "story" between them is not.

    Who watches the run reads so, the validation of "mood", and its rows that the package gets right.
    """
    watched = finished.olive.folder / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(watched))
    olive, before = finished.olive, finished.olive.adapters()
    content = olive.workflow()
    content["passes"]["mood"]["rank"] = 2
    write_mood_csv(olive.folder / "tone.csv", [*mood_data().texts[:-1], "Something else."])
    code, stdout, stderr = olive.run(content)
    assert code == 0 and f"Written to {olive.out}" in stdout
    told = [line.split(",")[0] for line in stderr.splitlines() if line.startswith("train ")]
    assert told == [
        "train mood: 3 steps", "train mood: adapter", "train story: unchanged", "train tone: 3 steps",
        "train tone: adapter",
    ]  # fmt: skip
    after = olive.adapters()
    assert after["story"] == before["story"]
    assert after["mood"][0] != before["mood"][0] and after["tone"][0] != before["tone"][0]
    manifest = json.loads((olive.out / "package.json").read_text(encoding="utf-8"))
    assert manifest["adapters"]["mood"]["rank"] == 2 and manifest["adapters"]["story"]["rank"] == 4
    lines = [line for line in read_from(watched, 0)[0] if "progress" not in line]
    assert [(line["stage"], line["adapter"]) for line in lines] == [
        ("training", "mood"),
        ("training", "story"),
        ("evaluation", "mood"),
    ]
    validation, cached, rows = lines
    assert validation["step"] == 1 and set(validation["values"]) == {"loss", "accuracy", "f1_macro"}
    assert cached["cached"] is True
    assert rows["model"] == "package" and sorted(row for row, _ in rows["rows"]) == list(range(rows["of"]))
    share = sum(found for _, found in rows["rows"]) / rows["of"]
    assert manifest["adapters"]["mood"]["metrics"]["accuracy"]["package"] == share
