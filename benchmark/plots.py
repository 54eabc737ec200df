"""Plots of the benchmark's results as SVG text: what they show is told apart by shape as well as colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.svg import COLOURS, MARKERS, blank, short, spread_scale, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Span(NamedTuple):
    """A value and its 95 % interval; without one the bounds are None."""

    value: float
    low: float | None = None
    high: float | None = None


class Dots(NamedTuple):
    """One shape of a row plot: its name in the legend and its value in every row, None where there is none."""

    name: str
    values: Sequence[Span | None]


class Line(NamedTuple):
    """Points of one thing, told by its colour (`thing`) and, where there are several `variant`s, by its marker."""

    thing: str
    variant: str
    points: Sequence[tuple[float, Span]]


@styled
def row_plot(slug: str, rows: Sequence[str], dots: Sequence[Dots], label: str, line_at: float | None = None) -> Figure:
    """Values on a horizontal axis, a row for each name.

    Args:
        slug: starts every id in the SVG; must be the only one of its page.
        rows: names, from top to bottom.
        dots: what stands in each row.
        label: of the axis, with the unit.
        line_at: where a vertical line marks the reference; the axis starts at 0 without it.
    """
    figure = blank(0.42 * len(rows) + 1.3)
    axes = figure.subplots()
    places = list(range(len(rows)))
    found = [span for series in dots for span in series.values if span is not None]
    for place in places:  # a thin line from the lowest to the highest value leads the eye along a row
        ends = [s.values[place].value for s in dots if s.values[place] is not None]  # type: ignore[union-attr]
        if len(ends) > 1 and line_at is None:
            axes.plot([min(ends), max(ends)], [place, place], color="#bbbbbb", linewidth=1.5, zorder=1)
    for number, series in enumerate(dots):
        _row_dots(axes, series, number, len(dots) if line_at is not None else 1)
    axes.set_yticks(places, [short(name) for name in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    if line_at is not None:
        axes.axvline(line_at, color="#000000", linewidth=1, linestyle="--", zorder=1)
    axes.set_xlabel(label + _scale(axes, "x", found, from_zero=line_at is None))
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)
    if len(dots) > 1:
        figure.legend(loc="outside lower center", ncols=len(dots), handletextpad=0.3, columnspacing=1.2)
    return figure


@styled
def throughput_plot(slug: str, lines: Sequence[Line], label: str) -> Figure:
    """Throughput over the batch size, with error bars."""
    figure = blank(3.4 + 0.25 * _legend_rows(lines))
    axes = figure.subplots()
    _lines(axes, lines, connect=True)
    sizes = sorted({x for line in lines for x, _ in line.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("rows in a batch")
    axes.set_title(label)  # upright above the axis: a turned label is hard to read
    axes.set_ylim(bottom=0)
    axes.grid()
    _line_legend(figure, lines)
    return figure


@styled
def quality_plot(slug: str, panels: Sequence[tuple[str, Sequence[Line]]], label: str) -> Figure:
    """Quality (vertical, named `label`) against one horizontal axis in each panel: (its label with unit, points)."""
    lines = panels[0][1]
    figure = blank(2.4 * len(panels) + 0.4 + 0.25 * _legend_rows(lines))
    for axes, (name, points) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _lines(axes, points, connect=False)
        spans = [Span(x) for line in points for x, _ in line.points]
        axes.set_xlabel(name + _scale(axes, "x", spans, from_zero=True))
        axes.set_title(label)
        axes.margins(y=0.25)
        axes.grid()
    _line_legend(figure, lines)
    return figure


def _row_dots(axes: Axes, series: Dots, number: int, lanes: int) -> None:
    """Draws one shape; with several lanes the shapes of a row stand above each other, for their bars would overlap."""
    offset = (number - (lanes - 1) / 2) * 0.22 if lanes > 1 else 0.0
    present = [(place, span) for place, span in enumerate(series.values) if span is not None]
    filled = number == 0 or lanes > 1
    colour = COLOURS[number % len(COLOURS)]
    x, y = [span.value for _, span in present], [place + offset for place, _ in present]
    style: dict[str, Any] = {"markerfacecolor": colour if filled else "white", "markeredgewidth": 1.6}
    axes.errorbar(
        x, y, xerr=_errors([span for _, span in present]), fmt=MARKERS[number % len(MARKERS)], color=colour,
        markersize=7, capsize=3, elinewidth=1.4, label=series.name, zorder=3 - 0.1 * number, **style,
    )  # fmt: skip


def _lines(axes: Axes, lines: Sequence[Line], connect: bool) -> None:
    things, variants = _names(lines)
    for line in lines:
        number, marker = things.index(line.thing), variants.index(line.variant)
        x, spans = [x for x, _ in line.points], [span for _, span in line.points]
        shape = MARKERS[(marker if len(variants) > 1 else number) % len(MARKERS)]
        axes.errorbar(
            x, [span.value for span in spans], yerr=_errors(spans), color=COLOURS[number % len(COLOURS)],
            fmt=shape, markersize=7, capsize=3, linewidth=1.6, linestyle="-" if connect else "none",
        )  # fmt: skip


def _errors(spans: Sequence[Span]) -> list[list[float]] | None:
    """Distances to the bounds, as errorbar takes them; 0 where there is no interval."""
    if all(span.low is None or span.high is None for span in spans):
        return None
    below = [max(0.0, span.value - span.low) if span.low is not None else 0.0 for span in spans]
    above = [max(0.0, span.high - span.value) if span.high is not None else 0.0 for span in spans]
    return [below, above]


def _scale(axes: Axes, axis: str, spans: Sequence[Span], from_zero: bool) -> str:
    """Starts an axis at 0, or makes it logarithmic where values lie far apart; returns what its label says of that."""
    values = [span.value for span in spans]
    if spread_scale(axes, axis, values):
        return ", logarithmic"
    if from_zero:
        axes.set(
            **{f"{axis}lim": (0, 1.08 * max([*values, *(s.high for s in spans if s.high is not None)], default=1))}
        )
    return ""


def _names(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(line.thing for line in lines)), list(dict.fromkeys(line.variant for line in lines))


def _legend_rows(lines: Sequence[Line]) -> int:
    things, variants = _names(lines)
    return -(-len(things) // 2) + (len(variants) if len(variants) > 1 else 0)


def _line_legend(figure: Figure, lines: Sequence[Line]) -> None:
    """Colours name the things; markers, in grey, the variants."""
    from matplotlib.lines import Line2D

    things, variants = _names(lines)
    several = len(variants) > 1
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="" if several else MARKERS[i % len(MARKERS)],
               linewidth=4 if several else 1.6, markersize=7, label=short(name))
        for i, name in enumerate(things)
    ]  # fmt: skip
    if several:
        handles += [
            Line2D([], [], color="#555555", marker=MARKERS[i % len(MARKERS)], linestyle="none", label=short(name, 40))
            for i, name in enumerate(variants)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1 if several else 2)
