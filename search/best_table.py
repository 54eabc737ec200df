"""What `python -m search best` prints of a target: its Pareto front with parameters, and the rule that chose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evaluators.report import plain_table, wide_console
from search import labels
from search.criteria import value_text
from search.infeasible import constraint_text
from search.labels import short_names
from search.metric_names import kind
from search.pareto import comparable, pareto_front
from search.recommend import Recommendation
from search.records import STATES, StudyRecord, TrialRecord
from search.samplers import slots_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNITS = {"latency": "ms", "size": "MB", "throughput": "tokens/s"}


def print_recommendation(study: StudyRecord, recommendation: Recommendation) -> None:
    """Prints a measured target: how many trials count, the front, and the rule in words."""
    console, target = wide_console(), recommendation.target
    console.print(f"\n{target}", style="bold", markup=False, end="")
    console.print(f": {_counts(study, target)}", markup=False, soft_wrap=True)
    if recommendation.trial is not None:
        table = _table(study, recommendation)
        natural = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console.width = max(console.width, natural)  # a narrow terminal wraps lines rather than loses digits
        console.print(table)
        _print_notes(console, study, recommendation)
        console.print(f"Recommended: trial {recommendation.trial.slot}", style="bold", markup=False)
    else:
        console.print("No trial is recommended", style="bold", markup=False)
    for sentence in recommendation.rule:
        console.print(f"  {sentence}", markup=False, soft_wrap=True)


def print_not_measured(study: StudyRecord, target: str) -> None:
    """Says that a target has no recommendation, why, and where what was built for it lies."""
    console, space = wide_console(), study.space
    folders = [trial.package(target, space) for trial in study.trials if trial.state == "complete"]
    built = [folder for folder in folders if folder.is_dir()]
    console.print(f"\n{target}", style="bold", markup=False, end="")
    console.print(f": not measured: {study.not_measured[target]}", markup=False, soft_wrap=True)
    lines = ["What was not measured cannot be recommended."]
    if built:
        where = f"{built[0]}" if len(built) == 1 else f"{built[0]} to {built[-1].relative_to(built[-1].parents[2])}"
        lines.append(f"Built and checked: {len(built)} package{'' if len(built) == 1 else 's'}, {where}.")
        lines.append("Where the target is, `python -m benchmark PACKAGE...` measures them.")
    else:
        lines.append("None of its packages is on this machine.")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _counts(study: StudyRecord, target: str) -> str:
    latest = {trial.slot: trial.state for trial in study.trials}  # later attempts come last
    states = list(latest.values())
    parts = [f"{states.count(state)} {state}" for state in STATES if state in states]
    text = f"{len(states)} of {slots_of(study.space)} trials: {', '.join(parts)}"
    constraints = study.space.constraints_of(target)
    if constraints:
        kept = " and ".join(constraint_text(constraint) for constraint in constraints)
        text += f"; {len(comparable(study, target))} with {kept}"
    return text


def _table(study: StudyRecord, recommendation: Recommendation) -> Table:
    """One line for each trial of the front, the best in the first objective first; the recommended one is marked."""
    target, chosen = recommendation.target, recommendation.trial
    objectives = study.space.objectives_of(target)
    quality = {c.trial.slot: c.quality for c in recommendation.candidates}
    lost = {c.trial.slot: c.lost for c in recommendation.candidates}
    several = sum(kind(o.metric) == "quality" for o in objectives) > 1
    shown, names = shown_trials(study, recommendation), _varying(study, recommendation)
    extra = [] if recommendation.metric in (None, *(o.metric for o in objectives)) else [str(recommendation.metric)]
    titles = [_title(o.metric, "max" if o.direction == "maximize" else "min") for o in objectives]
    titles += [_title(metric, "") for metric in extra] + (["quality\n% of best"] if several else [])
    short = short_names(study.space)
    table = plain_table(["", "trial"], [*titles, *(short[name] for name in names)], ["why not"])
    table.columns[1].justify = "right"
    for trial in shown:
        metrics = trial.metrics[target]
        values = [value_text(m, metrics.get(m), unit=False) for m in [*(o.metric for o in objectives), *extra]]
        share = quality[trial.slot]
        values += [f"{100 * share:.1f}" if share is not None else "-"] if several else []
        values += [parameter_text(trial, name) for name in names]
        is_chosen = chosen is not None and trial.slot == chosen.slot
        row = ["*" if is_chosen else "", str(trial.slot), *values, "recommended" if is_chosen else lost[trial.slot]]
        table.add_row(*map(_plain, row), style="bold green" if is_chosen else None)
    return table


def shown_trials(study: StudyRecord, recommendation: Recommendation) -> list[TrialRecord]:
    """The front and, where it is not on it, the recommended trial; the best in the first objective first."""
    target = recommendation.target
    found = pareto_front(study, target)
    if recommendation.trial is not None and recommendation.trial not in found:
        found.append(recommendation.trial)
    objectives = study.space.objectives_of(target)
    signs = [-1 if o.direction == "maximize" else 1 for o in objectives]

    def losses(trial: TrialRecord) -> list[float]:
        return [s * trial.metrics[target][o.metric] for s, o in zip(signs, objectives, strict=True)] + [trial.slot]

    return sorted(found, key=losses)


def _print_notes(console: Console, study: StudyRecord, recommendation: Recommendation) -> None:
    shown, varying = shown_trials(study, recommendation), _varying(study, recommendation)
    front = pareto_front(study, recommendation.target)
    notes = [f"Pareto front: {len(front)} of {len(recommendation.candidates)}"]
    if len(shown) > len(front):
        notes[0] += "; the recommended trial is not on it: the front knows no noise and no tolerance"
    short = short_names(study.space)
    same = [p.name for p in study.space.parameters if p.name not in varying]
    same = [f"{short[name]} {parameter_text(shown[0], name)}" for name in same if name in shown[0].parameters]
    if same and len(shown) > 1:
        notes.append(f"the same in all of them: {', '.join(same)}")
    for note in notes:
        console.print(note, style="dim", markup=False, soft_wrap=True)


def _varying(study: StudyRecord, recommendation: Recommendation) -> list[str]:
    """Parameters that tell the shown trials apart; of one trial all that it has."""
    shown = shown_trials(study, recommendation)
    names = [parameter.name for parameter in study.space.parameters]
    if len(shown) == 1:
        return [name for name in names if name in shown[0].parameters]
    return [name for name in names if len({parameter_text(trial, name) for trial in shown}) > 1]


def _title(metric: str, direction: str) -> str:
    return f"{metric}\n{' '.join(filter(None, (direction, _UNITS.get(kind(metric)))))}"


def parameter_text(trial: TrialRecord, name: str) -> str:
    """A parameter's value in short, "-" where it is inactive."""
    return labels.value_text(trial.parameters[name]) if name in trial.parameters else "-"


def _plain(text: Any) -> Any:
    """Values are input: brackets in them are no markup."""
    from rich.text import Text

    return Text(str(text or ""))
