"""report.html: the benchmark's results as one page that is read on a phone, at a desk and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.html_page import Html, code, definitions, figure, html, page, paragraph, section, table
from benchmark.report_figures import (
    BASE,
    Figure,
    latency_figures,
    number,
    overhead_figures,
    quality_figures,
    throughput_figures,
)
from benchmark.targets import ONE_PER_ENVIRONMENT

DEFINITIONS = (
    ("p50, p90, p99", "the time that 50, 90 or 99 of 100 samples do not exceed; the range under p50 is the median's "
     "95 % bootstrap interval"),
    ("time to first token", "from the call to the first new token: the prompt is computed in it"),
    ("time per output token", "between later tokens of one answer"),
    ("tokens per second", "new tokens of all rows of a batch; median of the runs and its 95 % interval"),
    ("peak memory", "the largest resident memory of a fresh process that loads the package and runs everything here"),
    ("load", "from the call that opens the package to the first token or label, once; its files were read before"),
    ("top-1", "share of positions at which both providers' most probable token or label is the same"),
    ("KL", "mean over positions of KL(reference || measured), in nats"),
)  # fmt: skip


def html_report(results: Mapping[str, Any]) -> str:
    """The page, from the content of results.json. The same results give the same text."""
    parts = [
        _part("summary", "Packages", _summary(results)),
        _part("latency", "Latency", _latency(results)),
        _part("overhead", "What adapters cost", _plots(overhead_figures(results), "Needs the base and an adapter "
              "that writes, measured at one batch size and prompt length.")),
        _part("throughput", "Throughput", _throughput(results)),
        _part("quality", "Quality", _quality(results)),
        _part("targets", "Targets", _targets(results)),
        _part("definitions", "Definitions", [definitions(DEFINITIONS, stacked=True)]),
    ]  # fmt: skip
    names = list(dict.fromkeys(m["package"] for m in results["measurements"]))
    title = f"Benchmark of {', '.join(names)}" if names else "Benchmark without a measurement"
    links = "".join(f'<a href="#{anchor}">{html(heading)}</a> ' for anchor, heading, _ in parts)
    head = [f"<header>\n<h1>{html(title)}</h1>\n", _about(results), f"<nav>{links}</nav>\n</header>\n<main>\n"]
    return page(title, [*head, *(section(*part) for part in parts), "</main>\n"])


def _part(anchor: str, heading: str, content: Sequence[str]) -> tuple[str, str, str]:
    return anchor, heading, "".join(content)


def _about(results: Mapping[str, Any]) -> Html:
    machine, commit = results["machine"], results["commit"]
    hardware = [machine["model"], f"{machine.get('cores')} cores", f"{machine.get('memory_bytes', 0) / 2**30:.0f} GiB"]
    state = {True: ", with changes that are not committed", False: "", None: ""}[results["dirty"]]
    options = ", ".join(
        f"{key.replace('_', ' ')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in results["options"].items()
    )
    return definitions(
        [
            ("Measured", results["created"].replace("T", " ").replace("+00:00", " UTC")),
            ("Machine", ", ".join([*hardware, *machine.get("gpus", [])])),
            ("System", f"{machine.get('system')}, {machine.get('processor')}"),
            ("Versions", ", ".join(f"{name} {value}" for name, value in results["versions"].items() if value)),
            ("Commit", f"{commit[:12]}{state}" if commit else "not from a git repository"),
            ("Options", options or "the benchmark's own"),
        ]
    )


def _summary(results: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            m["package"], m["precision"], m["execution_provider"], m["threads"] or "default",
            f"{m['load_seconds']:.3g}", f"{m['peak_rss_bytes'] / 1e6:,.0f}", f"{m['size_bytes']['total'] / 1e6:,.2f}",
        ]
        for m in results["measurements"]
    ]  # fmt: skip
    if not rows:
        return [paragraph("Nothing was measured; the reasons stand under Targets.")]
    headings = ["package", "precision", "target", "threads", "load, s", "peak memory, MB", "on disk, MB"]
    return [table("Each package on each target, in a process of its own", headings, rows, texts=3)]


def _latency(results: Mapping[str, Any]) -> list[str]:
    parts: list[str] = list(_plots(latency_figures(results), "No latency was measured."))
    for m in results["measurements"]:
        name = f"{m['package']} on {m['execution_provider']}"
        writing = [*_percentiles("first token, ms"), *_percentiles("output token, ms"), "tokens per second"]
        for lengths, runs in _by_lengths(m.get("generation")).items():
            rows = [
                [*_which(m, run), *_cells(run["ttft_ms"]), *_cells(run["tpot_ms"]), _interval(run["tokens_per_second"])]
                for run in runs
            ]
            caption = f"{name}: writing {lengths[1]} tokens after prompts of {lengths[0]}"
            parts += [table(caption, ["adapter", "MB", "batch", *writing], rows), _unstable(runs)]
        classifying = [*_percentiles("classify, ms"), "rows per second"]
        for lengths, runs in _by_lengths(m.get("classification")).items():
            rows = [[*_which(m, run), *_cells(run["latency_ms"]), _interval(run["rows_per_second"])] for run in runs]
            caption = f"{name}: classifying texts of {lengths[0]} tokens"
            parts += [table(caption, ["adapter", "MB", "batch", *classifying], rows), _unstable(runs)]
    return parts


def _throughput(results: Mapping[str, Any]) -> list[str]:
    return _plots(throughput_figures(results), "Only one batch size was measured; --batch-sizes 1,4,16 measures more.")


def _quality(results: Mapping[str, Any]) -> list[str]:
    rows = [
        [adapter, m["package"], m["execution_provider"], metric, number(value)]
        for m in results["measurements"]
        for adapter, metrics in m["quality"].items()
        for metric, value in metrics.items()
    ]
    if not rows:
        return [paragraph("The packages say nothing of their quality: the workflow that made them had no evaluator.")]
    note = paragraph(
        "Quality was measured by the workflow that made the package, on its provider; it is not measured again."
    )
    headings = ["adapter", "package", "target", "metric", "value"]
    return [*_plots(quality_figures(results), ""), note, table("Quality of the packages", headings, rows, texts=4)]


def _targets(results: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    here = [t["execution_provider"] for t in results["targets"] if t["available"]]
    parts.append(paragraph("This machine has: ", ", ".join(here) or "none of the targets asked for", "."))
    absent = [t for t in results["targets"] if not t["available"]]
    if absent:
        rows = [
            [
                t["execution_provider"],
                t["reason"],
                code(t["install"]) if t["install"] else "another wheel would not help",
            ]
            for t in absent
        ]
        parts += [table("Targets that are not here", ["target", "reason", "command"], rows, texts=3),
                  paragraph(ONE_PER_ENVIRONMENT)]  # fmt: skip
    if results["agreement"]:
        rows = [
            [a["adapter"] or BASE, a["package"], f"{a['execution_provider']} / {a['reference']}",
             f"{a['top1_agreement']:.4f}", f"{a['kl_divergence']:.2g}", f"{a['max_abs_difference']:.2g}",
             a["positions"]]
            for a in results["agreement"]
        ]  # fmt: skip
        headings = ["adapter", "package", "target / reference", "top-1", "KL, nats", "largest difference", "positions"]
        parts.append(table("Agreement of outputs between targets", headings, rows, texts=3))
    elif len(here) < 2:
        parts.append(paragraph("Agreement of outputs needs two targets on one machine."))
    if results["failures"]:
        rows = [[f["package"], f["execution_provider"], f["reason"]] for f in results["failures"]]
        parts.append(table("What failed", ["package", "target", "reason"], rows, texts=3))
    return parts


def _plots(figures: Sequence[Figure], otherwise: str) -> list[str]:
    if not figures:
        return [paragraph(otherwise)] if otherwise else []
    return [Html('<div class="plots">\n'), *(figure(*each) for each in figures), Html("</div>\n")]


def _by_lengths(runs: Sequence[Mapping[str, Any]] | None) -> dict[tuple[int, int], list[Mapping[str, Any]]]:
    """Runs by (prompt_tokens, new_tokens), in order; new_tokens of a classification is 0."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for run in runs or []:
        groups.setdefault((run["prompt_tokens"], run.get("new_tokens", 0)), []).append(run)
    return groups


