"""The tables that a run ends with: quality before, after training and in the package, latency, sizes; then parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.constrained import SUFFIX
from evaluators.continual import transfer_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TABLE_WIDTH = 100  # characters
METRIC_WIDTH = 36  # of a metric's name, which leaves the other columns room
OPERATORS = {True: ">=", False: "<="}


def goal_text(row: dict[str, Any]) -> str:
    """A row's goal as a bound on the package's value, with the verdict; empty without a goal."""
    if row.get("goal") is None:
        return ""
    verdict = "unmeasured" if row.get("not_measured") else "met" if goal_met(row) else "MISSED"
    return f"{_bound(row)} {verdict}"


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
    """A line for each goal that is not reached: adapter, metric, value and bound.

    Goals of a package that this machine cannot run are neither reached nor missed (`not_measured`).
    """
    lines = []
    for row in [*evaluation["quality"], *evaluation["latency"], *evaluation["sizes"]]:
        if row.get("goal") is not None and not row.get("not_measured") and not goal_met(row):
            name = row["part"] if "part" in row else row["adapter"] or "(base)"
            metric = row.get("metric", "size")
            lines.append(f"{name} {metric} is {number_text(metric, _value(row))}, the goal is {_bound(row)}")
    return lines


def _value(row: dict[str, Any]) -> float | None:
    """The package's value; before the export that of the PyTorch model."""
    value: float | None = row["package"] if row["package"] is not None else row["pytorch"]
    return value


def _bound(row: dict[str, Any]) -> str:
    return f"{OPERATORS[row['higher_is_better']]} {number_text(row.get('metric', 'size'), goal_bound(row))}"


def print_report(
    evaluation: dict[str, Any] | None, manifest: dict[str, Any] | None, output: Path, written: bool = True
) -> None:
    """Prints to the terminal how a run ended.

    Args:
        evaluation: what the evaluator measured; None without one.
        manifest: the package's, whose adapters may have a parity; None before the export.
        output: the folder of the run's model; `written` says that it is there now.
    """
    console = wide_console()
    if evaluation is not None:
        precision, machine = evaluation["precision"], evaluation["machine"]
        kind = f"{precision} ONNX package" if precision else "PyTorch model"
        console.print(f"\n[bold]{output.name}[/bold]: {kind}")
    if manifest is not None:
        _print_parity(console, manifest)
    if evaluation is not None:
        console.print(_evaluation_table(evaluation))
        if reports := evaluation.get("continual"):
            console.print("What earlier tasks lost or won, PyTorch on their validation rows:")
            console.print(transfer_table(reports))
        if note := constrained_note(evaluation["quality"]):
            console.print(f"[dim]{note}[/dim]")
        if evaluation.get("distillation"):
            from evaluators.distillation import print_distillation

            print_distillation(console, evaluation["distillation"])
        versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items() if version)
        console.print(f"[dim]{machine['cores']} cores, {machine['system']} {machine['processor']}; {versions}[/dim]")
    if written and (evaluation is not None or manifest is not None):
        console.print(f"Written to {output}", soft_wrap=True)


def constrained_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the names of scores do not say of constrained decoding; empty without any."""
    if not any(row["metric"].endswith(SUFFIX) for row in rows):
        return ""
    return "constrained: the package and its base write under the JSON Schema; PyTorch writes freely"


def wide_console() -> Console:
    """The terminal, at least as wide as the tables: narrower ones wrap their lines rather than lose digits."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    return console


def _evaluation_table(evaluation: dict[str, Any]) -> Table:
    rows = [*evaluation["quality"], *evaluation["latency"], *evaluation["sizes"]]
    with_goal = any(row.get("goal") is not None for row in rows)
    table = plain_table(
        ["adapter", "metric"], ["base", "PyTorch", "package", "95 %", "TF-IDF"], ["goal"] if with_goal else []
    )
    for group in (_quality_cells(evaluation, with_goal), _latency_cells(evaluation), _size_cells(evaluation)):
        previous = None
        for number, cells in enumerate(group):
            first = cells[0] if cells[0] != previous else ""
            previous = cells[0]
            table.add_row(first, *cells[1:], end_section=number == len(group) - 1)
    return table


