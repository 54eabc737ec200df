"""The report's table of trials: every attempt with its parameters, values, reason and a link to its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from benchmark.html_page import Html, code, html, link, missing, paragraph, table, with_note, words
from search.labels import metric_text, objective_label, short_names, value_text
from search.records import StudyRecord, TrialRecord
from search.space import Objective, Space
from search.standing import best

_MOST_COLUMNS = 6  # parameters with a column each; more stand in one cell


class _Column(NamedTuple):
    """A metric that is shown, with its heading; `leader` is the trial with its best value."""

    objective: Objective
    heading: str
    leader: TrialRecord | None


def trials_table(study: StudyRecord) -> list[str]:
    """The table, and a sentence about the folders that it leads to."""
    if not study.trials:
        return [paragraph("No trial has been started.")]
    space, names = study.space, short_names(study.space)
    apart = len(space.parameters) <= _MOST_COLUMNS
    columns = _columns(study)
    texts = ["trial", "state", *(names.values() if apart else ["parameters"])]
    rows = []
    for trial in study.trials:
        values = {name: value_text(trial.parameters[name]) for name in names if name in trial.parameters}
        together = [words("; ".join(f"{names[name]} {text}" for name, text in values.items()))]
        rows.append(
            [
                to_folder(study, trial, str(trial.slot)),
                _state(trial, space),
                *([values.get(name, "") for name in names] if apart else together),
                *(_cell(trial, column) for column in columns),
                "" if trial.seconds is None else f"{trial.seconds:,.1f}",
            ]
        )
    note = paragraph("Each trial's folder has its whole workflow", " for each target" if space.several_targets else "",
                     ": ", code("olive run --config workflow.json"), " on it makes the package again.")  # fmt: skip
    caption = "Every attempt at every trial; numbers lead to their folders"
    headings = [*texts, *(column.heading for column in columns), "seconds"]
    return [note, table(caption, headings, rows, texts=len(texts))]


def value_cell(trial: TrialRecord, objective: Objective) -> object:
    """A value and under it its interval; empty where there is none."""
    value = trial.value(objective)
    if value is None:
        return ""
    text = metric_text(objective.metric, value)
    interval = trial.intervals.get(objective.target, {}).get(objective.metric)
    if interval is None:
        return text
    return with_note(text, " to ".join(metric_text(objective.metric, bound) for bound in interval))


def to_folder(study: StudyRecord, trial: TrialRecord, text: str) -> Html:
    """A link from report.html, which lies in the study's output folder, to the trial's folder."""
    relative = Path(os.path.relpath(trial.folder, study.space.output)).as_posix()
    return link(f"{quote(relative)}/", text)


def _columns(study: StudyRecord) -> list[_Column]:
    """Objectives, and metrics that constraints bound beside them, of the targets that are measured."""
    space = study.space
    found = [_Column(o, objective_label(space, o), best(study, o)) for o in space.objectives]
    known = {(o.metric, o.target) for o in space.objectives}
    for metric, target in dict.fromkeys((c.metric, c.target) for c in space.constraints):
        if (metric, target) not in known:
            bounded = Objective(metric, "minimize", target)
            found.append(_Column(bounded, objective_label(space, bounded), None))
    return [column for column in found if column.objective.target in study.measured]


def _cell(trial: TrialRecord, column: _Column) -> object:
    cell = value_cell(trial, column.objective)
    return with_note(Html(f"<strong>{html(cell)}</strong>"), "the best") if trial is column.leader else cell


def _state(trial: TrialRecord, space: Space) -> object:
    """The state, and below it what else there is to say: the attempt, constraints that are broken, the reason."""
    notes = [f"attempt {trial.attempt + 1}"] if trial.attempt else []
    for target, broken in trial.violated.items():
        notes += [f"breaks {bound}{f' on {target}' if space.several_targets else ''}" for bound in broken]
    if trial.reason:
        notes.append(trial.reason)
    return missing("; ".join(notes), beside=trial.state) if notes else trial.state
