"""The comparison of methods as a table for the terminal, as Markdown, as plots and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark.html_page import Html, code, definitions, figure, page, paragraph, section, table
from benchmark.plots import Line, Span, quality_plot
from benchmark.report_figures import LOWER_IS_BETTER, Figure, number
from evaluators.report import plain_table, wide_console

TITLES = {"accuracy": "accuracy", "f1_macro": "macro F1", "perplexity": "perplexity"}
HEADINGS = ("trained", "% of the base", "memory, MB", "of the process", "seconds", "of the processor")
SHORT = ("rate", "trained", "%", "MB", "process", "s", "cpu s")  # the same for the terminal
_AXES = {
    "trained": ("trained parameters", lambda m: m["trained"]),
    "memory": ("memory of the training, MB", lambda m: m["training_bytes"] / 1e6),
    "time": ("seconds of the processor", lambda m: m["cpu_seconds"]),
}
NOTE = (
    "Memory is the largest resident memory of the process while it trained, less what it took before the base was "
    "loaded, and as a whole. Seconds are those of the steps, with validations between them, by the "
    "clock and of the processor, which other programs disturb less. Quality is that of the adapter on the base in "
    "float32 (PyTorch), with a bootstrap interval of 95 % over the choice of the held-out rows: one seed, one rate."
)


def print_table(results: Mapping[str, Any]) -> None:
    """Prints the comparison and where it was measured."""
    console = wide_console()
    console.print(
        f"\n{results['workflow']}, pass {results['pass']}, base {results['base']}", style="bold", markup=False
    )
    scores = _scores(results)
    titles = [f"{TITLES[score]} (95 %)" if not place else TITLES[score] for place, score in enumerate(scores)]
    shown = plain_table(["method"], [*SHORT, *titles], [])
    for measured in results["methods"]:
        first, *others = scores
        values = [_score(measured, first), *(f"{measured['quality'][score]['value']:.3f}" for score in others)]
        shown.add_row(measured["method"], _rate(measured), *_cells(measured), *values)
    console.print(shown)
    for failure in results["failures"]:
        console.print(f"not measured: {failure['method']}: {failure['reason']}", markup=False)
    console.print(NOTE, style="dim", markup=False)
    console.print(where(results), style="dim", markup=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The same as a table for a document."""
    scores = _scores(results)
    names = ["method", "learning rate", *HEADINGS, *(f"{TITLES[score]} (95 %)" for score in scores)]
    lines = [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]
    for measured in results["methods"]:
        cells = [measured["method"], _rate(measured), *_cells(measured), *(_score(measured, s) for s in scores)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """{file name: plot} of each score over trained parameters, memory and time."""
    found = {}
    for score in _scores(results):
        panels = [
            (
                label,
                [
                    Line(
                        m["method"],
                        "",
                        [(float(value(m)), Span(*(m["quality"][score][k] for k in ("value", "low", "high"))))],
                    )
                    for m in results["methods"]
                ],
            )
            for label, value in _AXES.values()
        ]
        better = "lower" if score in LOWER_IS_BETTER else "higher"
        caption = f"{TITLES[score].capitalize()} of each method ({better} is better) with its 95 % interval"
        caption += " over trained parameters, memory of the training and time."
        found[score] = Figure(quality_plot(f"methods-{score}", panels, TITLES[score]), caption)
    return found


def html_report(results: Mapping[str, Any], drawn: Mapping[str, Figure]) -> str:
    """One page; the same results give the same text."""
    scores = _scores(results)
    headings = ["method", "learning rate", *HEADINGS, *(TITLES[score] for score in scores)]
    rows = [[m["method"], _rate(m), *_cells(m), *(_score(m, s) for s in scores)] for m in results["methods"]]
    about = [
        ("Workflow", results["workflow"]),
        ("Pass", results["pass"]),
        ("Base", results["base"]),
        ("Measured", results["created"].replace("T", " ").replace("+00:00", " UTC")),
        ("Where", where(results)),
    ]
    options = [(m["method"], code(_options(m))) for m in results["methods"]]
    missing = [paragraph(f"{f['method']}: not measured: {f['reason']}") for f in results["failures"]]
    title = f"Methods of fine-tuning on {results['pass']}"
    body = [
        f"<header>\n<h1>{title}</h1>\n" if title.isascii() and "<" not in title else "<header>\n",
        definitions(about),
        "</header>\n<main>\n",
        section(
            "table",
            "Comparison",
            table("Each method in a process of its own", headings, rows),
            *missing,
            paragraph(NOTE),
        ),
        section(
            "plots",
            "Plots",
            Html('<div class="plots">\n'),
            *(figure(*each) for each in drawn.values()),
            Html("</div>\n"),
        ),
        section("options", "Options", definitions(options, stacked=True)),
        "</main>\n",
    ]
    return page(title, body)


def where(results: Mapping[str, Any]) -> str:
    """Machine, versions and commit, in a line."""
    here = results["machine"]
    parts = [f"{here['model']}, {here['cores']} cores, {here['memory_bytes'] / 2**30:.0f} GiB", *here["gpus"]]
    parts += [f"{name} {value}" for name, value in results["versions"].items() if value]
    changed = " with changes" if results["dirty"] else ""
    return ", ".join([*parts, *([f"commit {results['commit'][:12]}{changed}"] if results["commit"] else [])])


def _scores(results: Mapping[str, Any]) -> list[str]:
    return [score for score in TITLES if all(score in m["quality"] for m in results["methods"])]


def _cells(measured: Mapping[str, Any]) -> list[str]:
    return [
        f"{measured['trained']:,}",
        f"{100 * measured['trained'] / measured['base_parameters']:.2f}",
        f"{measured['training_bytes'] / 1e6:,.0f}",
        f"{measured['peak_rss_bytes'] / 1e6:,.0f}",
        number(measured["seconds"]),
        number(measured["cpu_seconds"]),
    ]


def _score(measured: Mapping[str, Any], score: str) -> str:
    quality = measured["quality"][score]
    shown = [f"{quality[key]:.3f}" if quality[key] is not None else "?" for key in ("value", "low", "high")]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def _rate(measured: Mapping[str, Any]) -> str:
    rate = measured["options"]["training_args"].get("learning_rate")
    return f"{rate:g}" if rate is not None else "default"


def _options(measured: Mapping[str, Any]) -> str:
    import json

    return json.dumps(measured["options"], ensure_ascii=False)
