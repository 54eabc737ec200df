"""report.html: a study as one page that is read on a phone, at a desk and on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmark.html_page import Html, code, definitions, figure, html, missing, page, paragraph, section, table, words
from search.distributions import json_text
from search.figures import (
    Figure,
    curves_figures,
    front_figures,
    history_figure,
    importance_figure,
    trial_name,
    why_no_importance,
)
from search.labels import duration_text, metric_text, objective_label, short_names, value_text
from search.records import StudyRecord, TrialRecord
from search.samplers import slots_of
from search.space import Objective, Parameter, Space
from search.standing import best, failures, state_counts
from search.trials_table import to_folder, trials_table, value_cell

_LONGEST = 300  # characters of a value in the space's table

ParetoFront = Callable[[StudyRecord, str], Sequence[TrialRecord]]


def html_report(
    study: StudyRecord,
    importances: Mapping[str, Mapping[str, float]],
    recommended: Mapping[str, Mapping[str, Any]],
    pareto_front: ParetoFront | None = None,
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The page, which lies in the study's output folder beside `trials/`. The same study gives the same text.

    Args:
        study: what is known of the trials.
        importances: as of `search.importance.importances`.
        recommended: target -> what recommendation.json says: `trial` is a slot, `rule` its sentences.
        pareto_front: trials of a target that none dominates; `search.pareto.pareto_front` by default.
        environment: `machine` and `versions` as in `benchmark.results`; this machine's by default.
    """
    front_of = pareto_front or _pareto_front()
    environment = environment or _environment()
    parts = [
        ("summary", "Best trials", _summary(study, recommended)),
        ("history", "History", _history(study)),
        ("pareto", "Pareto fronts", _fronts(study, recommended, front_of)),
        ("importance", "Importance of parameters", _importance(study, importances)),
        ("curves", "While trials ran", _plots(curves_figures(study), "No trial reported anything while it ran.")),
        ("trials", "Trials", trials_table(study)),
        ("failures", "Failures", _failures(study)),
        ("targets", "Targets", _targets(study)),
        ("space", "Space", _space(study.space)),
    ]
    title = f"Search {study.space.name}"
    links = "".join(f'<a href="#{anchor}">{html(heading)}</a> ' for anchor, heading, _ in parts)
    head = [
        f"<header>\n<h1>{html(title)}</h1>\n",
        _about(study, environment),
        f"<nav>{links}</nav>\n</header>\n<main>\n",
    ]
    return page(title, [*head, *(section(name, text, *content) for name, text, content in parts), "</main>\n"])


def _pareto_front() -> ParetoFront:
    from search.pareto import pareto_front

    return pareto_front


def _environment() -> dict[str, Any]:
    from importlib.metadata import version

    from benchmark.results import machine, versions

    extra = {name: version(name) for name in ("olive-ai", "optuna", "torch")}
    return {"machine": machine(), "versions": versions() | extra}


def _about(study: StudyRecord, environment: Mapping[str, Any]) -> Html:
    machine, space = environment["machine"], study.space
    counts = ", ".join(f"{number} {state}" for state, number in state_counts(study).items())
    begun = [t.started for t in study.trials if t.started]
    ended = [t.finished for t in study.trials if t.finished]
    busy = sum(t.seconds for t in study.trials if t.seconds is not None)
    hosts = sorted({t.worker.rpartition(":")[0] for t in study.trials if t.worker})
    workers = len({t.worker for t in study.trials if t.worker})
    pairs: list[tuple[str, object]] = [("Trials", f"{slots_of(space)}: {counts}")]
    if begun and ended:
        span = f"{min(begun):%Y-%m-%d %H:%M} to {max(ended):%Y-%m-%d %H:%M} {min(begun):%Z}".strip()
        pairs.append(("Time", f"{span}; {duration_text(busy)} of trials"))
    if workers:
        pairs.append(("Workers", f"{workers}, on {', '.join(hosts)}"))
    hardware = [machine["model"], f"{machine.get('cores')} cores", f"{machine.get('memory_bytes', 0) / 2**30:.0f} GiB"]
    return definitions(
        [
            *pairs,
            ("Sampler", _settings(space.sampler)),
            ("Pruners", "; ".join(map(_settings, space.pruners)) or "none"),
            ("Reported on", ", ".join([*hardware, *machine.get("gpus", []), str(machine.get("system"))])),
            ("Versions", ", ".join(f"{name} {value}" for name, value in environment["versions"].items() if value)),
            ("Space file", code(str(space.file))),
        ]
    )


