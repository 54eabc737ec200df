"""The quickstart's search, its worker killed twenty times at random moments, ends as if nobody had disturbed it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.metric_names import kind
from search.records import StudyRecord
from search.space_file import read_space
from search.study_record import read_study

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 20
LONGEST_SECONDS = 30  # from a worker's start to its end: importing, training, exporting, measuring all get their share


def write_space(folder: Path) -> Path:
    """Two trials of the quickstart, with one epoch in the place of three and six."""
    workflow = json.loads((REPOSITORY / "workflows/quickstart.json").read_text(encoding="utf-8"))
    for name in ("spam", "intent", "blurbs"):
        workflow["passes"][name]["training_args"]["num_train_epochs"] = 1
    workflow["cache_dir"] = str(folder / "cache")
    folder.mkdir()
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    rate = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
    content = {
        "name": "kills",
        "workflow": str(folder / "workflow.json"),
        "parameters": {"passes.spam.training_args.learning_rate": rate},
        "objectives": [{"metric": "spam-accuracy"}, {"metric": "blurbs-perplexity"}],
        "trials": 2,
        "retries": KILLS,
        "output_dir": str(folder / "results"),
    }
    (folder / "space.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "space.json"


def worker(space: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen([sys.executable, "-m", "search", "run", str(space)], cwd=REPOSITORY, env=environment)


def outcome(study: StudyRecord) -> list[tuple[int, dict[str, object], dict[str, float]]]:
    """(slot, parameters, quality and size) of each trial that counts."""
    found = []
    for trial in study.trials:
        if trial.state != "lost":
            assert trial.state == "complete", trial.reason
            metrics = trial.metrics["cpu"]
            steady = {name: value for name, value in metrics.items() if kind(name) in ("quality", "size")}
            found.append((trial.slot, dict(trial.parameters), steady))
    return found


@pytest.mark.slow
def test_the_quickstart_s_search_survives_twenty_kills(tmp_path: Path) -> None:
    killed, undisturbed = write_space(tmp_path / "killed"), write_space(tmp_path / "undisturbed")
    moments = random.Random(0)
    hits = 0
    while hits < KILLS:
        process = worker(killed)
        time.sleep(moments.uniform(2, LONGEST_SECONDS))
        if process.poll() is not None:  # it was done before
            break
        process.kill()
        process.wait()
        hits += 1
    assert worker(killed).wait() == 0 and worker(undisturbed).wait() == 0
    study = read_study(read_space(killed))
    print(f"{hits} kills, {sum(t.state == 'lost' for t in study.trials)} attempts lost")
    assert hits >= 5 and any(t.state == "lost" for t in study.trials)
    expected = outcome(read_study(read_space(undisturbed)))
    assert [slot for slot, _, _ in expected] == [0, 1] and outcome(study) == expected
