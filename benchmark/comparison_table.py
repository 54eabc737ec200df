"""The comparison of two results as a table for the terminal: what got worse first, then what got better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.report_figures import BASE

REGRESSION = "REGRESSION"
VERDICTS = (REGRESSION, "worse", "better", "unchanged")  # in the table's order
# what a measurement has, beside the metrics of its adapters' quality
TITLES = {
    "ttft_ms": "first token, ms",
    "tpot_ms": "output token, ms",
    "end_to_end_ms": "whole answer, ms",
    "latency_ms": "classify, ms",
    "tokens_per_second": "tokens/s",
    "rows_per_second": "rows/s",
    "load_seconds": "load, s",
    "peak_rss_bytes": "peak memory, MB",
    "size_bytes": "on disk, MB",
}
_OF_PACKAGE = ("load_seconds", "peak_rss_bytes")  # all else is an adapter's or the base's


def print_comparison(found: Mapping[str, Sequence[Any]], threshold: float) -> None:
    """Prints what benchmark.compare.compare has found; `threshold` is a share."""
    from rich.text import Text

    from evaluators.report import plain_table, wide_console

    console = wide_console()
    names = ["package", "target", "adapter", "run", "what"]
    table = plain_table(names, ["before", "after", "change"], ["verdict"])
    for column in table.columns[: len(names)]:
        column.no_wrap, column.overflow = False, "fold"  # long names take more lines: no digit is lost
    table.columns[names.index("what")].min_width = max(map(len, TITLES.values()))
    for change in sorted(found["changes"], key=lambda change: VERDICTS.index(change["verdict"])):
        if change["verdict"] != "unchanged":
            table.add_row(*map(Text, _cells(change)))  # names are input: brackets in them are no markup
    if table.row_count:
        console.print(table)
    for kind in ("warnings", "missing"):
        for line in found[kind]:
            console.print(f"{kind.removesuffix('s')}: {line}", markup=False, soft_wrap=True)
    counts = Counter(change["verdict"] for change in found["changes"])
    worse = f"{counts[REGRESSION]} worse by more than {100 * threshold:g} %, {counts['worse']} worse by less"
    console.print(f"{worse}, {counts['better']} better, {counts['unchanged']} unchanged or within noise")


def title(figure: str) -> str:
    """A figure in words; a metric of quality is its own name."""
    return TITLES.get(figure, figure)


def setting(change: Mapping[str, Any]) -> str:
    """Batch and tokens of a run: "4 x 64+32" reads 64 and writes 32 for each of 4 rows; "" for what is of no run."""
    if change["batch_size"] is None:
        return ""
    written = "" if change["new_tokens"] is None else f"+{change['new_tokens']}"
    return f"{change['batch_size']} x {change['prompt_tokens']}{written}"


def _cells(change: Mapping[str, Any]) -> list[str]:
    figure = change["figure"]
    scale = 1e-6 if figure.endswith("_bytes") else 1
    return [
        change["package"],
        change["execution_provider"],
        "" if figure in _OF_PACKAGE else change["adapter"] or BASE,
        setting(change),
        title(figure),
        *(f"{scale * change[side]:.4g}" for side in ("before", "after")),
        "from 0" if change["change"] is None else f"{100 * change['change']:+.1f} %",
        change["verdict"],
    ]
