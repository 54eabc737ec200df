"""What a search is over: workflows, parameters in them, objectives, constraints; as a space file says it.

    {"workflow": "workflows/quickstart.json",
     "parameters": {
       "passes.spam.training_args.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": true},
       "precision": {"path": "passes.export.precision", "type": "categorical", "choices": ["int4", "int8"]},
       "passes.export.quantization.block_size": {"type": "categorical",
         "choices": [16, 32], "when": {"precision": "int4"}}},
     "objectives": [{"metric": "spam-accuracy"}, {"metric": "tpot_p50_ms"}],
     "constraints": ["size_on_disk <= 3e6"],
     "sampler": {"type": "tpe"}, "pruner": {"type": "median"}, "trials": 30, "seed": 0}

docs/search.md describes every key. `read_space` finds everything that is wrong, before anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True)
class Parameter:
    """One value that the search chooses, and the places in the workflows that get it."""

    name: str
    paths: tuple[str, ...]
    kind: str  # float, int or categorical
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()  # JSON values
    when: Mapping[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # other parameter -> values under which this holds
    inactive: str = "keep"  # what happens to the paths elsewhere: keep the workflow's value, or remove the option

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Whether this parameter counts beside the values chosen so far; an inactive parameter has none."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())


@dataclass(frozen=True)
class Objective:
    """A metric of one target, such as `spam-accuracy` or `tpot_p50_ms`, and where better lies."""

    metric: str
    direction: str
    target: str

    def better(self, one: float, other: float) -> bool:
        return one > other if self.direction == "maximize" else one < other


@dataclass(frozen=True)
class Constraint:
    """A bound that a package must keep on one target."""

    metric: str
    sense: str  # "<=" or ">="
    bound: float
    target: str

    def excess(self, value: float) -> float:
        """How far `value` is beyond the bound; 0 or less keeps it (Optuna's sign)."""
        return value - self.bound if self.sense == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.metric} {self.sense} {self.bound:g}"


@dataclass(frozen=True)
class Space:
    """A space file, checked. Paths of workflows, data and output are relative to the current folder, as in Olive."""

    name: str
    file: Path
    workflows: Mapping[str, Path]  # target -> workflow file
    parameters: tuple[Parameter, ...]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    sampler: Mapping[str, Any]
    pruners: tuple[Mapping[str, Any], ...]
    trials: int
    seed: int
    storage: str  # SQLAlchemy URL
    output: Path
    time_limit_seconds: float | None = None
    retries: int = 3  # of a trial whose worker was lost
    quality_tolerance: float = 0.01  # share of the best quality that a faster package may lack

    def parameter(self, name: str) -> Parameter:
        return next(p for p in self.parameters if p.name == name)

    def objectives_of(self, target: str) -> tuple[Objective, ...]:
        return tuple(o for o in self.objectives if o.target == target)

    def constraints_of(self, target: str) -> tuple[Constraint, ...]:
        return tuple(c for c in self.constraints if c.target == target)

    @property
    def several_targets(self) -> bool:
        return len(self.workflows) > 1

    def workflow(self, target: str) -> dict[str, Any]:
        """The target's workflow as its file has it."""
        content: dict[str, Any] = json.loads(self.workflows[target].read_text(encoding="utf-8"))
        return content
