"""The table of a report of `evaluators.cases`: rates with their intervals, then each case that failed and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LISTED = 20  # failing cases that a terminal shows; the report has all
LISTED_FLIPS = 3  # texts of each perturbation; the report has more
TEXT_LENGTH = 90  # characters of a prompt or answer


def print_cases(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report of `run_cases` or `run_classifier_cases`; intervals hold 95 %."""
    table = _table("category", "passed", "rate", "95 %", "refused")
    for name, row in [*report["categories"].items(), *report["languages"].items(), ("total", report["total"])]:
        last = name in (list(report["categories"])[-1:] + list(report["languages"])[-1:])
        table.add_row(name, *_pass_cells(row), end_section=last)
    if report["total"]["total"]:
        console.print(table)
    if report["kind"] == "generation" and report["perturbations"]:
        table = _table("perturbed prompts", "passed", "rate", "95 %", "refused")
        for name, row in report["perturbations"].items():
            table.add_row(name, *_pass_cells(row))
        console.print(table)
    elif report["kind"] == "classification":
        _print_flips(report, console)
    _print_failures(report, console)


def _print_flips(report: Mapping[str, Any], console: Console) -> None:
    if report["not_compared"]:
        console.print(f"{report['not_compared']} cases with neither pair nor perturbation compare no labels")
    for title in ("pairs", "perturbations"):
        if not report[title]:
            continue
        table = _table(title, "flipped", "rate", "95 %", "refused", "unchanged", "probability moves")
        for name, row in report[title].items():
            moves = row["mean_abs_probability_change"]
            cells = _cells(row["flipped"], row["total"], row["flip_rate"], row["low"], row["high"])
            counts = [str(row["refused"]), str(row["unchanged"])]
            table.add_row(name, *cells, *counts, "-" if moves is None else f"{moves:.3f}")
        console.print(table)
    for name in report["perturbations"]:
        for flip in [flip for flip in report["flips"] if flip["perturbation"] == name][:LISTED_FLIPS]:
            a, b = flip["labels"]
            _line(console, f"{name}: {a} -> {b}: {_short(flip['text'])} -> {_short(flip['perturbed'])}")


def _print_failures(report: Mapping[str, Any], console: Console) -> None:
    for failure in report["failures"][:LISTED]:
        _line(console, f"{failure['id']} ({failure['category']}): {_line_of(failure['why'])}")
        for prompt, answer in zip(failure["prompts"], failure["answers"], strict=True):
            _line(console, f"    {_short(prompt)} -> {'(refused)' if answer is None else _short(answer)}")
    if len(report["failures"]) > LISTED:
        console.print(f"and {len(report['failures']) - LISTED} more failing cases, all in the results file")


def _table(*titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, no_wrap=True, justify="right" if number else "left")
    return table


def _pass_cells(row: Mapping[str, Any]) -> list[str]:
    cells = _cells(row["passed"], row["total"], row["pass_rate"], row["low"], row["high"])
    return [*cells, str(row["refused"])]


def _cells(count: int, total: int, value: float | None, low: float | None, high: float | None) -> list[str]:
    if value is None:
        return [f"{count}/{total}", "-", "-"]
    return [f"{count}/{total}", f"{value:.3f}", f"{low:.2f} to {high:.2f}"]


def _line(console: Console, text: str) -> None:
    # texts of models and users: brackets are no markup, and they may hold anything
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _short(text: str) -> str:
    line = _line_of(text)
    return f"'{line[:TEXT_LENGTH]}…'" if len(line) > TEXT_LENGTH else f"'{line}'"


def _line_of(text: str) -> str:
    """One line of a text, without characters that move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