def _which(measurement: Mapping[str, Any], run: Mapping[str, Any]) -> list[object]:
    """Cells that say what a row measures: adapter, its size in MB, rows of a batch."""
    return [run["adapter"] or BASE, _megabytes(measurement["size_bytes"]["adapters"].get(run["adapter"])),
            run["batch_size"]]  # fmt: skip


def _percentiles(what: str) -> list[str]:
    return [f"{what} p50", "p90", "p99"]


def _cells(distribution: Mapping[str, Any]) -> list[Html]:
    """p50 with its interval, p90 and p99; for what is missing the reason."""
    cells = []
    for percentile in ("p50", "p90", "p99"):
        value = distribution[percentile]
        text = html(number(value))
        if value is None:
            reason = (distribution.get("missing") or {}).get(percentile, "not measured")
            text = f'<span class="missing">n/a: {html(reason)}</span>'
        elif percentile == "p50" and distribution["p50_low"] is not None:
            text += _range(distribution["p50_low"], distribution["p50_high"])
        cells.append(Html(text))
    return cells


def _interval(rate: Mapping[str, float]) -> Html:
    return Html(html(number(rate["median"])) + _range(rate["low"], rate["high"]))


def _range(low: float, high: float) -> str:
    return f'<br><span class="interval">{number(low)} to {number(high)}</span>'


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.2f}"


def _unstable(runs: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(run["adapter"] or BASE for run in runs if not run["stable"]))
    return paragraph(f"Times were still falling or rising after the warm-up: {', '.join(names)}.") if names else ""
