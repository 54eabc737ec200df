"""Which plots the report of a study has, and the sentences under each that say what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from search.importance import FEWEST_TRIALS, conditional_parameters, not_assessed
from search.labels import metric_text, objective_label, plot_scale, short_names
from search.plots import Curves, Front, History, Point, curves_plot, front_plot, history_plot, importance_plot
from search.records import StudyRecord, TrialRecord
from search.samplers import slots_of
from search.space import Objective
from search.standing import best, best_so_far, latest, value_of


class Figure(NamedTuple):
    """An <svg> element and its caption, plain text."""

    svg: str
    caption: str


def trial_name(trial: TrialRecord) -> str:
    """What a trial is called in words."""
    return f"trial {trial.slot}"


def history_figure(study: StudyRecord, objective: Objective, number: int) -> Figure | None:
    """The history of one objective, the `number`th of the page; None where no trial has its value."""
    feasible = study.complete(objective.target)
    numbers = {t.number for t in feasible}
    measured = study.complete(objective.target, feasible=False)
    infeasible = [t for t in measured if t.number not in numbers]
    if all(value_of(t, objective) is None for t in measured):
        return None
    unit, suffix = plot_scale(objective.metric)
    records = best_so_far(feasible, objective)
    interval = _interval(records[-1], objective) if records else None
    last = latest(study)
    without = {state: [t.slot for t in last if t.state == state] for state in ("pruned", "failed", "lost")}
    history = History(
        _by_slot(feasible, objective), _by_slot(infeasible, objective), _by_slot(records, objective),
        (interval[0] / unit, interval[1] / unit) if interval else None, without,
        max([slots_of(study.space), *(t.slot + 1 for t in last)]),
    )  # fmt: skip
    label = ", ".join(filter(None, [objective_label(study.space, objective), suffix]))
    sentences = [_history_caption(objective, feasible, records), _none_drawn(without)]
    if infeasible:
        sentences.insert(1, f"Hollow: {_count(len(infeasible), 'trial')} that {_broken(study, infeasible, objective)}.")
    return Figure(history_plot(f"history-{number}", history, label), " ".join(filter(None, sentences)))


def front_figures(
    study: StudyRecord, target: str, front: Sequence[TrialRecord], chosen: int | None, number: int
) -> list[Figure]:
    """Each pair of a target's objectives; `front` are its Pareto-optimal trials, `chosen` is the recommended slot."""
    objectives = study.space.objectives_of(target)
    measured = study.complete(target, feasible=False)
    if len(objectives) < 2 or not measured:
        return []
    numbers = {t.number for t in study.complete(target)}
    on_front = {t.number for t in front}
    others = [t for t in measured if t.number in numbers - on_front]
    infeasible = [t for t in measured if t.number not in numbers]
    marked = next((t for t in measured if t.slot == chosen), None)
    figures = []
    for place, pair in enumerate(combinations(reversed(objectives), 2)):  # quality, named first, stands upright
        drawn = Front(
            _pairs(others, pair), _pairs(front, pair), _pairs(infeasible, pair),
            (trial_name(marked), _pairs([marked], pair)[0]) if marked else None, _steps(objectives, pair[0]),
        )  # fmt: skip
        labels = (_axis(pair[0]), _axis(pair[1]))
        caption = _front_caption(study, target, front, pair, len(numbers), infeasible, marked)
        figures.append(Figure(front_plot(f"front-{number}-{place}", drawn, labels), caption))
    return figures


def importance_figure(
    study: StudyRecord, objective: Objective, shares: Mapping[str, float], number: int
) -> Figure | None:
    """Bars of one objective's shares; None where there are none."""
    if not shares:
        return None
    names = short_names(study.space)
    label = objective_label(study.space, objective)
    first, *rest = [(names.get(name, name), f"{100 * share:.0f} %") for name, share in shares.items()]
    then = f", then {rest[0][0]} ({rest[0][1]})" if rest else ""
    trials = _count(len(study.complete(objective.target, feasible=False)), "complete trial")
    caption = f"What {label} depends on: {first[0]} ({first[1]}){then}, from {trials}."
    if left_out := [names[name] for name in conditional_parameters(study, objective)]:
        caption += f" Not weighed, for some trials do not have them: {', '.join(left_out)}."
    drawn = {names.get(name, name): share for name, share in shares.items()}
    return Figure(importance_plot(f"importance-{number}", drawn), caption)


def why_no_importance(study: StudyRecord, objective: Objective) -> str:
    """The reason why an objective has no bars, as a sentence."""
    reason = not_assessed(study, objective) or f"needs {FEWEST_TRIALS} complete trials"
    return f"{objective_label(study.space, objective)}: {reason}."


def curves_figures(study: StudyRecord) -> list[Figure]:
    """Each metric that trials reported while they ran."""
    figures = []
    ended = [t for t in latest(study) if t.state in ("complete", "pruned")]
    leader = next(filter(None, (best(study, o) for o in study.space.objectives)), None)
    for number, name in enumerate(dict.fromkeys(name for t in ended for name in t.curves)):
        having = [t for t in ended if t.curves.get(name)]
        if not having:
            continue
        complete = [t for t in having if t.state == "complete"]
        pruned = [t for t in having if t.state == "pruned"]
        thick = _points(leader, name) if leader and leader.curves.get(name) else ()
        others = [t for t in complete if leader is None or t.number != leader.number]
        drawn = Curves([_points(t, name) for t in others], [_points(t, name) for t in pruned], thick)
        sentences = [f"{name}:"]
        if complete:
            sentences.append(f"{_count(len(complete), 'complete trial')} ended {_range(complete, name)}.")
        if pruned:
            steps = sorted({max(t.curves[name]) for t in pruned})
            where = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
            sentences.append(f"{_count(len(pruned), 'trial')} pruned at {where}, {_range(pruned, name)}.")
        if thick and leader:
            sentences.append(f"Thick: {trial_name(leader)}, {_best_of(study, leader)}.")
        figures.append(Figure(curves_plot(f"curves-{number}", drawn, name), " ".join(sentences)))
    return figures


