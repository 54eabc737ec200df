"""Removes the packages that no search can recommend any more: thirty trials of a large base would fill the disk.

A trial's workflow, log, evaluation.json and package.json stay, and `olive run` on its workflow makes its package again
with the trained adapters from the cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from search.criteria import least_equal, mean_quality
from search.pareto import comparable, pareto_front
from search.records import StudyRecord, TrialRecord
from search.trial_files import PACKAGE


def drop_beaten_packages(study: StudyRecord) -> None:
    """Keeps the packages of every target's Pareto front and of the trials that are equal in quality to its best."""
    kept = {slot for target in study.measured for slot in _in_the_running(study, target)}
    for trial in study.trials:
        if trial.state in ("pruned", "failed", "lost"):
            _drop(study, trial, whole=True)
        elif trial.state == "complete" and trial.slot not in kept:
            _drop(study, trial, whole=False)


def _in_the_running(study: StudyRecord, target: str) -> set[int]:
    front = {trial.slot for trial in pareto_front(study, target)}
    trials = comparable(study, target)
    shares = mean_quality(study, target, trials)
    if not trials or shares is None:
        return front | {trial.slot for trial in trials}
    least = least_equal(max(shares), study.space.quality_tolerance)
    return front | {trial.slot for trial, share in zip(trials, shares, strict=True) if share >= least}


def _drop(study: StudyRecord, trial: TrialRecord, whole: bool) -> None:
    """Removes a package's model files, or the whole of it and of what a run left half-written."""
    for target in study.space.workflows:
        package = trial.package(target, study.space)
        unfinished = package.with_name(f"{PACKAGE}-unfinished")
        for folder in [unfinished, package] if whole else [unfinished]:
            shutil.rmtree(folder, ignore_errors=True)
        if package.is_dir():
            _keep_json(package)


def _keep_json(package: Path) -> None:
    for path in package.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".json":
            path.unlink(missing_ok=True)  # other workers drop it too
