from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import OlivalError, PackageError
from search import latency_worker
from search.recommend import usable
from search.records import StudyRecord
from search.remeasure import compared, remeasure
from tests.search.studies import make_space, make_study

CLASSIFY, TOKEN = "mood-classify_p50_ms", "story-tpot_p50_ms"


@pytest.fixture
def study(package_folder: Path, tmp_path: Path) -> StudyRecord:
    """Four trials: 0 and 2 have the tiny package, evaluated with 8 + 4 tokens; 1 has none, that of 3 is damaged."""
    space = make_space(["mood-accuracy", CLASSIFY], directions={"mood-accuracy": "maximize"}, output=tmp_path)
    study = make_study(space, [{"mood-accuracy": 1.0, CLASSIFY: 1.0, TOKEN: 1.0}] * 4)
    for slot in (0, 2, 3):
        folder = study.trials[slot].package("target", space)
        shutil.copytree(package_folder, folder)
        options = {"latency_options": {"prompt_tokens": 8, "new_tokens": 4}}
        (folder / "evaluation.json").write_text(json.dumps(options), encoding="utf-8")
        folder.with_name("workflow.json").write_text("{}", encoding="utf-8")
    (study.trials[3].package("target", space) / "genai_config.json").write_text("{}", encoding="utf-8")
    return study


def test_packages_are_measured_again_in_a_fresh_process(study: StudyRecord, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    result = remeasure(study, "target", CLASSIFY, [2, 1, 0, 3], told.append)
    assert result == json.loads(json.dumps(result))
    assert (result["metric"], result["prompt_tokens"], result["new_tokens"]) == (CLASSIFY, 8, 4)
    assert set(result["seconds_median"]) == set(result["ratios"]) == {"0", "2"}
    assert result["rounds"] >= latency_worker.LEAST_ROUNDS
    assert result["ratios"][str(result["reference"])] == [1.0, 1.0, 1.0]
    assert result["seconds_median"][str(result["reference"])] == min(result["seconds_median"].values()) > 0
    assert all(low <= middle <= high for middle, low, high in result["ratios"].values())
    assert "trials/0001/package is not here" in result["missing"]["1"].replace("\\", "/")
    assert "genai_config.json" in result["missing"]["3"]
    assert result["machine"]["cores"] and result["versions"]["onnxruntime"]
    assert usable(result, CLASSIFY, (2, 1, 0, 3))
    assert told == [
        f"target: measuring {CLASSIFY} of trials 2, 0 again, in turn: the noise of the first time ties them"
    ]
    assert "loading package 1 of 2" in capfd.readouterr().err


@pytest.mark.parametrize("metric", [CLASSIFY, TOKEN, "ttft_p50_ms", "tokens_per_second"])
def test_every_kind_of_metric_is_timed(package_folder: Path, metric: str) -> None:
    lines: list[str] = []
    folders = {"0": package_folder, "1": package_folder}
    seconds = latency_worker.time_packages(folders, metric, 8, 4, lines.append, aim_seconds=0)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(folders, latency_worker.LEAST_ROUNDS)
    assert all(time > 0 for times in seconds.values() for time in times)
    assert lines[-1] == f"round {latency_worker.LEAST_ROUNDS} of {latency_worker.LEAST_ROUNDS}"


def test_a_metric_that_a_package_does_not_have_is_refused(package_folder: Path) -> None:
    with pytest.raises(PackageError, match="there is no adapter 'mod'; did you mean 'mood'"):
        latency_worker.time_packages({"0": package_folder}, "mod-classify_p50_ms", 8, 4, lambda line: None)


def test_fewer_than_two_packages_cannot_be_compared(study: StudyRecord) -> None:
    with pytest.raises(OlivalError, match=r"trials 0, 1 cannot be measured again: trial 1: .*removed, or on another"):
        remeasure(study, "target", CLASSIFY, [0, 1], lambda line: None)


def test_a_worker_that_fails_is_an_error_with_its_reason(study: StudyRecord) -> None:
    with pytest.raises(OlivalError, match=r"trials 0, 2 could not be measured again: there is no adapter 'moo'"):
        remeasure(study, "target", "moo-classify_p50_ms", [0, 2], lambda line: None)


def test_ratios_are_paired_within_rounds() -> None:
    """A machine that slows down tenfold on the way changes the medians' noise, not the ratio of neighbours."""
    drift = np.linspace(1, 10, 40)
    result = compared({"4": list(drift), "7": list(0.9 * drift), "5": list(0.9 * drift)})
    assert result["reference"] == 5 and result["rounds"] == 40
    assert result["ratios"]["4"] == pytest.approx([0.9, 0.9, 0.9])
    assert result["ratios"]["7"] == pytest.approx([1.0, 1.0, 1.0])
    assert result["seconds_median"]["4"] == pytest.approx(5.5)


def noisy_rounds(means: list[float], rounds: int, rng: np.random.Generator) -> dict[str, list[float]]:
    noise = np.exp(rng.normal(0, 0.15, (len(means), rounds)))
    return {str(slot): list(mean * times) for slot, (mean, times) in enumerate(zip(means, noise, strict=True))}


def test_equal_packages_are_rarely_told_apart_and_different_ones_are() -> None:
    """15 % of noise a round: equal ones are told apart in about 5 % of runs, one that takes 1.2 times as long is."""
    rng = np.random.default_rng(0)
    for count in (2, 4):
        equal = [compared(noisy_rounds([1.0] * count, 40, rng)) for _ in range(100)]
        assert sum(any(high < 1 for _, _, high in result["ratios"].values()) for result in equal) <= 10
    for _ in range(20):
        result = compared(noisy_rounds([1.2, 1.0, 1.0], 60, rng))
        assert result["reference"] != 0 and result["ratios"]["0"][2] < 1
