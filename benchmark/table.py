"""The benchmark's results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmark.report_figures import BASE, number
from benchmark.targets import ONE_PER_ENVIRONMENT
from evaluators.report import plain_table, wide_console

if TYPE_CHECKING:
    from rich.console import Console


def print_results(results: Mapping[str, Any]) -> None:
    """Prints what was measured, what differs between targets, and what is not here and why."""
    console = wide_console()
    for measurement in results["measurements"]:
        _print_measurement(console, measurement)
    if results["agreement"]:
        _print_agreement(console, results["agreement"])
    for target in results["targets"]:
        if not target["available"]:
            command = f"; {target['install']}" if target["install"] else ""
            console.print(f"{target['execution_provider']}: not here: {target['reason']}{command}", markup=False)
    if any(target["install"] for target in results["targets"]):
        console.print(ONE_PER_ENVIRONMENT, style="dim", markup=False)
    for failure in results["failures"]:
        where = f"{failure['package']} on {failure['execution_provider']}"
        console.print(f"FAILED {where}: {failure['reason']}", markup=False)
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    console.print(f"{machine['model']}, {machine['cores']} cores; {versions}", style="dim", markup=False)


def _print_measurement(console: Console, measurement: Mapping[str, Any]) -> None:
    threads = f"{measurement['threads']} threads" if measurement["threads"] else "threads left to onnxruntime"
    facts = [
        measurement["precision"],
        threads,
        f"load {measurement['load_seconds']:.2g} s",
        f"peak memory {measurement['peak_rss_bytes'] / 1e6:,.0f} MB",
        f"{measurement['size_bytes']['total'] / 1e6:,.2f} MB on disk",
    ]
    title = f"\n{measurement['package']} on {measurement['execution_provider']}"
    console.print(title, style="bold", markup=False, end="")
    console.print(f": {', '.join(facts)}", markup=False, soft_wrap=True)
    if measurement.get("generation"):
        writing = plain_table(["adapter"], ["batch", "tokens", "first token ms", "output token ms", "tokens/s"], [])
        for run in measurement["generation"]:
            times = [_percentiles(run[kind]) for kind in ("ttft_ms", "tpot_ms")]
            tokens = f"{run['prompt_tokens']}+{run['new_tokens']}"
            adapter = _text(run["adapter"] or BASE)
            writing.add_row(adapter, str(run["batch_size"]), tokens, *times, _rate(run["tokens_per_second"]))
        console.print(writing)
    if measurement.get("classification"):
        classifying = plain_table(["adapter"], ["batch", "tokens", "classify ms", "rows/s"], [])
        for run in measurement["classification"]:
            sizes = [str(run["batch_size"]), str(run["prompt_tokens"])]
            cells = [_percentiles(run["latency_ms"]), _rate(run["rows_per_second"])]
            classifying.add_row(_text(run["adapter"]), *sizes, *cells)
        console.print(classifying)
    runs = [*measurement.get("generation", []), *measurement.get("classification", [])]
    notes = ["times are p50/p90/p99, - where the samples do not support one"]
    if unstable := [run["adapter"] or BASE for run in runs if not run["stable"]]:
        notes.append(f"not stable after the warm-up: {', '.join(dict.fromkeys(unstable))}")
    console.print("; ".join(notes), style="dim", markup=False)


def _print_agreement(console: Console, rows: list[dict[str, Any]]) -> None:
    agreement = plain_table(["package", "adapter", "targets"], ["top-1", "KL nats", "max diff", "positions"], [])
    for row in rows:
        targets = f"{row['execution_provider']} / {row['reference']}"
        scores = [f"{row['top1_agreement']:.4f}", f"{row['kl_divergence']:.2g}", f"{row['max_abs_difference']:.2g}"]
        agreement.add_row(_text(row["package"]), _text(row["adapter"] or BASE), targets, *scores, str(row["positions"]))
    console.print(agreement)


def _percentiles(distribution: Mapping[str, Any]) -> str:
    values = (distribution[percentile] for percentile in ("p50", "p90", "p99"))
    return "/".join("-" if value is None else number(value) for value in values)


def _rate(rate: Mapping[str, float]) -> str:
    return f"{number(rate['median'])} ({number(rate['low'])}-{number(rate['high'])})"


def _text(text: str) -> Any:
    """Names are input: brackets in them are no markup."""
    from rich.text import Text

    return Text(text)
