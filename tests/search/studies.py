"""Studies made by hand: what a storage would say of trials that never ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search.records import StudyRecord, TrialRecord
from search.space import Constraint, Objective, Parameter, Space

DIRECTIONS = {"spam-accuracy": "maximize", "tokens_per_second": "maximize", "intent-f1_macro": "maximize"}


def make_space(
    metrics: Sequence[str],
    constraints: Sequence[tuple[str, str, float]] = (),
    targets: Sequence[str] = ("target",),
    output: Path = Path("output/study"),
    parameters: Sequence[str] = (),
    directions: Mapping[str, str] = DIRECTIONS,
    **changes: Any,
) -> Space:
    """A space whose targets all have the same objectives and constraints; what is not in `directions` is minimized."""
    settings: dict[str, Any] = {
        "name": "study",
        "file": Path("study.json"),
        "workflows": {target: Path(f"workflows/{target}.json") for target in targets},
        "parameters": tuple(Parameter(name, (name,), "float", 0.0, 1.0) for name in parameters),
        "objectives": tuple(Objective(m, directions.get(m, "minimize"), t) for t in targets for m in metrics),
        "constraints": tuple(Constraint(*c, t) for t in targets for c in constraints),
        "sampler": {"type": "random"},
        "pruners": (),
        "trials": 30,
        "seed": 0,
        "storage": "sqlite://",
        "output": output,
    }
    return Space(**{**settings, **changes})


def make_trial(space: Space, slot: int, metrics: Mapping[str, float] | None, /, **changes: Any) -> TrialRecord:
    """A complete trial with the same metrics on every target; broken constraints are found from them."""
    values = dict(metrics or {})
    broken = {
        target: tuple(str(c) for c in space.constraints_of(target) if c.excess(values.get(c.metric, 0.0)) > 0)
        for target in space.workflows
    }
    settings: dict[str, Any] = {
        "slot": slot,
        "attempt": 0,
        "state": "complete",
        "parameters": {},
        "metrics": {target: values for target in space.workflows},
        "intervals": {},
        "violated": {target: words for target, words in broken.items() if words},
        "reason": None,
        "curves": {},
        "folder": space.output / "trials" / f"{slot:04}",
        "started": None,
        "finished": None,
        "worker": None,
        "number": slot,
    }
    return TrialRecord(**{**settings, **changes})


def make_study(
    space: Space,
    trials: Sequence[Mapping[str, float] | TrialRecord],
    intervals: Mapping[int, Mapping[str, tuple[float, float]]] | None = None,
    not_measured: Mapping[str, str] | None = None,
) -> StudyRecord:
    """A study of trials 0, 1, ... with these metrics; `intervals` are by slot, for every target."""
    lacking = dict(not_measured or {})
    records = []
    for slot, trial in enumerate(trials):
        if not isinstance(trial, TrialRecord):
            own = (intervals or {}).get(slot, {})
            trial = make_trial(space, slot, trial, intervals={target: own for target in space.workflows})
        records.append(trial)
    return StudyRecord(space, tuple(records), tuple(t for t in space.workflows if t not in lacking), lacking)
