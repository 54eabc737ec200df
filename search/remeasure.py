"""Measures packages whose speed the noise ties once more, interleaved, so that only ratios within a round count."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import results
from benchmark.fresh_process import WorkerError, run_fresh
from benchmark.interleaved import paired_ratio
from runtime.errors import OlivalError, PackageError
from runtime.manifest import read_manifest
from search.records import StudyRecord

# what an evaluation does that says nothing else (evaluators.metric_check.LATENCY_OPTIONS)
_DEFAULTS = {"prompt_tokens": 32, "new_tokens": 32}


def remeasure(
    study: StudyRecord, target: str, metric: str, slots: Sequence[int], tell: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Times the packages of some trials in turn, in one fresh process.

    Args:
        study: whose packages lie in its folders.
        target: one of the study's.
        metric: what decides, such as `tpot_p50_ms`; search.latency_worker says what a round times.
        slots: at least two, of complete trials.
        tell: called with a line when it starts; None prints it to stderr, where the worker's lines go.

    Returns:
        JSON values: {"metric", "rounds", "prompt_tokens", "new_tokens", "reference": slot with the lowest median,
        "seconds_median": {slot: seconds}, "ratios": {slot: [median, low, high] of the reference's time over this
        trial's, with its interval, see `compared`}, "missing": {slot: why}, "machine", "versions"}. Slots are texts as
        keys, as they are in JSON.

    Raises:
        OlivalError: fewer than two packages are here, each missing one is named; or the measurement failed.
    """
    found, missing = packages_here(study, target, slots)
    if len(found) < 2:
        reasons = "; ".join(f"trial {slot}: {reason}" for slot, reason in missing.items())
        raise OlivalError(f"trials {', '.join(map(str, slots))} cannot be measured again: {reasons}")
    options = _options(list(found.values()))
    line = f"measuring {metric} of trials {', '.join(map(str, found))} again, in turn: the noise of the first time ties"
    (tell or _to_stderr)(f"{target}: {line} them")
    with tempfile.TemporaryDirectory() as work:
        output = Path(work) / "seconds.json"
        command = [sys.executable, "-m", "search.latency_worker", "--metric", metric, "--output", str(output)]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        try:
            run_fresh([*command, *(f"{slot}={folder.resolve()}" for slot, folder in found.items())])
        except WorkerError as error:
            raise OlivalError(f"trials {', '.join(map(str, found))} could not be measured again: {error}") from error
        seconds: dict[str, list[float]] = json.loads(output.read_text(encoding="utf-8"))["seconds"]
    return {"metric": metric, **options, **compared(seconds), "missing": missing, **_where()}


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """{"rounds", "reference", "seconds_median", "ratios"} of the rounds' seconds by slot; see `remeasure`.

    The reference is chosen by the same rounds that judge, so it may be any of the pairs that shows the largest
    difference: the intervals hold with 95 % for all pairs together (Bonferroni). Of equal packages one is then found
    slower in 5 % of runs; with 95 % for each pair it is 22 % of runs of four.
    """
    medians = {slot: float(np.median(times)) for slot, times in seconds.items()}
    reference = min(medians, key=lambda slot: (medians[slot], int(slot)))
    pairs = len(seconds) * (len(seconds) - 1) / 2
    ratios = {
        slot: list(paired_ratio(seconds[reference], times, confidence=1 - 0.05 / pairs))
        for slot, times in seconds.items()
    }
    return {
        "rounds": len(seconds[reference]),
        "reference": int(reference),
        "seconds_median": medians,
        "ratios": ratios,
    }


def packages_here(study: StudyRecord, target: str, slots: Sequence[int]) -> tuple[dict[str, Path], dict[str, str]]:
    """({slot: folder} of the sound packages on this machine, {slot: why not} of the others)."""
    trials = {trial.slot: trial for trial in study.trials if trial.state == "complete"}
    found, missing = {}, {}
    for slot in slots:
        folder = trials[slot].package(target, study.space)
        if not folder.is_dir():
            missing[str(slot)] = f"{folder} is not here (removed, or on another machine)"
            continue
        try:
            read_manifest(folder)
            found[str(slot)] = folder
        except PackageError as error:
            missing[str(slot)] = " ".join(str(error).split())
    return found, missing


def _options(folders: Sequence[Path]) -> dict[str, int]:
    """The lengths that the packages were evaluated with, where all agree."""
    found = []
    for folder in folders:
        file = folder / "evaluation.json"
        evaluation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        options = evaluation.get("latency_options") or {}
        found.append({name: int(options.get(name, default)) for name, default in _DEFAULTS.items()})
    return found[0] if all(options == found[0] for options in found) else dict(_DEFAULTS)


def _where() -> dict[str, Any]:
    return {"machine": results.machine(), "versions": results.versions()}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