def _history_caption(objective: Objective, feasible: Sequence[TrialRecord], records: Sequence[TrialRecord]) -> str:
    wanted = "more is better" if objective.direction == "maximize" else "less is better"
    if not records:
        return f"{objective.metric} ({wanted}): no trial keeps the constraints, so there is no best."
    leader = records[-1]
    value = leader.value(objective)
    text = f"{objective.metric} ({wanted}): the best is {metric_text(objective.metric, value)} in {trial_name(leader)}"
    interval = _interval(leader, objective)
    if interval is not None:
        low, high = interval
        text += f", 95 % interval {metric_text(objective.metric, low)} to {metric_text(objective.metric, high)}"
        inside = sum(low <= (value_of(t, objective) or 0.0) <= high for t in feasible if t is not leader)
        text += f"; {_count(inside, 'other trial')} {'lies' if inside == 1 else 'lie'} within it"
    if len(records) > 1:
        first = metric_text(objective.metric, records[0].value(objective))
        text += f". It began with {first} and became better {_times(len(records) - 1)}"
    return text + "."


def _front_caption(
    study: StudyRecord,
    target: str,
    front: Sequence[TrialRecord],
    pair: tuple[Objective, Objective],
    feasible: int,
    infeasible: Sequence[TrialRecord],
    chosen: TrialRecord | None,
) -> str:
    sentences = []
    several = f"{target}: " if study.space.several_targets else ""
    if front:
        spans = [f"{o.metric} {_span(front, o)}" for o in reversed(pair)]
        which = "" if len(study.space.objectives_of(target)) == 2 else " in all its objectives"
        sentences.append(
            f"{several}{len(front)} of {_count(feasible, 'feasible trial')} on the "
            f"front{which}, where none gains in one without losing in another: {' and '.join(spans)}."
        )
    else:
        sentences.append(f"{several}no trial keeps the constraints, so there is no front.")
    if infeasible:
        sentences.append(f"Hollow: {_count(len(infeasible), 'trial')} that {_broken(study, infeasible, pair[0])}.")
    if chosen:
        values = ", ".join(metric_text(o.metric, chosen.value(o)) + f" {o.metric}" for o in reversed(pair))
        sentences.append(f"Recommended: {trial_name(chosen)} ({values}).")
    return " ".join(sentences)


def _none_drawn(without: Mapping[str, Sequence[int]]) -> str:
    found = [f"{len(slots)} {state}" for state, slots in without.items() if slots]
    return f"Below, without a value: {', '.join(found)}." if found else ""


def _broken(study: StudyRecord, trials: Sequence[TrialRecord], objective: Objective) -> str:
    """Which of the target's constraints the trials break, most often first."""
    words = [w for t in trials for w in t.violated.get(objective.target, ())]
    known = sorted(dict.fromkeys(words), key=lambda w: -words.count(w))
    return f"{'breaks' if len(trials) == 1 else 'break'} {', '.join(known) or 'a constraint'}"


def _best_of(study: StudyRecord, leader: TrialRecord) -> str:
    objectives = [o for o in study.space.objectives if (found := best(study, o)) and found.number == leader.number]
    return f"the best in {objective_label(study.space, objectives[0])}"


def _span(trials: Sequence[TrialRecord], objective: Objective) -> str:
    values = [v for t in trials if (v := value_of(t, objective)) is not None]
    low, high = metric_text(objective.metric, min(values)), metric_text(objective.metric, max(values))
    return low if low == high else f"{low} to {high}"


def _range(trials: Sequence[TrialRecord], curve: str) -> str:
    ends = [_points(t, curve)[-1][1] for t in trials]
    low, high = f"{min(ends):.4g}", f"{max(ends):.4g}"
    return f"at {low}" if low == high else f"between {low} and {high}"


def _points(trial: TrialRecord, curve: str) -> list[Point]:
    return [(float(step), value) for step, value in sorted(trial.curves[curve].items())]


def _by_slot(trials: Sequence[TrialRecord], objective: Objective) -> list[Point]:
    unit, _ = plot_scale(objective.metric)
    return [(t.slot, v / unit) for t in trials if (v := value_of(t, objective)) is not None]


def _pairs(trials: Sequence[TrialRecord], pair: tuple[Objective, Objective]) -> list[Point]:
    scales = [plot_scale(o.metric)[0] for o in pair]
    found = []
    for trial in trials:
        x, y = value_of(trial, pair[0]), value_of(trial, pair[1])
        if x is not None and y is not None:
            found.append((x / scales[0], y / scales[1]))
    return found


def _steps(objectives: Sequence[Objective], horizontal: Objective) -> str:
    """How the edge of what has been reached goes from one trial of the front to the next on the right."""
    if len(objectives) != 2:
        return ""
    return "pre" if horizontal.direction == "maximize" else "post"


def _axis(objective: Objective) -> str:
    unit = plot_scale(objective.metric)[1]
    better = "higher" if objective.direction == "maximize" else "lower"
    return f"{objective.metric}{f', {unit}' if unit else ''} ({better} is better)"


def _interval(trial: TrialRecord, objective: Objective) -> tuple[float, float] | None:
    return trial.intervals.get(objective.target, {}).get(objective.metric)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
