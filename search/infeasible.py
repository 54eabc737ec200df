"""Why no trial of a study can be recommended: which constraint is broken by how little, and by which trial."""

from __future__ import annotations

import math

from search.criteria import SIZE, value_text
from search.records import StudyRecord, TrialRecord
from search.space import Constraint


def why_none(study: StudyRecord, target: str) -> list[str]:
    """Sentences for a target without a comparable trial (see search.pareto.comparable)."""
    complete = study.complete(target, feasible=False)
    if not complete or study.complete(target):  # what keeps the constraints has an objective that is no number
        states = [trial.state for trial in study.trials if trial.state != "lost"]
        if "complete" not in states:
            counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            return [f"No trial is complete yet ({counted or 'none has begun'})."]
        wanted = ", ".join(o.metric for o in study.space.objectives_of(target))
        return [f"No complete trial has a number for every objective: {wanted}."]
    constraints = study.space.constraints_of(target)
    # bounds have different units: what is beyond counts as a share of the bound
    totals = {t.slot: sum(_excess(t, c) / (abs(c.bound) or 1.0) for c in constraints) for t in complete}
    nearest = min(complete, key=lambda t: (totals[t.slot], t.slot))
    broken = [_broken_by(nearest, c) for c in constraints if _excess(nearest, c) > 0]
    count = f"{len(complete)} complete trial{'' if len(complete) == 1 else 's'}"
    words = [
        f"None of {count} keeps every constraint.",
        f"Nearest is trial {nearest.slot}: {'; '.join(broken or nearest.violated.get(target, ()))}.",
    ]
    for constraint in constraints if len(constraints) > 1 else ():
        keeping = sum(_excess(t, constraint) == 0 for t in complete)
        closest = min(complete, key=lambda t: (_excess(t, constraint), t.slot))
        best = "" if keeping else f"; nearest is trial {closest.slot} with {_value(closest, constraint)}"
        words.append(f"{constraint_text(constraint)}: kept by {keeping} of {len(complete)}{best}.")
    return words


def constraint_text(constraint: Constraint) -> str:
    """`size_on_disk <= 3 MB`."""
    return f"{constraint.metric} {constraint.sense} {_exact(constraint.metric, constraint.bound)}"


def _excess(trial: TrialRecord, constraint: Constraint) -> float:
    value = trial.metrics.get(constraint.target, {}).get(constraint.metric)
    return math.inf if value is None or math.isnan(value) else max(0.0, constraint.excess(value))


def _value(trial: TrialRecord, constraint: Constraint) -> str:
    value = trial.metrics.get(constraint.target, {}).get(constraint.metric)
    return "nothing measured" if value is None else _exact(constraint.metric, value)


def _broken_by(trial: TrialRecord, constraint: Constraint) -> str:
    metric, excess = constraint.metric, _excess(trial, constraint)
    if math.isinf(excess):
        return f"{metric} was not measured"
    word, bound = "above" if constraint.sense == "<=" else "below", _exact(metric, constraint.bound)
    return f"{metric} is {_value(trial, constraint)}, {_exact(metric, excess)} {word} {bound}"


def _exact(metric: str, value: float) -> str:
    """With six digits: a bound may be broken by less than a table shows."""
    unit = value_text(metric, 1.0).partition(" ")[2]
    return f"{value / 1e6 if metric == SIZE else value:.6g} {unit}".strip()
