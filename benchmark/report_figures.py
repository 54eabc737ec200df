"""Which plots the report has for given results, and the sentence under each that says what is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmark.plots import Dots, Line, Span, quality_plot, row_plot, throughput_plot
from benchmark.svg import COLOURS

BASE = "(base)"
PHASES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "end_to_end_ms": "time of a whole answer",
    "latency_ms": "time to classify",
}
# metrics that grow when quality falls; all others are better when higher
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "loss", "flip_rate")
_MOST_LINES = len(COLOURS)  # more could not be told apart

Run = Mapping[str, Any]


class Figure(NamedTuple):
    """An <svg> element and its caption, plain text."""

    svg: str
    caption: str


def latency_figures(results: Mapping[str, Any]) -> list[Figure]:
    """Percentiles of every phase and every pair of lengths, at the smallest batch."""
    figures = []
    for phase, title in PHASES.items():
        runs = [(m, run) for m in results["measurements"] for run in _runs(m) if phase in run]
        for number, lengths in enumerate(sorted({_lengths(run) for _, run in runs})):
            chosen = [(m, run) for m, run in runs if _lengths(run) == lengths]
            smallest = min(run["batch_size"] for _, run in chosen)
            chosen = [(m, run) for m, run in chosen if run["batch_size"] == smallest]
            dots = [
                Dots(p, [_span(run[phase], p) if run[phase][p] is not None else None for _, run in chosen])
                for p in ("p50", "p90", "p99")
            ]
            dots = [d for d in dots if any(value is not None for value in d.values)]
            if not dots:
                continue
            rows = [_row_name(results, m, run) for m, run in chosen]
            svg = row_plot(f"latency-{phase}-{number}", rows, dots, f"{title}, ms")
            caption = f"{title.capitalize()} {_setting(chosen[0][1])}: {_extremes(rows, dots[0], 'ms')}"
            figures.append(Figure(svg, f"{caption} {_bars(dots[0])}{_absent(run[phase] for _, run in chosen)}"))
    return figures


def overhead_figures(results: Mapping[str, Any]) -> list[Figure]:
    """Each adapter's medians over the base's, of the same package, provider, batch and lengths (smallest batch)."""
    rows: list[str] = []
    ratios: dict[str, list[Span | None]] = {"ttft_ms": [], "tpot_ms": []}
    for m in results["measurements"]:
        runs = m.get("generation") or []
        smallest = min((run["batch_size"] for run in runs), default=1)
        for run in runs:
            base = [b for b in runs if b["adapter"] is None and _setting(b) == _setting(run)]
            if run["adapter"] is None or run["batch_size"] != smallest or not base:
                continue
            name = _row_name(results, m, run)
            rows.append(name if name not in rows else f"{name}\n{run['prompt_tokens']}+{run['new_tokens']} tokens")
            for phase, values in ratios.items():
                values.append(_ratio(run[phase], base[0][phase]))
    dots = [Dots(PHASES[phase], values) for phase, values in ratios.items() if any(v is not None for v in values)]
    if not dots:
        return []
    svg = row_plot("overhead", rows, dots, "median / median of the base", line_at=1.0)
    caption = f"What an adapter costs against the base without adapter, {dots[-1].name}: " + _extremes(
        rows, dots[-1], "times"
    )
    bars = "Bars are bounds on the ratio from both medians' 95 % intervals; where they cross the dashed line at 1, no "
    return [Figure(svg, f"{caption} {bars}difference is shown.")]


def throughput_figures(results: Mapping[str, Any]) -> list[Figure]:
    """Tokens and rows per second over the batch size; nothing where only one batch size was measured."""
    figures = []
    units = {"generation": ("tokens_per_second", "output tokens per second"),
             "classification": ("rows_per_second", "rows per second")}  # fmt: skip
    for kind, (key, label) in units.items():
        lines: list[Line] = []
        for m in results["measurements"]:
            for adapter in dict.fromkeys(run["adapter"] for run in m.get(kind) or []):
                runs = [run for run in m[kind] if run["adapter"] == adapter]
                runs = [run for run in runs if _lengths(run) == _lengths(runs[0])]
                points = [
                    (float(run["batch_size"]), Span(*(run[key][k] for k in ("median", "low", "high")))) for run in runs
                ]
                lines.append(Line(adapter or BASE, variant(results, m), sorted(points)))
        if len({x for line in lines for x, _ in line.points}) < 2:
            continue
        shown, left_out = _few(lines)
        best = max((point[1].value, point[0], line) for line in lines for point in line.points)
        caption = (
            f"{label.capitalize()} over the batch size. The most is {number(best[0])}, by {_of(best[2])} in batches of "
            f"{best[1]:g}. Bars are 95 % intervals of the median.{left_out}"
        )
        figures.append(Figure(throughput_plot(f"throughput-{kind}", shown, label), caption))
    return figures


def quality_figures(results: Mapping[str, Any]) -> list[Figure]:
    """For each metric that is some adapter's first: quality against latency and against size."""
    figures: list[Figure] = []
    metrics = dict.fromkeys(next(iter(q)) for m in results["measurements"] for q in m["quality"].values() if q)
    for metric in metrics:
        by_latency: list[Line] = []
        by_size: list[Line] = []
        phases = []
        for m in results["measurements"]:
            for adapter, values in m["quality"].items():
                run, phase = _fastest(m, adapter)
                if next(iter(values), None) != metric or values[metric] is None or run is None:
                    continue
                sizes = m["size_bytes"]
                megabytes = (sizes["base"] + sizes["adapters"].get(adapter, 0)) / 1e6
                named = (adapter, variant(results, m))
                by_latency.append(Line(*named, [(run[phase]["p50"], Span(values[metric]))]))
                by_size.append(Line(*named, [(megabytes, Span(values[metric]))]))
                phases.append(phase)
        if not by_latency:
            continue
        better = "lower" if lower_is_better(metric) else "higher"
        (latencies, left_out), (sizes_shown, _) = _few(by_latency), _few(by_size)
        what = " or ".join(PHASES[phase] for phase in dict.fromkeys(phases))
        panels = [(f"{what}, median, ms", latencies), ("base and adapter on disk, MB", sizes_shown)]
        label = f"{metric} ({better} is better)"
        each = "; ".join(f"{_of(line)} {number(line.points[0][1].value)}" for line in by_latency)
        title = metric[:1].upper() + metric[1:]
        caption = f"{title} against the median {what} and against size ({better} and further left is better): {each}."
        slug = f"quality-{len(figures)}"
        figures.append(Figure(quality_plot(slug, panels, label), caption + left_out))
    return figures


