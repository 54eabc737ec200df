"""report.html of a study: one page that stands alone, for every kind of study; what a browser shows of it."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from search.html_report import html_report
from search.importance import importances, not_assessed
from search.labels import objective_label
from search.records import StudyRecord
from search.space import Parameter
from tests.benchmark.test_html_report import POLICY, Elements, browse, needs_browser
from tests.search.example_study import (
    METRICS,
    PARAMETERS,
    RATE,
    example_space,
    example_study,
    example_trial,
    pareto_front,
)

ENVIRONMENT = {
    "machine": {"model": "A processor", "cores": 2, "memory_bytes": 2**34, "system": "Linux 6", "gpus": []},
    "versions": {"python": "3.11.7", "optuna": "5.0.0"},
}
HTML = '<script>alert("1")</script>&'
OBJECT = {"type": "custom", "prompt": "Say in one word <b>what</b> this text is about. " * 30, "sizes": list(range(50))}
MANY = tuple(
    Parameter(f"passes.{'very_' * 5}long_name_of_a_pass_{i}.training_args.option", (f"a{i}",), "float", 0.0, 1.0)
    for i in range(15)
)
LONG = Parameter(
    "template", ("passes.x.template", "data_configs[0].template"), "categorical", choices=(OBJECT, None, [1])
)


@cache
def study(name: str) -> StudyRecord:
    """One of CASES."""
    three = tuple(METRICS)
    if name == "plain":
        return example_study()
    if name == "three objectives, a target is absent":
        space = example_space(three, ("cpu", "directml"), trials=20)
        why = {"directml": "onnxruntime here has no DmlExecutionProvider"}
        return example_study(space, measured=("cpu",), not_measured=why)
    if name == "one objective":
        return example_study(example_space(three[:1], bound=None, pruners=(), time_limit_seconds=5400.0))
    if name == "nothing complete":
        space = example_space()
        states = ("pruned", "failed", "lost", "running")
        return StudyRecord(space, tuple(example_trial(space, i, s) for i, s in enumerate(states)), ("target",), {})
    if name == "not begun":
        return StudyRecord(example_space(), (), ("target",), {})
    if name == "nothing measured":
        return example_study(done=3, measured=(), not_measured={"target": "no provider here"})
    if name == "nothing feasible":
        return example_study(example_space(bound=1e5, trials=16))
    if name == "200 trials":
        return example_study(example_space(trials=200))
    if name == "15 parameters and long values":
        return example_study(example_space(three[:1], parameters=(*MANY, LONG), trials=20))
    assert name == "HTML in names"
    return _with_html()


def _with_html() -> StudyRecord:
    """Every text that comes from outside has HTML in it."""
    odd = Parameter(f"passes.{HTML}", (HTML,), "categorical", choices=(HTML, "b"), when={"rank": (HTML, 4)})
    space = example_space(
        (HTML, "tpot_p50_ms"), (HTML, "cpu", "cuda"), parameters=(*PARAMETERS, odd), name=HTML, trials=20,
        file=Path(HTML), sampler={"type": HTML, HTML: HTML}, pruners=({"type": HTML},), output=Path("searches") / HTML,
    )  # fmt: skip
    found = example_study(space, measured=(HTML, "cuda"), not_measured={"cpu": HTML})
    trials = tuple(
        replace(t, reason=HTML, worker=f"{HTML}:1", curves={HTML: {1: 0.5, 2: 0.6}},
                parameters={**t.parameters, odd.name: HTML}, violated={HTML: (HTML,)} if t.slot % 4 == 0 else {})
        for t in found.trials
    )  # fmt: skip
    return replace(found, trials=trials)


CASES = (
    "plain", "three objectives, a target is absent", "one objective", "nothing complete", "not begun",
    "nothing measured", "nothing feasible", "200 trials", "15 parameters and long values", "HTML in names",
)  # fmt: skip


@cache
def report(name: str) -> str:
    """The page of one of CASES, with the first trial of each front recommended."""
    found = study(name)
    fronts = {target: pareto_front(found, target) for target in found.measured}
    rule = [f"Fastest {HTML}.", "Tied."]
    recommended = {target: {"trial": front[0].slot, "rule": rule} for target, front in fronts.items() if front}
    return html_report(found, _shares(name), recommended, pareto_front, ENVIRONMENT)


def _shares(name: str) -> dict[str, dict[str, float]]:
    """Importances; made up for all but the plain study, because forests take their time."""
    found = study(name)
    if name == "plain":
        return importances(found)
    shares = {p.name: 1 / len(found.space.parameters) for p in found.space.parameters}
    return {objective_label(found.space, o): shares for o in found.space.objectives
            if not_assessed(found, o) is None}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "200 trials" else []) for name in CASES]
)
def test_the_page_stands_alone(name: str) -> None:
    """No script, nothing from outside, links only to trials' folders, ids that are unique, references that lead."""
    page = Elements(report(name))
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "b" not in tags and tags.count("h1") == 1
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:", "trials/"))
        assert not any(key.startswith("on") for key in attributes)
    assert "url(http" not in report(name) and "@import" not in report(name)
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', report(name))
    assert targets and set(targets) <= set(ids)
    assert tags.count("figure") == tags.count("figcaption") == tags.count("svg")


FIGURES = {  # history, fronts, importance, curves
    "plain": (2, 1, 2, 1),
    "three objectives, a target is absent": (3, 3, 0, 1),
    "one objective": (1, 0, 1, 1),
    "nothing complete": (0, 0, 0, 1),
    "not begun": (0, 0, 0, 0),
    "nothing measured": (0, 0, 0, 1),
    "nothing feasible": (2, 1, 0, 1),
    "200 trials": (2, 1, 2, 1),
    "HTML in names": (4, 2, 0, 1),
}


