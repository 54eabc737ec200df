"""`python -m search best`: one package per target, shown with its reasons and copied to where a deployer takes it."""

from __future__ import annotations

import json
import math
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.results import write_json
from runtime.atomic_folder import recover_folder, replace_folder
from runtime.errors import ConfigError, OlivalError, nearest
from runtime.manifest import MANIFEST
from search.best_table import print_not_measured, print_recommendation
from search.pareto import pareto_front
from search.recommend import Recommendation, recommend, usable
from search.records import StudyRecord
from search.remeasure import remeasure

RECOMMENDATION = "recommendation.json"


def best(study: StudyRecord, targets: Sequence[str] | None, remeasured: dict[str, dict[str, Any]]) -> int:
    """Prints each target's Pareto front and recommendation, and copies the recommended package.

    Args:
        study: as it stands.
        targets: of the space; None is all of them.
        remeasured: by target, what was measured again before; what is measured now is put into it, for the caller to
            store.

    Returns:
        0; 1 where a target that was asked for (of None: any that is measured) has no package to give, with the reason
        on stderr.

    Raises:
        ConfigError: an unknown target; all of them.
    """
    space = study.space
    if problems := [
        f"--target: there is no '{t}'; {nearest(t, space.workflows)}" for t in targets or () if t not in space.workflows
    ]:
        raise ConfigError(problems)
    errors = []
    for target in dict.fromkeys(targets or space.workflows):
        if target in study.not_measured:
            print_not_measured(study, target)
            if targets:
                errors.append(f"{target}: nothing to recommend, it was not measured")
            continue
        recommendation = decide(study, target, remeasured)
        print_recommendation(study, recommendation)
        if recommendation.trial is None:
            errors.append(f"{target}: nothing to recommend")
            continue
        try:
            folder = copy_recommended(study, recommendation)
            print(f"Written to {folder}: package, workflow.json, {RECOMMENDATION}")
        except OlivalError as error:
            errors.append(f"{target}: {error}")
    sys.stdout.flush()
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    return 1 if errors else 0


def decide(study: StudyRecord, target: str, remeasured: dict[str, dict[str, Any]]) -> Recommendation:
    """The recommendation, after measuring again what the noise ties; where that fails, the rule's words say why.

    A stored result counts as long as it compares the trials that are tied now, and no package that it missed is here.
    """
    stored = remeasured.get(target)
    recommendation = recommend(study, target, stored)
    if not recommendation.tied or recommendation.metric is None:
        return recommendation
    if stored is not None and usable(stored, recommendation.metric, recommendation.tied):
        trials = {trial.slot: trial for trial in study.trials if trial.state == "complete"}
        missed = [trials[slot] for slot in recommendation.tied if str(slot) in stored["missing"]]
        if not any((trial.package(target, study.space) / MANIFEST).is_file() for trial in missed):
            return recommendation
    try:
        remeasured[target] = remeasure(study, target, recommendation.metric, recommendation.tied)
    except OlivalError as error:
        return replace(recommendation, rule=(*recommendation.rule, f"Noise: {error}."))
    return recommend(study, target, remeasured[target])


def copy_recommended(study: StudyRecord, recommendation: Recommendation) -> Path:
    """Copies the package with its workflow to OUTPUT/recommended/TARGET, in one step; an older one is replaced.

    Raises:
        OlivalError: the package is not here, something else stands in its place, or the disk is full. Then an older
            recommendation stays as it was.
    """
    trial, target, space = recommendation.trial, recommendation.target, study.space
    assert trial is not None
    package = trial.package(target, space)
    workflow = package.with_name("workflow.json")
    folder = space.output / "recommended" / target
    recover_folder(folder)
    if not (package / MANIFEST).is_file():
        command = f"olive run --config {workflow}"
        raise OlivalError(f"trial {trial.slot}: {package} is not here (removed, or on another machine); `{command}`")
    if folder.exists() and not (folder / RECOMMENDATION).is_file():
        raise OlivalError(f"{folder}: is no recommendation of a search, and is left as it is; move it away")
    new = folder.with_name(f"{target}-new-{uuid.uuid4().hex[:8]}")
    try:
        shutil.copytree(package, new / "package")
        content = json.loads(workflow.read_text(encoding="utf-8"))
        write_json(new / workflow.name, content | {"output_dir": str(folder / "package")})
        write_json(new / RECOMMENDATION, as_json(study, recommendation))
        replace_folder(new, folder)
    except OSError as error:
        # copytree gives a list of (source, destination, reason)
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise OlivalError(f"trial {trial.slot}: {package} could not be copied to {folder}: {reason}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _why_lost(study: StudyRecord, recommendation: Recommendation) -> dict[str, str]:
    """Of every other trial that is complete, by slot."""
    broken = {t.slot: t.violated.get(recommendation.target, ()) for t in study.trials if t.state == "complete"}
    lost = {slot: f"breaks {', '.join(constraints)}" for slot, constraints in broken.items() if constraints}
    lost |= {c.trial.slot: c.lost for c in recommendation.candidates if c.lost is not None}
    return {str(slot): lost[slot] for slot in sorted(lost)}


def as_json(study: StudyRecord, recommendation: Recommendation) -> dict[str, Any]:
    """What recommendation.json says: the trial, its numbers, the rule in words, and why each other trial lost."""
    trial, target = recommendation.trial, recommendation.target
    assert trial is not None
    return {
        "study": study.space.name,
        "target": target,
        "trial": trial.slot,
        "parameters": dict(trial.parameters),
        "metrics": {name: value if math.isfinite(value) else None for name, value in trial.metrics[target].items()},
        "intervals": {metric: list(pair) for metric, pair in trial.intervals.get(target, {}).items()},
        "rule": list(recommendation.rule),
        "pareto_front": [t.slot for t in pareto_front(study, target)],
        "lost": _why_lost(study, recommendation),
        "measured_again": dict(recommendation.remeasured) if recommendation.remeasured is not None else None,
    }