def variant(results: Mapping[str, Any], measurement: Mapping[str, Any]) -> str:
    """What tells a measurement from the others: package, provider or both; empty where there is but one."""
    measurements = results["measurements"]
    keys = [k for k in ("package", "execution_provider") if len({m[k] for m in measurements}) > 1]
    return ", ".join(measurement[key] for key in keys)


def lower_is_better(metric: str) -> bool:
    """Whether a metric of quality grows as quality falls."""
    return metric.startswith(LOWER_IS_BETTER) or metric.endswith(LOWER_IS_BETTER)


def number(value: float | None) -> str:
    """Three digits, with thousands separated: 0.501, 47.6, 1,960."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _runs(measurement: Mapping[str, Any]) -> Iterable[Run]:
    return [*(measurement.get("generation") or []), *(measurement.get("classification") or [])]


def _lengths(run: Run) -> tuple[int, int]:
    return run["prompt_tokens"], run.get("new_tokens", 0)


def _setting(run: Run) -> str:
    new = f", {run['new_tokens']} new tokens" if "new_tokens" in run else ""
    return f"at batch size {run['batch_size']}, prompts of {run['prompt_tokens']} tokens{new}"


def _row_name(results: Mapping[str, Any], measurement: Mapping[str, Any], run: Run) -> str:
    return "\n".join(filter(None, [run["adapter"] or BASE, variant(results, measurement)]))


def _span(distribution: Mapping[str, Any], percentile: str) -> Span:
    if percentile != "p50":
        return Span(distribution[percentile])
    return Span(distribution["p50"], distribution["p50_low"], distribution["p50_high"])


def _ratio(measured: Mapping[str, Any], base: Mapping[str, Any]) -> Span | None:
    if not measured["p50"] or not base["p50"]:
        return None
    bounds = [d[key] for d in (measured, base) for key in ("p50_low", "p50_high")]
    if not all(bounds):
        return Span(measured["p50"] / base["p50"])
    low, high = measured["p50_low"] / base["p50_high"], measured["p50_high"] / base["p50_low"]
    return Span(measured["p50"] / base["p50"], low, high)


def _fastest(measurement: Mapping[str, Any], adapter: str) -> tuple[Run | None, str]:
    """An adapter's run at its smallest batch, and the phase that counts for it; None where no median was measured."""
    runs = [run for run in _runs(measurement) if run["adapter"] == adapter]
    phase: Callable[[Run], str] = lambda run: "tpot_ms" if "tpot_ms" in run else "latency_ms"  # noqa: E731
    runs = sorted((run for run in runs if run[phase(run)]["p50"]), key=lambda run: (run["batch_size"], _lengths(run)))
    return (runs[0], phase(runs[0])) if runs else (None, "")


def _extremes(rows: Sequence[str], dots: Dots, unit: str) -> str:
    found = [
        (span.value, _said(row.replace("\n", ", ")))
        for row, span in zip(rows, dots.values, strict=True)
        if span is not None
    ]
    low, high = min(found), max(found)
    if len(found) == 1:
        return f"the median of {low[1]} is {number(low[0])} {unit}."
    return f"medians from {number(low[0])} {unit} ({low[1]}) to {number(high[0])} {unit} ({high[1]})."


def _bars(dots: Dots) -> str:
    has = any(span is not None and span.low is not None for span in dots.values)
    return "The bar at p50 is its 95 % interval." if has else "Too few samples for an interval."


def _absent(distributions: Iterable[Mapping[str, Any]]) -> str:
    """Why percentiles are not drawn, each reason once."""
    reasons: dict[str, None] = {}
    for distribution in distributions:
        for percentile, reason in (distribution.get("missing") or {}).items():
            reasons[f"{percentile} {reason.partition(', has')[0]}"] = None  # the tables say how many there are
    return f" Not drawn where too few: {'; '.join(reasons)}." if reasons else ""


def _few(lines: Sequence[Line]) -> tuple[list[Line], str]:
    """At most as many things as there are colours, and a sentence that says what is left out."""
    things = list(dict.fromkeys(line.thing for line in lines))
    left = len(things) - _MOST_LINES
    sentence = f" {left} more adapters stand in the tables only." if left > 0 else ""
    return [line for line in lines if line.thing in things[:_MOST_LINES]], sentence


def _of(line: Line) -> str:
    return _said(", ".join(filter(None, [line.thing, line.variant])))


def _said(name: str) -> str:
    return name.replace(BASE, "the base")  # no other name has brackets
