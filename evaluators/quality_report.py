"""Prints what `python -m evaluators` measured: scores with their intervals, confusions, texts, cases, tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.report import constrained_note, interval_text, number_text, plain_table, wide_console

if TYPE_CHECKING:
    from rich.console import Console

MOST_CLASSES = 12  # a confusion matrix of more does not fit a terminal; it stands in the result file
COLUMNS = {"base": "base", "pytorch": "PyTorch", "package": "package"}


def print_quality(evaluation: Mapping[str, Any], output: Path) -> None:
    """Prints the result of `evaluators.package_evaluation.evaluate_package`."""
    console, package = wide_console(), evaluation["package"]
    provider = package["execution_provider"]
    console.print(f"\n[bold]{Path(package['folder']).name}[/bold]: {package['precision']} on {provider}", markup=True)
    if evaluation["quality"]:
        _print_scores(console, evaluation["quality"])
        if note := constrained_note(evaluation["quality"]):
            console.print(f"[dim]{note}[/dim]")
    for adapter, details in evaluation["details"].items():
        _print_confusions(console, adapter, details)
        _print_comparison(console, adapter, details)
    if evaluation["texts"]:
        _print_texts(console, evaluation["texts"])
    for adapter, report in evaluation["cases"].items():
        from evaluators.cases import print_cases

        console.print(f"\n[bold]{adapter}[/bold]: bias and robustness")
        print_cases(report, console)
    if evaluation["tasks"]:
        _print_tasks(console, evaluation["tasks"])
    console.print(f"Written to {output}", soft_wrap=True)


def _print_scores(console: Console, rows: list[dict[str, Any]]) -> None:
    columns = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    scores = plain_table(["adapter", "metric"], [*(COLUMNS[name] for name in columns), "95 %"], [])
    previous = None
    for row in rows:
        name = row["adapter"] if row["adapter"] != previous else ""
        previous = row["adapter"]
        values = [number_text(row["metric"], row[column]) for column in columns]
        scores.add_row(name, row["metric"], *values, interval_text(row))
    console.print(scores)


def _print_confusions(console: Console, adapter: str, details: Mapping[str, Any]) -> None:
    found = details.get("package", {})
    labels = found.get("labels", [])
    if not 0 < len(labels) <= MOST_CLASSES:  # of thousands there is no matrix at all
        return
    if "per_label" in found:  # a text has several labels, so none stands for another
        _print_labels(console, adapter, found["per_label"])
        return
    grid = plain_table([f"{adapter}: expected"], [*labels, "recall", "precision"], [])
    for label, row in zip(labels, found["confusion_matrix"], strict=True):
        scores = found["per_class"][label]
        grid.add_row(label, *map(str, row), *(number_text(name, scores[name]) for name in ("recall", "precision")))
    console.print(grid)


def _print_labels(console: Console, adapter: str, per_label: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = ("recall", "precision", "f1")
    table = plain_table([f"{adapter}: label"], ["rows", *kinds], [])
    for label, scores in per_label.items():
        values = ["-" if scores[kind] is None else number_text(kind, scores[kind]) for kind in kinds]
        table.add_row(label, str(scores["support"]), *values)
    console.print(table)


def _print_comparison(console: Console, adapter: str, details: Mapping[str, Any]) -> None:
    comparison = details.get("comparison", {})
    if test := comparison.get("mcnemar"):
        console.print(
            f"{adapter}, {comparison['of']}: {test['only_second']} rows right that were wrong, {test['only_first']} "
            f"wrong that were right (McNemar p = {test['p_value']:.2g})"
        )
    if change := comparison.get("nats_per_token"):
        console.print(
            f"{adapter}, {comparison['of']}: {change['difference']:+.4f} nats a token, 95 % "
            f"{change['low']:+.4f} to {change['high']:+.4f}"
        )


def _print_texts(console: Console, texts: list[dict[str, Any]]) -> None:
    measured = plain_table(["text", "model"], ["perplexity", "bits/byte", "word ppl", "tokens"], [])
    for row in texts:
        model = f"{row['adapter'] or 'base'} ({COLUMNS[row['model']]})"
        values = [f"{row['perplexity']:.2f}", f"{row['bits_per_byte']:.4f}", f"{row['word_perplexity']:.4g}"]
        measured.add_row(Path(row["file"]).name, model, *values, f"{row['tokens']:,}")
    console.print(measured)


def _print_tasks(console: Console, tasks: Mapping[str, Any]) -> None:
    """Results of `evaluators.harness.run_tasks`: {task: {"metric,filter": value, "metric_stderr,filter": value}}."""
    results = plain_table(["task", "metric"], ["value", "stderr"], [])
    for task, scores in tasks.items():
        for key, value in scores.items():
            metric, _, chosen = key.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = scores.get(f"{metric}_stderr,{chosen}")
            shown = f"{error:.4f}" if isinstance(error, float) else "-"
            results.add_row(task, metric if chosen in ("", "none") else f"{metric} ({chosen})", f"{value:.4f}", shown)
    console.print(results)
