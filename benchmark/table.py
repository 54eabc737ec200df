"""The benchmark's results in the terminal: tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.report_figures import BASE, number
from benchmark.targets import ONE_PER_ENVIRONMENT
from evaluators.report import TABLE_WIDTH, plain_table

if TYPE_CHECKING:
    from rich.console import Console

_NAME_LENGTH = 22  # characters of an adapter's name beside seven columns of numbers


def console() -> Console:
    """A terminal that is at most TABLE_WIDTH wide, and no narrower: scrolling sideways loses no digits."""
    from rich.console import Console

    return Console(width=TABLE_WIDTH, highlight=False)


def print_results(results: Mapping[str, Any], to: Console | None = None) -> None:
    """Prints what was measured, how outputs agree, what is not here and what failed."""
    to = to or console()
    missing: dict[str, None] = {}
    for m in results["measurements"]:
        _print_measurement(m, to, missing)
    if missing:
        tell(to, f"[dim]-: {'; '.join(missing)}[/dim]")
    _print_quality(results["measurements"], to)
    if results["agreement"]:
        table = plain_table(["adapter", "outputs of"], ["top-1", "KL", "max diff", "positions"], [])
        for a in results["agreement"]:
            where = f"{a['package']}: {a['execution_provider']} / {a['reference']}"
            scores = [f"{a['top1_agreement']:.4f}", f"{a['kl_divergence']:.2g}", f"{a['max_abs_difference']:.2g}"]
            table.add_row(*map(_plain, (short(a["adapter"] or BASE), short(where, 40))), *scores, str(a["positions"]))
        to.print(table)
    absent = [target for target in results["targets"] if not target["available"]]
    for target in absent:
        tell(to, f"[bold]{target['execution_provider']}[/bold] is not here: {_plain(target['reason'])}")
        if target["install"]:
            tell(to, f"  {_plain(target['install'])}")
    if absent:
        tell(to, f"[dim]{_plain(ONE_PER_ENVIRONMENT)}[/dim]")
    for failure in results["failures"]:
        where = f"{failure['package']} on {failure['execution_provider']}"
        tell(to, f"[bold red]failed[/bold red] {_plain(where)}: {_plain(failure['reason'])}")


def short(name: str, length: int = _NAME_LENGTH) -> str:
    """A name cut to a column's width."""
    return name if len(name) <= length else name[: length - 1] + "…"


def tell(to: Console, text: str) -> None:
    """Prints marked-up text that wraps at words."""
    to.print(text, soft_wrap=False, overflow="fold")


def _plain(text: object) -> str:
    """Text without markup: names and reasons are input."""
    from rich.markup import escape

    return escape(str(text))


def _print_measurement(m: Mapping[str, Any], to: Console, missing: dict[str, None]) -> None:
    threads = f", {m['threads']} threads" if m["threads"] else ""
    tell(to, f"\n[bold]{_plain(m['package'])}[/bold]: {_plain(m['precision'])} on {m['execution_provider']}{threads}; "
         f"load {m['load_seconds']:.3g} s, peak memory {m['peak_rss_bytes'] / 1e6:,.0f} MB, "
         f"{m['size_bytes']['total'] / 1e6:,.2f} MB on disk")  # fmt: skip
    kinds = {
        "generation": (["ttft ms p50/p90/p99", "tpot ms p50/p90/p99", "tokens/s"], ["ttft_ms", "tpot_ms"]),
        "classification": (["classify ms p50/p90/p99", "rows/s"], ["latency_ms"]),
    }
    for kind, (titles, phases) in kinds.items():
        runs = m.get(kind) or []
        if not runs:
            continue
        table = plain_table(["adapter"], ["MB", "batch", "tokens", *titles], [])
        for run in runs:
            new = f"+{run['new_tokens']}" if "new_tokens" in run else ""
            rate = run["tokens_per_second" if kind == "generation" else "rows_per_second"]
            table.add_row(
                _plain(short(run["adapter"] or BASE)), _megabytes(m, run["adapter"]), str(run["batch_size"]),
                f"{run['prompt_tokens']}{new}", *(_percentiles(run[phase], missing) for phase in phases),
                number(rate["median"]),
            )  # fmt: skip
        to.print(table)
        if unstable := [run["adapter"] or BASE for run in runs if not run["stable"]]:
            tell(to, f"Not stable after the warm-up: {_plain(', '.join(dict.fromkeys(unstable)))}")


def _print_quality(measurements: Iterable[Mapping[str, Any]], to: Console) -> None:
    rows = [
        (adapter, f"{m['package']} on {m['execution_provider']}", metric, number(value))
        for m in measurements
        for adapter, metrics in m["quality"].items()
        for metric, value in metrics.items()
    ]
    if rows:
        table = plain_table(["adapter", "quality in the package"], ["value"], ["metric"])
        for adapter, where, metric, value in rows:
            table.add_row(*map(_plain, (short(adapter), short(where, 40))), value, _plain(short(metric, 24)))
        to.print(table)


def _megabytes(m: Mapping[str, Any], adapter: str | None) -> str:
    size = m["size_bytes"]["base"] if adapter is None else m["size_bytes"]["adapters"].get(adapter)
    return "" if size is None else f"{size / 1e6:,.2f}"


def _percentiles(distribution: Mapping[str, Any], missing: dict[str, None]) -> str:
    """p50/p90/p99 with - for what is missing, whose reasons go into `missing`."""
    for percentile, reason in (distribution.get("missing") or {}).items():
        missing[f"{percentile} {str(reason).partition(', has')[0]}"] = None
    values: Sequence[float | None] = [distribution[p] for p in ("p50", "p90", "p99")]
    return "/".join("-" if value is None else number(value) for value in values)
