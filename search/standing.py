"""How a study stands: which trials are over, the best of each objective, the time that is left, what failed and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from statistics import median

from search.records import STATES, StudyRecord, TrialRecord
from search.samplers import slots_of
from search.space import Objective

_OVER = ("complete", "pruned", "failed")


def latest(study: StudyRecord) -> list[TrialRecord]:
    """The last attempt at each slot that was begun, by slot."""
    by_slot: dict[int, TrialRecord] = {}
    for trial in study.trials:
        if trial.slot not in by_slot or trial.attempt >= by_slot[trial.slot].attempt:
            by_slot[trial.slot] = trial
    return [by_slot[slot] for slot in sorted(by_slot)]


def finished(study: StudyRecord) -> list[TrialRecord]:
    """Trials that nothing more comes of: complete, pruned, failed, or lost at every attempt that the space allows."""
    retries = study.space.retries
    return [t for t in latest(study) if t.state in _OVER or (t.state == "lost" and t.attempt >= retries)]


def state_counts(study: StudyRecord) -> dict[str, int]:
    """How many slots are in each state, in the order of STATES; slots that were not begun are waiting."""
    counts = Counter(trial.state for trial in latest(study))
    counts["waiting"] += max(0, slots_of(study.space) - sum(counts.values()))
    return {state: counts[state] for state in STATES if counts[state]}


def value_of(trial: TrialRecord, objective: Objective) -> float | None:
    """The trial's value of an objective, where there is one and it is a finite number."""
    value = trial.value(objective)
    return value if value is not None and math.isfinite(value) else None


def best(study: StudyRecord, objective: Objective) -> TrialRecord | None:
    """The complete trial with the objective's best value among those that keep its target's constraints."""
    return next(reversed(best_so_far(study.complete(objective.target), objective)), None)


def best_so_far(trials: Sequence[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """Those of the trials that are better than all with a lower slot; the last one is the best of all."""
    records: list[TrialRecord] = []
    for trial in sorted(trials, key=lambda t: t.slot):
        value = value_of(trial, objective)
        former = value_of(records[-1], objective) if records else None
        if value is not None and (former is None or objective.better(value, former)):
            records.append(trial)
    return records


def seconds_left(study: StudyRecord, now: datetime) -> float | None:
    """Seconds until the last trial ends, if those to come take as long as those that are over and none fails anew.

    Trials to come share the workers that are running now (at least one); a running trial counts what it has left of the
    median time. None where no trial has ended, or none is left.
    """
    over = [t.seconds for t in finished(study) if t.seconds is not None]
    running = [t for t in latest(study) if t.state == "running"]
    left = slots_of(study.space) - len(finished(study))
    if not over or left <= 0:
        return None
    usual = median(over)
    passed = [(now - t.started).total_seconds() for t in running if t.started is not None]
    begun = sum(max(0.0, usual - seconds) for seconds in passed) + usual * (len(running) - len(passed))
    return (begun + usual * max(0, left - len(running))) / max(1, len(running))


def failures(study: StudyRecord) -> dict[str, list[TrialRecord]]:
    """Attempts that failed or were lost and were not made good, by reason, the most frequent reason first."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in latest(study):
        if trial.state in ("failed", "lost"):
            found.setdefault(trial.reason or "no reason is known", []).append(trial)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
