"""Follows a running trial: keeps the curves that it reports, shows them, and decides whether it is hopeless."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.intermediate_values import read_from
from search.metric_names import direction, kind, tasks
from search.pruning import Curve, judge
from search.slots import OUTCOME, SLOT, by_slot
from search.space import Space

if TYPE_CHECKING:
    import optuna

CURVES, MEMORY = "curves", "pruner_memory"  # user attributes of a trial
JUDGED = ("adapter", "metric")  # options of a pruner beside Optuna's: whose curve it judges
_STAGE = {"wilcoxon": "evaluation"}  # of a pruner; the others judge the training
_REPORT_SECONDS = 5  # between writes of evaluation rows, of which there may be thousands


class Watch:
    """One trial's stop condition; `poll` is called a few times a second while a run lasts."""

    def __init__(
        self, space: Space, study: optuna.Study, trial: optuna.Trial, given_up: threading.Event,
        show: Callable[[str], object],
    ) -> None:  # fmt: skip
        self.curves: dict[str, dict[int, float]] = {}
        self._space, self._study, self._trial, self._given_up, self._show = space, study, trial, given_up, show
        self._memory: dict[str, Any] = {}
        self._past: dict[str, list[Curve]] = {}
        self._file, self._offset, self._rows_count = Path(), 0, True
        self._written = 0.0
        self._pruners = [(p, *_judged(space, p)) for p in space.pruners if p["type"] != "none"]
        self._told = self._pruners[0][1:] if self._pruners else _judged(space, {"type": "none"})

    def follow(self, values: Path, target: str) -> None:
        """Takes up the file that the run of a target writes its intermediate values to.

        Rows of evaluations count on the first objective's target only: another target's package scores its own.
        """
        self._file, self._offset = values, 0
        self._rows_count = target == self._space.objectives[0].target

    def poll(self) -> str | None:
        """Reads what has come; the reason to stop the trial, or None."""
        if self._given_up.is_set():
            return GIVEN_UP
        lines, self._offset = read_from(self._file, self._offset)
        new: set[str] = set()
        for line in lines:
            new |= self._take(line)
        if not new:
            return None
        if any(" training " in name for name in new) or time.monotonic() - self._written > _REPORT_SECONDS:
            self.write()
        for number, (options, name, way) in enumerate(self._pruners):
            if name in new and self._hopeless(number, options, name, way):
                return f"{options['type']} pruner: {_words(name, self.curves[name])}"
        return None

    def write(self) -> None:
        """Stores the curves, for the report and for other workers' pruners."""
        stored = {
            name: {str(step): value if math.isfinite(value) else None for step, value in curve.items()}
            for name, curve in self.curves.items()
        }
        if stored:
            self._trial.set_user_attr(CURVES, stored)
        self._written = time.monotonic()

    def _take(self, line: Mapping[str, Any]) -> set[str]:
        """Adds a line to the curves; the names of those that it is a part of."""
        adapter, stage = line.get("adapter"), line.get("stage")
        if "progress" in line:
            done, total = line["progress"]
            self._show(f"train {adapter} {done}/{total}{self._newest(str(adapter))}")
        if stage == "training" and "values" in line:
            for metric, value in line["values"].items():
                score = float("nan") if value is None else float(value)
                self.curves.setdefault(f"{adapter} training {metric}", {})[int(line["step"])] = score
            self._report(adapter, line)
            return {f"{adapter} training {metric}" for metric in line["values"]}
        if stage == "evaluation" and "rows" in line and self._rows_count:
            name = f"{adapter} evaluation {line['metric']}"
            curve = self.curves.setdefault(name, {})
            curve |= {int(row): float(value) for row, value in line["rows"]}
            self._show(f"evaluate {adapter} {len(curve)}/{line['of']}, {line['metric']} {_mean(curve):.3f}")
            return {name}
        return set()

    def _newest(self, adapter: str) -> str:
        newest = {
            n.rpartition(" ")[2]: c[max(c)] for n, c in self.curves.items() if n.startswith(f"{adapter} training ")
        }
        return "".join(f", {metric} {value:.3f}" for metric, value in newest.items())

    def _report(self, adapter: Any, line: Mapping[str, Any]) -> None:
        """Tells Optuna the curve that its first pruner judges: samplers learn from pruned trials by it, dashboards
        draw it. Optuna has no such curves where there are several objectives."""
        first = self._space.objectives[0]
        if len(self._study.directions) > 1:
            return
        name, way = self._told
        metric = name.rpartition(" ")[2]
        if (
            way == first.direction
            and name.startswith(f"{adapter} training ")
            and line["values"].get(metric) is not None
        ):
            self._trial.report(float(line["values"][metric]), int(line["step"]))

    def _hopeless(self, number: int, options: Mapping[str, Any], name: str, way: str) -> bool:
        if name not in self._past:
            self._past[name] = self._past_curves(number, name)
        slot = int(self._trial.user_attrs[SLOT])
        kept = self._memory.setdefault(str(number), {})
        before = dict(kept)
        stop = judge(optunas(options), way, slot, self._past[name], self.curves[name], kept)
        if kept != before:
            self._trial.set_user_attr(MEMORY, self._memory)
        return stop

    def _past_curves(self, number: int, name: str) -> list[Curve]:
        """The other trials' curves of the same name, as they were when this trial's began."""
        past = []
        for slot, tried in by_slot(self._study).items():
            last = tried[-1]
            curve = {int(step): value for step, value in (last.user_attrs.get(CURVES) or {}).get(name, {}).items()}
            if slot == self._trial.user_attrs[SLOT] or not curve:
                continue
            state = last.user_attrs.get(OUTCOME) or ("running" if not last.state.is_finished() else "failed")
            known = [v for v in curve.values() if v is not None]
            value = sum(known) / len(known) if " evaluation " in name and known else curve[max(curve)]
            memory = (last.user_attrs.get(MEMORY) or {}).get(str(number), {})
            past.append(Curve(slot, state, curve, value if state == "complete" else None, memory))
        return past


GIVEN_UP = "given up"  # another worker has taken the trial over


def optunas(pruner: Mapping[str, Any]) -> dict[str, Any]:
    """A pruner's options without ours."""
    return {key: value for key, value in pruner.items() if key not in JUDGED}


def _judged(space: Space, pruner: Mapping[str, Any]) -> tuple[str, str]:
    """(name of the curve that a pruner judges, direction); by default that of the first quality objective's adapter."""
    target = space.objectives[0].target
    adapters = tasks(space.workflow(target))
    qualities = [o.metric for o in space.objectives if kind(o.metric) == "quality"]
    first = next(
        (m.rpartition("-")[0] for m in qualities if m.rpartition("-")[0] in adapters), next(iter(adapters), "")
    )
    adapter = str(pruner.get("adapter", first))
    classifies = adapters.get(adapter) == "classification"
    metric = str(pruner.get("metric", "accuracy" if classifies else "loss"))
    way = "minimize" if metric == "loss" else direction(metric)
    return f"{adapter} {_STAGE.get(pruner['type'], 'training')} {metric}", way


def _words(name: str, curve: Mapping[int, float]) -> str:
    adapter, stage, metric = name.split(" ")
    if stage == "evaluation":
        return f"{adapter}'s {metric} is {_mean(curve):.3f} on {len(curve)} rows, worse than the best trial's there"
    return f"{adapter}'s validation {metric} is {curve[max(curve)]:.4g} after {max(curve)} of its validations"


def _mean(curve: Mapping[int, float]) -> float:
    return sum(curve.values()) / len(curve)
