"""Made-up studies: plausible numbers of a search over the quickstart, for tests that must not wait for trials."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from search.records import StudyRecord, TrialRecord
from search.space import Constraint, Objective, Parameter, Space

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
SECONDS = 40.0  # of a complete trial
RATE = "passes.spam.training_args.learning_rate"
PARAMETERS = (
    Parameter(RATE, (RATE,), "float", 1e-4, 1e-2, log=True),
    Parameter("rank", ("passes.spam.rank", "passes.spam.alpha"), "int", 4, 32, step=4),
    Parameter("precision", ("passes.export.precision",), "categorical", choices=("int4", "int8", "fp32")),
    Parameter("block_size", ("passes.export.quantization.block_size",), "categorical", choices=(16, 32, 64),
              when={"precision": ("int4",)}, inactive="remove"),
)  # fmt: skip
METRICS = {"spam-accuracy": "maximize", "tpot_p50_ms": "minimize", "size_on_disk": "minimize"}


def example_space(
    metrics: tuple[str, ...] = ("spam-accuracy", "tpot_p50_ms"),
    targets: tuple[str, ...] = ("target",),
    trials: int = 30,
    bound: float | None = 3.2e6,
    **changes: Any,
) -> Space:
    """The quickstart's space with these objectives on each of the targets; `bound` is one on size_on_disk."""
    fields: dict[str, Any] = {
        "name": "quickstart",
        "file": Path("search/spaces/quickstart.json"),
        "workflows": {target: Path(f"workflows/{target}.json") for target in targets},
        "parameters": PARAMETERS,
        "objectives": tuple(Objective(m, METRICS.get(m, "maximize"), t) for t in targets for m in metrics),
        "constraints": tuple(Constraint("size_on_disk", "<=", bound, t) for t in targets) if bound else (),
        "sampler": {"type": "tpe", "multivariate": True},
        "pruners": ({"type": "median", "n_warmup_steps": 60},),
        "trials": trials,
        "seed": 0,
        "storage": "sqlite:///searches/quickstart/study.db",
        "output": Path("searches/quickstart"),
    }
    return Space(**(fields | changes))


def example_trial(space: Space, slot: int, state: str = "complete", **changes: Any) -> TrialRecord:
    """A trial of the space: parameters drawn by its slot, metrics that follow from them with some noise."""
    draw = random.Random(slot)
    values: dict[str, Any] = {}
    for p in space.parameters:
        if p.is_active(values):
            values[p.name] = _draw(p, draw)
    targets = [t for t in space.workflows if state == "complete"]
    metrics = {target: _metrics(space, values, target, draw) for target in targets}
    steps = {"complete": 180, "pruned": 60, "running": 90}.get(state, 30)
    accuracy = _accuracy(values)
    curve = {s: round(0.86 + (accuracy - 0.86) * (1 - math.exp(-s / 50)) + draw.gauss(0, 0.003), 4)
             for s in range(30, steps + 1, 30)}  # fmt: skip
    started = START + timedelta(seconds=SECONDS * slot)
    ended = started + timedelta(seconds=SECONDS * steps / 180 * draw.uniform(0.9, 1.1))
    reason = {"pruned": "spam training accuracy 0.871 at step 60 is below the median 0.902",
              "failed": "PackageError: models/tiny/model.onnx: no space left on device",
              "lost": "the worker gave no sign of life for 60 s"}.get(state)  # fmt: skip
    fields: dict[str, Any] = {
        "slot": slot, "attempt": 0, "state": state, "parameters": values, "metrics": metrics,
        "intervals": {t: {"spam-accuracy": (m["spam-accuracy"] - 0.02, min(1.0, m["spam-accuracy"] + 0.015))}
                      for t, m in metrics.items()},
        "violated": {t: broken for t, m in metrics.items() if (broken := _broken(space, t, m))},
        "reason": reason, "curves": {"spam training accuracy": curve}, "folder": space.output / "trials" / f"{slot:04}",
        "started": started, "finished": None if state == "running" else ended,
        "worker": "box:4242", "number": slot,
    }  # fmt: skip
    return TrialRecord(**(fields | changes))


def example_study(space: Space | None = None, done: int | None = None, **changes: Any) -> StudyRecord:
    """A study in which every fifth trial was pruned, every eleventh failed, one was lost and one is running."""
    space = space or example_space()
    trials = []
    for slot in range(space.trials - 1 if done is None else done):
        state = "pruned" if slot % 5 == 3 else "failed" if slot % 11 == 6 else "complete"
        if slot == 9:
            trials.append(example_trial(space, slot, "lost", number=900))
        trials.append(example_trial(space, slot, state, attempt=int(slot == 9)))
    if done is None:
        trials.append(example_trial(space, space.trials - 1, "running"))
    if absent := changes.get("not_measured"):  # a package's size is known wherever it was made
        trials = [replace(t, metrics={n: {"size_on_disk": m["size_on_disk"]} if n in absent else m
                                      for n, m in t.metrics.items()}) for t in trials]  # fmt: skip
    fields: dict[str, Any] = {"trials": tuple(trials), "measured": tuple(space.workflows), "not_measured": {}}
    return StudyRecord(space, **(fields | changes))


def pareto_front(study: StudyRecord, target: str) -> list[TrialRecord]:
    """The feasible complete trials of a target that no other one dominates."""
    objectives = study.space.objectives_of(target)
    trials = study.complete(target)
    values = {t.number: [(t.value(o) or 0.0) * (-1 if o.direction == "maximize" else 1) for o in objectives]
              for t in trials}  # fmt: skip
    worse = {
        t.number
        for t in trials
        for other in trials
        if values[other.number] != values[t.number]
        and all(a <= b for a, b in zip(values[other.number], values[t.number], strict=True))
    }
    return [t for t in trials if t.number not in worse]


def _draw(parameter: Parameter, draw: random.Random) -> Any:
    if parameter.kind == "categorical":
        return draw.choice(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if parameter.log:
        return math.exp(draw.uniform(math.log(parameter.low), math.log(parameter.high)))
    if parameter.kind == "int":
        return draw.randrange(int(parameter.low), int(parameter.high) + 1, int(parameter.step or 1))
    return draw.uniform(parameter.low, parameter.high)


def _accuracy(values: Mapping[str, Any]) -> float:
    rate = values.get(RATE, 1e-3)
    return 0.968 - 0.05 * abs(math.log10(rate) + 2.8) ** 1.5 + 0.0004 * values.get("rank", 16)


def _metrics(space: Space, values: Mapping[str, Any], target: str, draw: random.Random) -> dict[str, float]:
    faster = 0.2 if target == "cuda" else 1.0
    width = {"int4": 1.0, "int8": 1.35, "fp32": 2.6}.get(str(values.get("precision")), 1.0)
    quality = _accuracy(values) - (0.012 if width == 1.0 else 0.0) + draw.gauss(0, 0.003)
    found = {
        "spam-accuracy": round(quality, 4),
        "tpot_p50_ms": 0.42 * faster * width * (1 + 0.004 * values.get("rank", 16)) * draw.uniform(0.98, 1.02),
        "size_on_disk": 1.9e6 * width + 9e3 * values.get("rank", 16),
    }
    extra = {o.metric for o in space.objectives_of(target)} - set(found)
    return found | {metric: draw.random() for metric in sorted(extra)}


def _broken(space: Space, target: str, metrics: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(str(c) for c in space.constraints_of(target) if c.excess(metrics[c.metric]) > 0)
