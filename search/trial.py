"""Runs one trial: writes its workflows, runs them, and stores what came of it, whatever came of it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.failure import failure_reason, file_reason, no_evaluation_reason
from search.metric_names import measured
from search.olive_run import Exit
from search.slots import ATTEMPT, OUTCOME, PARAMETERS, REASON, SLOT, by_slot, storage_of
from search.space import Space
from search.study import study_targets
from search.trial_files import LOG, PACKAGE, drop_run_cache, trial_folder, write_workflows
from search.trial_files import VALUES as VALUES_FILE
from search.watch import GIVEN_UP, Watch

if TYPE_CHECKING:
    import optuna

METRICS, INTERVALS, FOLDER, NOTES = "metrics", "intervals", "folder", "notes"
RunWorkflow = Callable[[Path, Path, Path, Callable[[], str | None]], Exit]  # workflow, log, intermediate values, stop


def run_trial(
    space: Space,
    study: optuna.Study,
    trial: optuna.Trial,
    values: Mapping[str, Any],
    run: RunWorkflow,
    given_up: threading.Event,
    show: Callable[[str], object],
) -> None:
    """Ends `trial` as complete, pruned or failed; each with what was measured and the reason in user attributes."""
    slot, attempt = trial.user_attrs[SLOT], trial.user_attrs[ATTEMPT]
    folder = trial_folder(space, slot, attempt)
    kept: dict[str, Any] = {FOLDER: str(folder)}
    watch = Watch(space, study, trial, given_up, show)
    outcome, reason = "failed", None
    metrics: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    try:
        files = write_workflows(space, values, folder, slot)
        if same := _same_values(study, values):
            metrics, intervals = same.user_attrs[METRICS], same.user_attrs[INTERVALS]
            kept[NOTES] = [f"same values as trial {same.user_attrs[SLOT]}, which was not run again"]
            kept[FOLDER] = same.user_attrs[FOLDER]
            outcome = "complete"
        else:
            outcome, reason = _run_targets(space, study, files, run, watch, metrics, intervals)
    except OSError as error:  # of this process: the trial's folder cannot be written
        reason = file_reason(error, folder)
    if outcome == "given up":
        return
    watch.write()
    if outcome == "complete":
        reason = _unmeasured(space, study, metrics)
        outcome = "failed" if reason else "complete"
    _end(space, study, trial, outcome, reason, metrics, intervals, kept)


def _run_targets(
    space: Space,
    study: optuna.Study,
    files: Mapping[str, Path],
    run: RunWorkflow,
    watch: Watch,
    metrics: dict[str, dict[str, float]],
    intervals: dict[str, dict[str, tuple[float, float]]],
) -> tuple[str, str | None]:
    """(outcome, reason); fills in what each target measured. Targets that this machine lacks come last."""
    targets = study_targets(study)[0]
    for target in sorted(files, key=lambda t: t not in targets):
        place = files[target].parent
        watch.follow(place / VALUES_FILE, target)
        ended = run(files[target], place / LOG, place / VALUES_FILE, watch.poll)
        of = f"{target}: " if space.several_targets else ""
        if ended.stopped == GIVEN_UP:
            return "given up", None
        if ended.stopped is not None:
            drop_run_cache(files[target])
            return "pruned", of + ended.stopped
        if ended.code != 0:
            return "failed", of + failure_reason(ended.code, ended.peak_rss_bytes, place / LOG)
        evaluation = place / PACKAGE / "evaluation.json"
        if not evaluation.exists():
            return "failed", of + no_evaluation_reason(place / LOG)
        try:
            content = json.loads(evaluation.read_text(encoding="utf-8"))
        except ValueError as error:
            return "failed", f"{of}{evaluation} is no JSON: {error}"
        values, known = measured(content)
        if target in targets:
            metrics[target], intervals[target] = values, known
        drop_run_cache(files[target])
    return "complete", None


def _unmeasured(space: Space, study: optuna.Study, metrics: Mapping[str, Mapping[str, float]]) -> str | None:
    """What is missing for the trial to be judged."""
    objectives = [(o.target, o.metric) for o in space.objectives]
    constraints = [(c.target, c.metric) for c in space.constraints]
    wanted = [(t, m) for t, m in objectives + constraints if t in study_targets(study)[0]]
    missing = [f"{m} of {t}" for t, m in wanted if m not in metrics.get(t, {})]
    broken = [f"{m} of {t}" for t, m in wanted if m in metrics.get(t, {}) and not math.isfinite(metrics[t][m])]
    parts = [("not measured", missing), ("no number", broken)]
    return "; ".join(f"{words}: {', '.join(found)}" for words, found in parts if found) or None


def _end(
    space: Space,
    study: optuna.Study,
    trial: optuna.Trial,
    outcome: str,
    reason: str | None,
    metrics: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    kept: dict[str, Any],
) -> None:
    """Stores what was measured, what was decided and the state at once."""
    from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
    from optuna.trial import TrialState

    kept |= {
        OUTCOME: outcome,
        METRICS: {t: {m: v for m, v in found.items() if math.isfinite(v)} for t, found in metrics.items()},
        INTERVALS: {t: {m: list(bounds) for m, bounds in found.items()} for t, found in intervals.items()},
    }
    if reason is not None:
        kept[REASON] = reason
    targets = study_targets(study)[0]
    constraints, values = {}, None
    if outcome == "complete":
        for constraint in space.constraints:
            if constraint.target in targets:
                excess = constraint.excess(metrics[constraint.target][constraint.metric])
                constraints[f"{_CONSTRAINTS_KEY}:{constraint.target}: {constraint}"] = excess
        values = [float(metrics[o.target][o.metric]) for o in space.objectives if o.target in targets]
    elif outcome == "pruned" and len(study.directions) == 1:
        reported = storage_of(study).get_trial(trial._trial_id).intermediate_values
        # as Optuna's own tell: samplers learn from what a pruned trial had reached
        values = [reported[max(reported)]] if reported and math.isfinite(reported[max(reported)]) else None
    state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[outcome]
    storage_of(study).end(trial._trial_id, state, values, kept, constraints)


def _same_values(study: optuna.Study, values: Mapping[str, Any]) -> Any:
    """A complete trial with the same values, which was run itself."""
    from optuna.trial import TrialState

    for tried in by_slot(study).values():
        last = tried[-1]
        if (
            last.state == TrialState.COMPLETE
            and last.user_attrs.get(PARAMETERS) == values
            and NOTES not in last.user_attrs
        ):
            return last
    return None
