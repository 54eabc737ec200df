"""What is known of a study's trials, read from its storage: the one source of status, report and best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from search.space import Objective, Space

STATES = ("waiting", "running", "complete", "pruned", "failed", "lost")


@dataclass(frozen=True)
class TrialRecord:
    """One attempt at one of the study's trials; a trial whose worker was lost is tried again under the same `slot`."""

    slot: int  # which of the study's trials, from 0; also the name of its folder
    attempt: int  # from 0
    state: str  # one of STATES; "lost" has a later attempt or has used all of them
    parameters: Mapping[str, Any]  # parameter name -> JSON value; inactive ones are absent
    metrics: Mapping[str, Mapping[str, float]]  # target -> metric -> value, of everything that the run measured
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]  # target -> metric -> 95 % interval, where one is known
    violated: Mapping[str, tuple[str, ...]]  # target -> constraints that are broken, as words
    reason: str | None  # why it failed or was pruned
    curves: Mapping[str, Mapping[int, float]]  # "spam training accuracy" -> step -> value
    folder: Path  # trials/NNNN
    started: datetime | None
    finished: datetime | None
    worker: str | None  # host:pid
    number: int  # Optuna's number of the trial in the storage

    @property
    def seconds(self) -> float | None:
        return (self.finished - self.started).total_seconds() if self.started and self.finished else None

    def value(self, objective: Objective) -> float | None:
        return self.metrics.get(objective.target, {}).get(objective.metric)

    def package(self, target: str, space: Space) -> Path:
        """Where the trial's package for a target lies (it may have been removed)."""
        return (self.folder / target if space.several_targets else self.folder) / "package"


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands."""

    space: Space
    trials: tuple[TrialRecord, ...]  # by slot and attempt, lost ones too
    measured: tuple[str, ...]  # targets whose providers the workers have
    not_measured: Mapping[str, str]  # target -> why; its packages are built and checked

    def complete(self, target: str | None = None, feasible: bool = True) -> list[TrialRecord]:
        """Complete trials; of a target with its objectives measured and, if `feasible`, its constraints kept."""
        found = []
        for trial in self.trials:
            targets = self.measured if target is None else (target,)
            if trial.state != "complete" or (feasible and any(trial.violated.get(t) for t in targets)):
                continue
            if all(trial.value(o) is not None for t in targets for o in self.space.objectives_of(t)):
                found.append(trial)
        return found