def plain_table(names: list[str], numbers: list[str], texts: list[str]) -> Table:
    """An empty table without frame: columns of names and texts to the left, of numbers to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in [*names, *numbers, *texts]:
        table.add_column(title, no_wrap=True, justify="right" if title in numbers else "left")
    return table


def _print_parity(console: Console, manifest: dict[str, Any]) -> None:
    """How far each adapter's logits in the package are from PyTorch, at the package's precision."""
    precision, target = manifest["precision"], manifest["target"]
    parities = {name: entry["parity"] for name, entry in manifest["adapters"].items() if entry.get("parity")}
    if reason := target.get("not_executed"):
        console.print(f"Not executed here on its target {target['execution_provider']}: {reason}", soft_wrap=True)
    if not parities:
        return
    table = plain_table(["adapter", "parity"], ["max diff", "mean diff", "KL", "top-1", "label flips", "samples"], [])
    for name, parity in parities.items():
        scores = parity[precision]
        where = scores["executed_on"]
        if where is None:
            table.add_row(name, f"{precision}, not executed here")
            continue
        differences = (scores[key] for key in ("max_abs_difference", "mean_abs_difference", "kl_divergence"))
        flips = str(scores["label_flips"]) if "label_flips" in scores else "-"
        cells = [*(f"{value:.2g}" for value in differences), f"{scores['top1_agreement']:.3f}", flips]
        table.add_row(name, f"{precision} on {where}", *cells, str(scores["samples"]))
    console.print(table)
    exact = max(parity["fp32"]["max_abs_difference"] for parity in parities.values())
    deployed = any(parity[precision].get("reference") == "deployed" for parity in parities.values())
    reference = "on the integers that the adapters were trained on" if deployed else "in float32"
    console.print(f"[dim]parity: logits against PyTorch {reference}; the float32 graph differs by {exact:.2g}[/dim]")


def _quality_cells(evaluation: dict[str, Any], with_goal: bool) -> list[list[str]]:
    cells = []
    for row in evaluation["quality"]:
        *values, tfidf = (number_text(row["metric"], row[column]) for column in ("base", "pytorch", "package", "tfidf"))
        goal = [goal_text(row)] if with_goal else []
        cells.append([row["adapter"], _short(row["metric"]), *values, interval_text(row), tfidf, *goal])
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
        cells.append([adapter or "(base)", f"{kind} ms p50/p90", "", *values, *(["", "", goals] if goals else [])])
    return cells


def _size_cells(evaluation: dict[str, Any]) -> list[list[str]]:
    cells = []
    for row in evaluation["sizes"]:
        values = [_size(row[column]) for column in ("pytorch", "package")]
        cells.append([row["part"], "size MB", "", *values, *(["", "", goal_text(row)] if row.get("goal") else [])])
    return cells


def _short(metric: str) -> str:
    """The end of a name that would push other columns out of the table: paths of fields."""
    return metric if len(metric) <= METRIC_WIDTH else f"…{metric[1 - METRIC_WIDTH :]}"


def interval_text(row: dict[str, Any]) -> str:
    """The interval of the last model measured, the package's or before the export PyTorch's."""
    if row.get("low") is None:
        return "-"
    return f"{number_text(row['metric'], row['low'])}-{number_text(row['metric'], row['high'])}"


def number_text(metric: str, value: float | None) -> str:
    if metric.endswith("_ms"):
        return _milliseconds(value)
    if metric == "size":
        return f"{_size(value)} MB"
    if value is None:
        return "-"
    return f"{value:.2f}" if metric.partition(" ")[0] in ("perplexity", "bleu", "chrf") else f"{value:.3f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _size(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"