@pytest.mark.parametrize(("name", "expected"), FIGURES.items())
def test_its_figures(name: str, expected: tuple[int, ...]) -> None:
    """The first group of an SVG has the figure's slug in its id."""
    slugs = re.findall(r'id="([a-z]+)-[\d-]*figure_1"', report(name))
    assert tuple(slugs.count(kind) for kind in ("history", "front", "importance", "curves")) == expected


CAPTIONS = {
    "plain": (
        "spam-accuracy (more is better): the best is 0.9767 in trial 10, 95 % interval 0.9567 to 0.9917; 6 other",
        "Hollow: 6 trials that break size_on_disk &lt;= 3.2e+06.",
        "Below, without a value: 6 pruned, 2 failed.",
        "6 of 15 feasible trials on the front, where none gains in one without losing in another",
        "What tpot_p50_ms depends on: precision (99 %)",
        "Not weighed, for some trials do not have them: block_size.",
        "6 trials pruned at step 60, between 0.9042 and 0.925.",
    ),
    "three objectives, a target is absent": (
        "needs 20 complete trials, has 13",
        "onnxruntime here has no DmlExecutionProvider",
        "front in all its objectives",
    ),
    "one objective": ("A front needs two objectives.", "1 h 30 min", "<dt>Pruners</dt><dd>none</dd>"),
    "nothing complete": (
        "No trial has been measured, so there is nothing to draw.",
        "no trial is complete",
        "has 0",
    ),
    "not begun": ("No trial has been started.", "No trial reported anything while it ran."),
    "nothing measured": ("No target is measured here.", "no provider here"),
    "nothing feasible": (
        "no trial keeps the constraints, so there is no best",
        "no trial to recommend",
        "no complete trial keeps the constraints",
    ),
}


@pytest.mark.parametrize(("name", "sentences"), CAPTIONS.items())
def test_what_is_seen_is_said(name: str, sentences: tuple[str, ...]) -> None:
    for sentence in sentences:
        assert sentence in report(name)


def test_the_table_of_trials() -> None:
    """Each attempt has a line with parameters, values, the reason, and a link to its folder."""
    found = study("plain")
    text = report("plain")
    table = text[text.index('id="trials"') : text.index('id="failures"')]
    rows = [Elements(row).cells for row in re.findall(r"<tr>.*?</tr>", table)]
    heading, *lines = rows
    assert heading == ["trial", "state", "learning_rate", "rank", "precision", "block_size", "spam-accuracy",
                       "tpot_p50_ms", "size_on_disk", "seconds"]  # fmt: skip
    assert len(lines) == len(found.trials)
    by_slot = {t.slot: t for t in found.trials}
    best = lines[11]  # trial 9 has two
    assert best[0] == "10" and best[2] == f"{by_slot[10].parameters[RATE]:.4g}" and best[4:6] == ["int8", ""]
    assert best[6] == "0.97670.9567 to 0.9917the best"
    assert best[8] == f"{by_slot[10].metrics['target']['size_on_disk'] / 1e6:.3g} MB"
    assert lines[3][1].startswith("prunedspam training accuracy 0.871 at step 60") and lines[3][6] == ""
    assert lines[9][1].startswith("lost") and lines[10][1].startswith("completeattempt 2")
    assert sum("the best" in cell for line in lines for cell in line) == 2
    links = [a["href"] for tag, a in Elements(table).tags if tag == "a"]
    assert links[:3] == ["trials/0000/", "trials/0001/", "trials/0002/"] and len(links) == len(lines)


def test_failures_with_their_reasons() -> None:
    text = report("plain")
    cells = Elements(text[text.index('id="failures"') : text.index('id="targets"')]).cells
    assert "PackageError: models/tiny/model.onnx: no space left on device" in cells and "6, 17" in cells


def test_many_parameters_share_a_cell_and_long_values_are_cut() -> None:
    text = report("15 parameters and long values")
    cells = Elements(text[text.index('id="trials"') : text.index('id="failures"')]).cells
    assert [cell.count("option 0.") for cell in cells if "template" in cell] == [15] * 21  # 20 trials, one was lost
    assert any('template {"prompt": "Say in one' in cell for cell in cells) and max(map(len, cells)) < 1300
    choices = [cell for cell in Elements(text).cells if cell.startswith('{"prompt": "Say in one')]
    assert len(choices) == 1 and len(choices[0]) < 500


def test_a_password_stays_in_the_space_file() -> None:
    found = study("plain")
    space = replace(found.space, storage="postgresql+psycopg://me:secret@db.example/olival")
    text = html_report(replace(found, space=space), {}, {}, pareto_front, ENVIRONMENT)
    assert "secret" not in text and "db.example" in text


@needs_browser
@pytest.mark.parametrize(
    ("name", "width"), [("three objectives, a target is absent", 1280), ("15 parameters and long values", 390)]
)
def test_a_browser_shows_it(tmp_path: Path, name: str, width: int) -> None:
    """Nothing wider than the screen, no error on the console."""
    page = tmp_path / "report.html"
    measuring = "<script>document.title = `width ${document.documentElement.scrollWidth} of ${innerWidth}`</script>"
    # the page forbids scripts, so the copy that measures itself goes without that policy
    page.write_text(re.sub(POLICY, "", report(name)) + measuring, encoding="utf-8")
    run = browse(tmp_path, page, "--dump-dom", f"--window-size={width},900")
    found = re.search(r"<title>width (\d+) of (\d+)", run.stdout)
    assert found is not None and int(found[1]) <= int(found[2])
    assert "CONSOLE" not in run.stderr


def test_the_same_study_gives_the_same_bytes() -> None:
    """Last, for it forgets the pages made so far."""
    former = report("one objective")
    report.cache_clear()
    assert report("one objective") == former
