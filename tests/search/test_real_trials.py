"""One study with real runs on a tiny model: two targets, one of them absent, over options of the export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from search.metric_names import is_latency, is_quality, measured
from search.space_file import read_space
from search.study_record import read_study
from search.worker import work
from tests.passes.conftest import workflow as tiny

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_targets_share_trainings_and_a_trial_is_reproduced(tmp_path: Path, tiny_llama_path: Path) -> None:
    cpu = tiny(tmp_path, tiny_llama_path)
    cuda = json.loads(json.dumps(cpu))
    accelerator = {"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}
    cuda["systems"]["target"]["accelerators"] = [accelerator]
    for name, content in (("cpu", cpu), ("cuda", cuda)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    file = tmp_path / "space.json"
    content = {
        "workflow": {name: str(tmp_path / f"{name}.json") for name in ("cpu", "cuda")},
        "parameters": {"passes.export.precision": {"type": "categorical", "choices": ["int8", "int4"]}},
        "objectives": [{"metric": "mood-accuracy"}, {"metric": "story-perplexity"}, {"metric": "size_on_disk"}],
        "sampler": {"type": "grid"},
        "trials": 2,
        "output_dir": str(tmp_path / "results"),
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    space = read_space(file)
    assert work(space)
    study = read_study(space)
    assert [t.state for t in study.trials] == ["complete", "complete"], [t.reason for t in study.trials]

    # the target that is not here is built, checked and marked
    assert study.measured == ("cpu",) and "CUDA" in study.not_measured["cuda"]
    for trial in study.trials:
        assert set(trial.metrics) == {"cpu"}
        manifest = json.loads((trial.package("cuda", space) / "package.json").read_text(encoding="utf-8"))
        assert manifest["target"]["execution_provider"] == "cuda" and "CUDA" in manifest["target"]["not_executed"]

    # only the first run of all trains
    logs = {
        (t.slot, n): (t.folder / n / "log.txt").read_text(encoding="utf-8")
        for t in study.trials
        for n in ("cpu", "cuda")
    }
    trained = {key: "train mood: 3 steps" in log and "train story: 3 steps" in log for key, log in logs.items()}
    assert trained == {(0, "cpu"): True, (0, "cuda"): False, (1, "cpu"): False, (1, "cuda"): False}
    for key in [key for key, was_trained in trained.items() if not was_trained]:
        assert logs[key].count("unchanged, kept from an earlier run") == 2

    # `olive run` on the trial's file, with nothing in the cache, measures the same
    trial = study.trials[1]
    shutil.rmtree(tmp_path / "cache")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}
    command = ["olive", "run", "--config", str(trial.folder / "cpu" / "workflow.json")]
    subprocess.run(command, check=True, env=environment, cwd=REPOSITORY, capture_output=True)
    evaluation = json.loads((trial.package("cpu", space) / "evaluation.json").read_text(encoding="utf-8"))
    again, _ = measured(evaluation)
    before = trial.metrics["cpu"]
    assert again.keys() == before.keys() and any(map(is_quality, before))
    assert {m: v for m, v in again.items() if is_quality(m)} == {m: v for m, v in before.items() if is_quality(m)}
    assert again["size_on_disk"] == before["size_on_disk"]
    for metric in filter(is_latency, before):
        assert before[metric] / 20 < again[metric] < before[metric] * 20  # of a model that takes microseconds
