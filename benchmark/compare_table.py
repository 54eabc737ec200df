"""Prints a comparison of two results files in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.compare import Change, Comparison
from benchmark.report_figures import number
from benchmark.table import console, short, tell
from evaluators.report import plain_table

_COLOURS = {"better": "green", "worse": "red"}


def print_comparison(comparison: Comparison, threshold: float, to: Console | None = None) -> None:
    """Warnings, a table of what changed beyond noise, what could not be judged, what is missing, and the verdict."""
    to = to or console()
    for line in comparison.warnings:
        tell(to, f"[yellow]warning:[/yellow] {escape(line)}")
    changes = sorted(
        (change for change in comparison.changes if change.verdict in _COLOURS),
        key=lambda change: (change.verdict != "worse", not change.beyond(threshold), change.where, change.what),
    )
    if changes:
        to.print(_table(changes, threshold))
    unknown = sum(change.verdict == "unknown" for change in comparison.changes)
    same = len(comparison.changes) - len(changes) - unknown
    tell(to, f"{same} of {len(comparison.changes)} values did not change beyond noise")
    if unknown:
        tell(to, f"{unknown} medians have no interval, for they come from too few samples: nothing is said of them")
    for line in comparison.missing:
        tell(to, escape(line))
    for line in comparison.broken:
        tell(to, f"[red]broken:[/red] {escape(line)}")
    worse, limit = comparison.regressions(threshold), f"{100 * threshold:g} %"
    if worse or comparison.broken:
        broken = f", {len(comparison.broken)} no longer run" if comparison.broken else ""
        tell(to, f"[red]regression:[/red] {len(worse)} worse beyond noise and by more than {limit}{broken}")
    else:
        tell(to, f"[green]no regression:[/green] nothing is worse beyond noise and by more than {limit}")


def _table(changes: Sequence[Change], threshold: float) -> Table:
    table = plain_table(["where", "what"], ["before", "after", "change"], [""])
    for change in changes:
        relative = "from 0" if change.relative is None else f"{100 * change.relative:+.1f} %"
        colour = _COLOURS[change.verdict]
        beyond = "" if change.beyond(threshold) else ", below the threshold"
        table.add_row(
            escape(short(" ".join(change.where), 34)), escape(short(change.what, 22)), number(change.before),
            number(change.after), relative, f"[{colour}]{change.verdict}[/]{beyond}",
        )  # fmt: skip
    return table
