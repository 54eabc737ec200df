"""The table that a run ends with: quality before, after training and in the package; then latency and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OPERATORS = {True: ">=", False: "<="}


def goal_text(row: dict[str, Any]) -> str:
    """A row's goal as a bound on the package's value, with the verdict; empty without a goal."""
    if row["goal"] is None:
        return ""
    bound = goal_bound(row)
    verdict = "met" if goal_met(row) else "MISSED"
    return f"{OPERATORS[row['higher_is_better']]} {_number(row['metric'], bound)} {verdict}"


def goal_bound(row: dict[str, Any]) -> float:
    """The value that the package (before the export: the PyTorch model) must reach; relative goals start from PyTorch."""
    kind, value = row["goal"]["type"], float(row["goal"]["value"])
    if kind == "threshold":
        return value
    sign = 1 if row["higher_is_better"] else -1
    direction = sign if kind.endswith("min-improvement") else -sign
    reference = float(row["pytorch"])
    return reference + direction * (abs(reference) * value / 100 if kind.startswith("percent") else value)


def goal_met(row: dict[str, Any]) -> bool:
    """Whether a row with a goal reaches it."""
    value = row["package"] if row["package"] is not None else row["pytorch"]
    return bool(value >= goal_bound(row) if row["higher_is_better"] else value <= goal_bound(row))


def missed_goals(evaluation: dict[str, Any]) -> list[str]:
    """A line for each goal that is not reached: adapter, metric, value and bound."""
    lines = []
    for row in evaluation["quality"]:
        if row["goal"] is not None and not goal_met(row):
            value = row["package"] if row["package"] is not None else row["pytorch"]
            bound = f"{OPERATORS[row['higher_is_better']]} {goal_bound(row):.4g}"
            lines.append(f"{row['adapter']} {row['metric']} is {value:.4g}, the goal is {bound}")
    return lines


def print_report(evaluation: dict[str, Any], output: Path) -> None:
    """Prints the evaluation of a run to the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=False)
    machine, precision = evaluation["machine"], evaluation["precision"]
    kind = f"{precision} ONNX package" if precision else "PyTorch model"
    columns = [("base", "base before"), ("pytorch", "PyTorch after"), ("package", "package")]
    groups: list[list[list[str]]] = []
    with_tfidf = any(row.get("tfidf") is not None for row in evaluation["quality"])
    with_goal = any(row["goal"] is not None for row in evaluation["quality"])
    groups.append(
        [
            [
                row["adapter"],
                row["metric"],
                *(_number(row["metric"], row[key]) for key, _ in columns),
                *([_number(row["metric"], row.get("tfidf"))] if with_tfidf else []),
                *([goal_text(row)] if with_goal else []),
            ]
            for row in evaluation["quality"]
        ]
    )
    groups.append([
        [r["adapter"] or "(base)", r["metric"], "", _number(r["metric"], r["pytorch"]), _number(r["metric"], r["package"])]
        for r in evaluation["latency"]
        if r["metric"] in ("ttft_p50_ms", "ttft_p90_ms", "tpot_p50_ms", "tpot_p90_ms", "classify_p50_ms", "classify_p90_ms")
    ])
    groups.append([[r["part"], "size on disk", "", _size(r["pytorch"]), _size(r["package"])] for r in evaluation["sizes"]])
    table = Table(box=box.SIMPLE_HEAD, title=f"{output.name}: {kind}", title_justify="left", pad_edge=False)
    table.add_column("adapter")
    table.add_column("metric")
    for _, title in columns:
        table.add_column(title, justify="right")
    if with_tfidf:
        table.add_column("TF-IDF", justify="right")
    if with_goal:
        table.add_column("goal")
    for group in groups:
        previous = None
        for number, cells in enumerate(group):
            first = cells[0] if cells[0] != previous else ""
            previous = cells[0]
            table.add_row(first, *cells[1:], end_section=number == len(group) - 1)
    console.print()
    console.print(table)
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items() if version)
    console.print(f"[dim]{machine['cores']} cores, {machine['system']} {machine['processor']}; {versions}[/dim]")
    console.print(f"Written to {output}")


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric.endswith("_ms"):
        return f"{value:.2f}"
    return f"{value:.2f}" if metric == "perplexity" else f"{value:.3f}"


def _size(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} MB"
