"""Reads a study's storage into plain records."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.infeasible import constraint_text
from search.records import StudyRecord, TrialRecord
from search.samplers import slots_of
from search.slots import ATTEMPT, PARAMETERS, REASON, SLOT, WORKER, by_slot, is_lost
from search.space import Space
from search.study import open_study, study_targets
from search.trial import FOLDER, INTERVALS, METRICS, NOTES
from search.trial_files import trial_folder
from search.watch import CURVES

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_MEANS = 50  # points of an evaluation's curve
_MEASURED_AGAIN = "measured_again"  # user attribute of the study


def read_study(space: Space) -> StudyRecord:
    """The study as it stands. Raises OlivalError when it has not begun."""
    return read_record(space, open_study(space))


def measured_again(study: optuna.Study) -> dict[str, Any]:
    """What was measured again to tell packages of like latency apart: {target: as search.remeasure has it}."""
    kept: dict[str, Any] = study.user_attrs.get(_MEASURED_AGAIN) or {}
    return kept


def keep_measured_again(study: optuna.Study, measured: dict[str, Any]) -> None:
    """Stores it, for every machine's next `best`."""
    if study.user_attrs.get(_MEASURED_AGAIN) != measured and measured:
        study.set_user_attr(_MEASURED_AGAIN, measured)


def read_record(space: Space, study: optuna.Study) -> StudyRecord:
    """The study as it stands."""
    measured, not_measured = study_targets(study)
    wanted = slots_of(space)
    tried = [trials for slot, trials in by_slot(study).items() if slot < wanted]
    trials = [_record(space, trial, measured) for attempts in tried for trial in attempts]
    return StudyRecord(space, tuple(trials), tuple(measured), not_measured)


def _record(space: Space, trial: FrozenTrial, measured: list[str]) -> TrialRecord:
    kept = trial.user_attrs
    metrics: dict[str, dict[str, float]] = kept.get(METRICS) or {}
    violated: dict[str, tuple[str, ...]] = {}
    for target in measured:
        found = metrics.get(target, {})
        broken = [c for c in space.constraints_of(target) if c.metric in found and c.excess(found[c.metric]) > 0]
        violated[target] = tuple(constraint_text(c) for c in broken)
    worker = kept.get(WORKER)
    notes = kept.get(NOTES) or []
    curves: dict[str, dict[str, float | None]] = kept.get(CURVES) or {}
    return TrialRecord(
        slot=kept[SLOT],
        attempt=kept[ATTEMPT],
        state=_state(trial),
        parameters=kept.get(PARAMETERS) or {},
        metrics=metrics,
        intervals={t: {m: (b[0], b[1]) for m, b in found.items()} for t, found in (kept.get(INTERVALS) or {}).items()},
        violated=violated,
        reason=kept.get(REASON) or ("; ".join(notes) or None),
        curves={name: _curve(name, values) for name, values in curves.items()},
        folder=_folder(space, kept),
        started=_aware(trial.datetime_start),
        finished=_aware(trial.datetime_complete),
        worker=f"{worker['name']}:{worker['pid']}" if worker else None,
        number=trial.number,
    )


def _aware(moment: datetime | None) -> datetime | None:
    """Optuna stores the worker's local time without its zone."""
    return moment.astimezone() if moment is not None else None


def _curve(name: str, kept: dict[str, float | None]) -> dict[int, float]:
    """Validations as they came; of an evaluation the mean of the rows until then, after each further share of them."""
    if " evaluation " not in name:
        return {int(step): value for step, value in kept.items() if value is not None}
    rows = [value for value in kept.values() if value is not None]
    ends = sorted({round(len(rows) * part / _MEANS) for part in range(1, _MEANS + 1)} - {0})
    return {end: sum(rows[:end]) / end for end in ends}


def _state(trial: FrozenTrial) -> str:
    if is_lost(trial):
        return "lost"
    if trial.state.name == "FAIL":
        return "failed"
    return trial.state.name.lower()


def _folder(space: Space, kept: dict[str, Any]) -> Path:
    return Path(kept[FOLDER]) if FOLDER in kept else trial_folder(space, kept[SLOT], kept[ATTEMPT])
