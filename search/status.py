"""`python -m search status`: how a study stands, for a terminal of any width and for a pipe."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from search.labels import duration_text, metric_text, objective_label, short_names, value_text
from search.records import StudyRecord, TrialRecord
from search.samplers import slots_of
from search.standing import best, failures, finished, latest, seconds_left, state_counts, value_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MOST_SLOTS = 12  # numbers of failed trials on one line
_PIPE_WIDTH = 100_000  # characters: whoever reads a pipe gets whole lines, and cuts them as they like


def print_status(study: StudyRecord, now: datetime | None = None, stream: TextIO | None = None) -> None:
    """Prints counts by state, the best of each objective, what runs now, the time left, and failures by reason.

    Args:
        study: as it stands.
        now: the time, with its zone; the clock's by default.
        stream: stdout by default. What is no terminal gets one whole line for each thing that is said.
    """
    console = _console(stream or sys.stdout)
    now = now or datetime.now(UTC)
    space = study.space
    counts = ", ".join(f"{number} {state}" for state, number in state_counts(study).items())
    _line(console, f"{space.name}: {len(finished(study))} of {slots_of(space)} trials are over: {counts}")
    _line(console, _time(study, now))
    for target, why in study.not_measured.items():
        _line(console, f"{target}: not measured: {why}")
    console.print(_best_table(study))
    if running := [t for t in latest(study) if t.state == "running"]:
        _line(console, "Running:")
        for trial in running:
            _line(console, f"  {_running(trial, now)}")
    if failed := failures(study):
        _line(console, "Failed or lost:")
        for reason, trials in failed.items():
            _line(console, f"  {len(trials)} ({_slots(trials)}): {reason}")


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _line(console: Console, text: str) -> None:
    """Names and reasons are input: brackets in them are no markup, line breaks are none."""
    console.print(" ".join(text.split("\n")), markup=False, soft_wrap=not console.is_terminal)


def _best_table(study: StudyRecord) -> Table:
    """The best feasible trial of each objective; parameters take as many lines as they need."""
    from rich.text import Text

    from evaluators.report import plain_table

    names = short_names(study.space)
    table = plain_table(["best of"], ["value"], ["trial", "parameters"])
    for column in table.columns:
        column.no_wrap, column.overflow = False, "fold"
    for objective in study.space.objectives:
        trial = best(study, objective)
        if trial is None:
            none = "not measured" if objective.target in study.not_measured else "no trial yet"
            cells = ["-", none, ""]
        else:
            values = [f"{names.get(name, name)} {value_text(value)}" for name, value in trial.parameters.items()]
            cells = [metric_text(objective.metric, value_of(trial, objective)), str(trial.slot), ", ".join(values)]
        table.add_row(*map(Text, [objective_label(study.space, objective), *cells]))
    return table


def _time(study: StudyRecord, now: datetime) -> str:
    over = [t.seconds for t in finished(study) if t.seconds is not None]
    usual = f"{duration_text(sum(over) / len(over))} a trial" if over else "no trial is over yet"
    left = seconds_left(study, now)
    if left is None:
        return f"Time: {usual}"
    workers = sum(t.state == "running" for t in latest(study))
    if not workers:
        return f"Time: {usual}, about {duration_text(left)} left for one worker; none is running now"
    return (
        f"Time: {usual}, about {duration_text(left)} left for {'one worker' if workers == 1 else f'{workers} workers'}"
    )


def _running(trial: TrialRecord, now: datetime) -> str:
    """`trial 29 on box:4242 for 12.5 s, spam training accuracy 0.913 at step 90`."""
    parts = [f"trial {trial.slot}"]
    if trial.attempt:
        parts.append(f"(attempt {trial.attempt + 1})")
    if trial.worker:
        parts.append(f"on {trial.worker}")
    if trial.started:
        since = f"for {duration_text(max(0.0, (now - trial.started).total_seconds()))}"
        parts.append(since)
    newest = [f"{name} {curve[max(curve)]:.4g} at step {max(curve)}" for name, curve in trial.curves.items() if curve]
    return ", ".join([" ".join(parts), *newest])


def _slots(trials: list[TrialRecord]) -> str:
    slots = sorted({t.slot for t in trials})
    more = f" and {len(slots) - _MOST_SLOTS} more" if len(slots) > _MOST_SLOTS else ""
    return f"trial{'' if len(slots) == 1 else 's'} {', '.join(map(str, slots[:_MOST_SLOTS]))}{more}"