def _summary(study: StudyRecord, recommended: Mapping[str, Mapping[str, Any]]) -> list[str]:
    space, names = study.space, short_names(study.space)
    rows: list[list[object]] = []
    for objective in space.objectives:
        leader = best(study, objective)
        if leader is None:
            rows.append([objective_label(space, objective), missing(_why_none(study, objective)), "", ""])
            continue
        values = ", ".join(f"{names.get(n, n)} {value_text(v)}" for n, v in leader.parameters.items())
        cell = value_cell(leader, objective)
        rows.append([objective_label(space, objective), cell, to_folder(study, leader, _short(leader)), words(values)])
    parts: list[str] = [_recommendations(study, recommended)]
    parts.append(table("The best of each objective", ["objective", "value", "trial", "parameters"], rows, texts=4))
    return parts


def _why_none(study: StudyRecord, objective: Objective) -> str:
    """Why no trial is the best of an objective."""
    if objective.target in study.not_measured:
        return f"not measured: {study.not_measured[objective.target]}"
    measured = study.complete(objective.target, feasible=False)
    return "no complete trial keeps the constraints" if measured else "no trial is complete"


def _recommendations(study: StudyRecord, recommended: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for target in study.measured:
        choice = recommended.get(target)
        slot = None if choice is None else choice["trial"]
        trial = next((t for t in study.complete(target) if t.slot == slot), None)
        if trial is None or choice is None:
            why = " ".join(choice["rule"]) if choice else ""
            rows.append([target, missing("no trial to recommend"), "", words(why)])
            continue
        values = ", ".join(f"{o.metric} {metric_text(o.metric, trial.value(o))}"
                           for o in study.space.objectives_of(target))  # fmt: skip
        rows.append([target, to_folder(study, trial, _short(trial)), values, words(" ".join(choice["rule"]))])
    return table("Recommended", ["target", "trial", "objectives", "why"], rows, texts=4) if rows else ""


def _history(study: StudyRecord) -> list[str]:
    objectives = [o for o in study.space.objectives if o.target in study.measured]
    figures = [history_figure(study, objective, number) for number, objective in enumerate(objectives)]
    return _plots([drawn for drawn in figures if drawn], "No trial has been measured, so there is nothing to draw.")


def _fronts(study: StudyRecord, recommended: Mapping[str, Mapping[str, Any]], pareto_front: ParetoFront) -> list[str]:
    parts: list[str] = []
    for number, target in enumerate(study.measured):
        if study.space.several_targets:
            parts.append(Html(f"<h3>{html(target)}</h3>\n"))
        chosen = recommended.get(target, {}).get("trial")
        figures = front_figures(study, target, pareto_front(study, target), chosen, number)
        single = len(study.space.objectives_of(target)) < 2
        otherwise = "A front needs two objectives." if single else "No trial has been measured."
        parts += _plots(figures, otherwise)
    return parts or [paragraph("No target is measured here.")]


def _importance(study: StudyRecord, importances: Mapping[str, Mapping[str, float]]) -> list[str]:
    figures: list[Figure] = []
    reasons: list[str] = []
    for number, objective in enumerate(study.space.objectives):
        shares = importances.get(objective_label(study.space, objective), {})
        if drawn := importance_figure(study, objective, shares, number):
            figures.append(drawn)
        elif objective.target in study.measured:
            reasons.append(why_no_importance(study, objective))
    parts = [paragraph("How the spread of an objective divides among the parameters that every trial has, each by "
                       "itself (fANOVA).")]  # fmt: skip
    if reasons:
        parts.append(paragraph("Not assessed: ", " ".join(reasons)))
    return [*(parts if figures or reasons else []), *_plots(figures, "" if reasons else "No target is measured here.")]


def _failures(study: StudyRecord) -> list[str]:
    found = failures(study)
    if not found:
        return [paragraph("None.")]
    rows = [
        [
            Html(", ".join(to_folder(study, t, str(t.slot)) for t in trials)),
            "lost" if trials[0].state == "lost" else "failed",
            reason,
        ]
        for reason, trials in found.items()
    ]
    return [table("Trials that failed, or whose worker was lost", ["trials", "state", "reason"], rows, texts=3)]


def _targets(study: StudyRecord) -> list[str]:
    space = study.space
    rows = []
    for target, workflow in space.workflows.items():
        why = study.not_measured.get(target)
        done = len(study.complete(target)) if why is None else ""
        rows.append(
            [target, code(str(workflow)), "measured" if why is None else missing(why, beside="not measured"), done]
        )
    return [table("What packages are made for", ["target", "workflow", "measured", "feasible trials"], rows, texts=3)]


def _space(space: Space) -> list[str]:
    names = short_names(space)
    rows = [[names[p.name], _code_lines(p.paths), _range(p), _when(p, names)] for p in space.parameters]
    objectives = "; ".join(f"{objective_label(space, o)} ({o.direction})" for o in space.objectives)
    constraints = "; ".join(f"{c}, {c.target}" if space.several_targets else str(c) for c in space.constraints)
    limit = "none" if space.time_limit_seconds is None else duration_text(space.time_limit_seconds)
    settings: list[tuple[str, object]] = [
        ("Objectives", objectives), ("Constraints", constraints or "none"), ("Sampler", _settings(space.sampler)),
        ("Pruners", "; ".join(map(_settings, space.pruners)) or "none"), ("Trials", space.trials),
        ("Time limit", limit), ("Seed", space.seed), ("Retries", f"{space.retries} of a trial whose worker was lost"),
        ("Tolerance", f"a faster package may lack {100 * space.quality_tolerance:g} % of the best quality"),
        ("Storage", code(_without_password(space.storage))),
    ]  # fmt: skip
    headings = ["parameter", "paths in the workflow", "values", "counts when"]
    return [table("Parameters", headings, rows, texts=4), definitions(settings)]


def _code_lines(paths: Sequence[str]) -> Html:
    """Paths, one to a line."""
    return Html("<br>".join(code(path) for path in paths))


def _range(parameter: Parameter) -> str:
    if parameter.kind == "categorical":
        return ", ".join(value_text(choice, _LONGEST) for choice in parameter.choices)
    steps = f" in steps of {parameter.step:g}" if parameter.step else ""
    return f"{parameter.kind}, {parameter.low:g} to {parameter.high:g}{steps}{', logarithmic' if parameter.log else ''}"


def _when(parameter: Parameter, names: Mapping[str, str]) -> str:
    conditions = [
        f"{names.get(n, n)} is {' or '.join(map(value_text, allowed))}" for n, allowed in parameter.when.items()
    ]
    return " and ".join(conditions)


def _short(trial: TrialRecord) -> str:
    """`trial 7`, which is not to be broken over two lines."""
    return trial_name(trial).replace(" ", "\u00a0")


def _settings(settings: Mapping[str, Any]) -> str:
    """`tpe, multivariate true`."""
    return ", ".join([str(settings.get("type")), *(f"{k} {json_text(v)}" for k, v in settings.items() if k != "type")])


def _without_password(storage: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(storage).render_as_string(hide_password=True)


def _plots(figures: Sequence[Figure], otherwise: str) -> list[str]:
    if not figures:
        return [paragraph(otherwise)] if otherwise else []
    return [Html('<div class="plots">\n'), *(figure(*each) for each in figures), Html("</div>\n")]
