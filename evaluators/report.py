"""The table that a run ends with: quality before, after training and in the package; then latency and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TABLE_WIDTH = 100  # characters; narrower terminals wrap its lines rather than lose digits
OPERATORS = {True: ">=", False: "<="}


def goal_text(row: dict[str, Any]) -> str:
    """A row's goal as a bound on the package's value, with the verdict; empty without a goal."""
    if row.get("goal") is None:
        return ""
    return f"{_bound(row)} {'met' if goal_met(row) else 'MISSED'}"


def goal_bound(row: dict[str, Any]) -> float:
    """The value that the package (before the export: PyTorch) must reach; relative goals start at PyTorch."""
    kind, value = row["goal"]["type"], float(row["goal"]["value"])
    if kind == "threshold":
        return value
    sign = 1 if row["higher_is_better"] else -1
    direction = sign if kind.endswith("min-improvement") else -sign
    reference = float(row["pytorch"])
    return reference + direction * (abs(reference) * value / 100 if kind.startswith("percent") else value)


def goal_met(row: dict[str, Any]) -> bool:
    """Whether a row with a goal reaches it; what was not measured does not."""
    value = _value(row)
    if value is None:
        return False
    return bool(value >= goal_bound(row) if row["higher_is_better"] else value <= goal_bound(row))


def missed_goals(evaluation: dict[str, Any]) -> list[str]:
    """A line for each goal that is not reached: adapter, metric, value and bound."""
    lines = []
    for row in [*evaluation["quality"], *evaluation["latency"], *evaluation["sizes"]]:
        if row.get("goal") is not None and not goal_met(row):
            name = row["part"] if "part" in row else row["adapter"] or "(base)"
            metric = row.get("metric", "size")
            lines.append(f"{name} {metric} is {_number(metric, _value(row))}, the goal is {_bound(row)}")
    return lines


def _value(row: dict[str, Any]) -> float | None:
    """The package's value; before the export that of the PyTorch model."""
    value: float | None = row["package"] if row["package"] is not None else row["pytorch"]
    return value


def _bound(row: dict[str, Any]) -> str:
    return f"{OPERATORS[row['higher_is_better']]} {_number(row.get('metric', 'size'), goal_bound(row))}"


def print_report(evaluation: dict[str, Any], output: Path, written: bool = True) -> None:
    """Prints the evaluation of a run to the terminal; `written` says that its model is in `output` now."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    rows = [*evaluation["quality"], *evaluation["latency"], *evaluation["sizes"]]
    with_goal = any(row.get("goal") is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("adapter", "metric"):
        table.add_column(title, no_wrap=True)
    for title in ("base before", "PyTorch after", "package", "TF-IDF"):
        table.add_column(title, justify="right", no_wrap=True)
    if with_goal:
        table.add_column("goal", no_wrap=True)
    for group in (_quality_cells(evaluation, with_goal), _latency_cells(evaluation), _size_cells(evaluation)):
        previous = None
        for number, cells in enumerate(group):
            first = cells[0] if cells[0] != previous else ""
            previous = cells[0]
            table.add_row(first, *cells[1:], end_section=number == len(group) - 1)
    precision, machine = evaluation["precision"], evaluation["machine"]
    kind = f"{precision} ONNX package" if precision else "PyTorch model"
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items() if version)
    console.print(f"\n[bold]{output.name}[/bold]: {kind}")
    console.print(table)
    console.print(f"[dim]{machine['cores']} cores, {machine['system']} {machine['processor']}; {versions}[/dim]")
    if written:
        console.print(f"Written to {output}", soft_wrap=True)


def _quality_cells(evaluation: dict[str, Any], with_goal: bool) -> list[list[str]]:
    cells = []
    for row in evaluation["quality"]:
        values = [_number(row["metric"], row[column]) for column in ("base", "pytorch", "package", "tfidf")]
        cells.append([row["adapter"], row["metric"], *values, *([goal_text(row)] if with_goal else [])])
    return cells


def _latency_cells(evaluation: dict[str, Any]) -> list[list[str]]:
    """p50 and p90 of one kind share a line."""
    rows = {(row["adapter"], row["metric"]): row for row in evaluation["latency"]}
    cells = []
    for adapter, metric in rows:
        if not metric.endswith("_p50_ms"):
            continue
        kind = metric.removesuffix("_p50_ms")
        pair = (rows[adapter, metric], rows[adapter, f"{kind}_p90_ms"])
        values = ["/".join(_milliseconds(row[column]) for row in pair) for column in ("pytorch", "package")]
        goals = ", ".join(text for row in pair if (text := goal_text(row)))
        cells.append([adapter or "(base)", f"{kind} ms p50/p90", "", *values, *(["", goals] if goals else [])])
    return cells


def _size_cells(evaluation: dict[str, Any]) -> list[list[str]]:
    cells = []
    for row in evaluation["sizes"]:
        values = [_size(row[column]) for column in ("pytorch", "package")]
        cells.append([row["part"], "size MB", "", *values, *(["", goal_text(row)] if row.get("goal") else [])])
    return cells


def _number(metric: str, value: float | None) -> str:
    if metric.endswith("_ms"):
        return _milliseconds(value)
    if metric == "size":
        return f"{_size(value)} MB"
    if value is None:
        return "-"
    return f"{value:.2f}" if metric == "perplexity" else f"{value:.3f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _size(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"
