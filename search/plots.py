"""Plots of a study as SVG text, in the style of the benchmark's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmark.svg import COLOURS, blank, short, spread_scale, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
BLUE, ORANGE, GREEN = COLOURS[:3]
GREY = "#8a8a8a"
_BAND = "#dcebf5"  # of BLUE, light enough for what is drawn on it
_MANY = 60  # points from which smaller shapes are drawn
_TITLE = 38  # characters that fit above or below a plot


@dataclass(frozen=True)
class History:
    """What a history shows: values by slot, and the slots that have none."""

    feasible: Sequence[Point]
    infeasible: Sequence[Point]
    best: Sequence[Point]  # slots at which the best became better, and its values from there on
    interval: tuple[float, float] | None  # of the best value, 95 %
    without_value: Mapping[str, Sequence[int]]  # state -> slots
    slots: int  # how many the axis has


@dataclass(frozen=True)
class Front:
    """Trials of one target by two objectives (horizontal, vertical)."""

    others: Sequence[Point]
    front: Sequence[Point]
    infeasible: Sequence[Point]
    chosen: tuple[str, Point] | None  # name of the recommended trial
    steps: str = ""  # "post" or "pre": how the line along the front goes; none where there are other objectives


@dataclass(frozen=True)
class Curves:
    """Curves over steps; the best trial's is drawn last and thick."""

    complete: Sequence[Sequence[Point]]
    pruned: Sequence[Sequence[Point]]
    best: Sequence[Point] = field(default_factory=tuple)


@styled
def history_plot(slug: str, history: History, label: str) -> Figure:
    """Each trial's value, the best so far as a line, and under the values the trials that have none.

    Args:
        slug: starts every id in the SVG; must be the only one of its page.
        history: what is drawn; at least one value.
        label: of the vertical axis.
    """
    lanes = [state for state, slots in history.without_value.items() if slots]
    figure = blank(3.6 + 0.22 * len(lanes))
    axes, strip = figure.subplots(2, height_ratios=[12, max(1, len(lanes))], sharex=True)
    size = 6 if history.slots <= _MANY else 4
    if history.interval is not None:
        axes.axhspan(*history.interval, color=_BAND, linewidth=0, zorder=0, label="95 % of the best")
    _dots(axes, history.feasible, "o", BLUE, size, "complete")
    _dots(axes, history.infeasible, "o", BLUE, size, "breaks a constraint", hollow=True)
    if history.best:
        x, y = [*(p[0] for p in history.best), history.slots - 1], [*(p[1] for p in history.best), history.best[-1][1]]
        axes.step(x, y, where="post", color="#1a1a1a", linewidth=1.6, zorder=2, label="best so far")
    values = [y for _, y in [*history.feasible, *history.infeasible]]
    axes.set_title(_scaled(axes, "y", values, label))
    axes.set_xlim(-0.6, history.slots - 0.4)
    axes.grid()
    axes.tick_params(axis="x", length=0, labelbottom=False)
    for lane, state in enumerate(lanes):
        slots = history.without_value[state]
        marker, colour = {"pruned": ("|", GREY), "failed": ("x", ORANGE)}.get(state, ("_", GREY))
        strip.plot(slots, [lane] * len(slots), marker, color=colour, markersize=8, markeredgewidth=2, clip_on=False)
    strip.set_yticks(range(len(lanes)), lanes)
    strip.set_ylim(max(1, len(lanes)) - 0.5, -0.5)
    strip.spines["left"].set_visible(False)
    strip.tick_params(axis="y", length=0)
    strip.locator_params(axis="x", integer=True)
    strip.set_xlabel("trial")
    figure.legend(loc="outside lower center", ncols=2, handletextpad=0.5, columnspacing=1.2)
    return figure


@styled
def front_plot(slug: str, front: Front, labels: tuple[str, str]) -> Figure:
    """Trials by two objectives: the Pareto front marked, infeasible ones hollow, the recommended one named."""
    figure = blank(4.1)
    axes = figure.subplots()
    points = [*front.others, *front.front, *front.infeasible]
    size = 6 if len(points) <= _MANY else 4
    _dots(axes, front.infeasible, "o", GREY, size, "breaks a constraint", hollow=True)
    _dots(axes, front.others, "o", GREY, size, "others")
    if front.front:
        x, y = zip(*sorted(front.front), strict=True)
        style: dict[str, Any] = {"drawstyle": f"steps-{front.steps}"} if front.steps else {"linestyle": "none"}
        axes.plot(x, y, color=BLUE, marker="s", markersize=size + 1, linewidth=1.4, label="front", zorder=3, **style)
    if front.chosen is not None:
        name, (x_chosen, y_chosen) = front.chosen
        axes.plot([x_chosen], [y_chosen], "o", color=ORANGE, markersize=15, markerfacecolor="none",
                  markeredgewidth=2, label=f"recommended: {short(name)}", zorder=4)  # fmt: skip
    axes.set_xlabel(_scaled(axes, "x", [x for x, _ in points], labels[0]))
    axes.set_title(_scaled(axes, "y", [y for _, y in points], labels[1]))
    axes.margins(0.12)
    axes.grid()
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)
    figure.legend(loc="outside lower center", ncols=2, handletextpad=0.5, columnspacing=1.2)
    return figure


@styled
def importance_plot(slug: str, shares: Mapping[str, float]) -> Figure:
    """A bar for each parameter, in the order given; shares are of 1."""
    figure = blank(0.36 * len(shares) + 0.9)
    axes = figure.subplots()
    places = range(len(shares))
    axes.barh(places, [100 * share for share in shares.values()], color=BLUE, height=0.62)
    for place, share in zip(places, shares.values(), strict=True):
        axes.annotate(f"{100 * share:.0f} %", (100 * share, place), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=11)  # fmt: skip
    axes.set_yticks(places, [_end(name) for name in shares])
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 118)  # room for the number behind a bar of 100 %
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_xlabel("share of importance, %")
    return figure


@styled
def curves_plot(slug: str, curves: Curves, label: str) -> Figure:
    """A metric while trials ran: complete ones, pruned ones up to where they were stopped, and the best one."""
    figure = blank(3.8)
    axes = figure.subplots()
    for curve in curves.complete:
        axes.plot(*zip(*curve, strict=True), color=COLOURS[5], linewidth=1, marker="." if len(curve) == 1 else "")
    for curve in curves.pruned:
        axes.plot(*zip(*curve, strict=True), color=ORANGE, linewidth=1.2, linestyle="--")
        axes.plot(*curve[-1], "x", color=ORANGE, markersize=7, markeredgewidth=2)
    if curves.best:
        axes.plot(*zip(*curves.best, strict=True), color=BLUE, linewidth=2.6, marker=".")
    _curve_legend(figure, curves)
    points = [point for curve in [*curves.complete, *curves.pruned, curves.best] for point in curve]
    axes.set_title(_scaled(axes, "y", [y for _, y in points], label))
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    axes.grid()
    return figure


def _curve_legend(figure: Figure, curves: Curves) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if curves.best:
        handles.append(Line2D([], [], color=BLUE, linewidth=2.6, label="the best trial"))
    if curves.complete:
        handles.append(Line2D([], [], color=COLOURS[5], linewidth=1.2, label="complete"))
    if curves.pruned:
        style: dict[str, Any] = {"linestyle": "--", "marker": "x"}
        handles.append(Line2D([], [], color=ORANGE, markeredgewidth=2, label="pruned", **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.5, columnspacing=1.2)


def _dots(
    axes: Axes, points: Sequence[Point], marker: str, colour: str, size: float, name: str, hollow: bool = False
) -> None:
    if not points:
        return
    x, y = zip(*points, strict=True)
    inside = "white" if hollow else colour
    axes.plot(x, y, marker, color=colour, markersize=size, markerfacecolor=inside, markeredgewidth=1.4, label=name)


def _scaled(axes: Axes, axis: str, values: Sequence[float], label: str) -> str:
    """Makes an axis logarithmic where values lie far apart; returns its label, which says so and fits."""
    if spread_scale(axes, axis, values):
        end = ", logarithmic"
        return short(label, _TITLE - len(end)) + end
    getattr(axes, f"{axis}axis").get_major_formatter().set_useOffset(False)  # whole numbers at the ticks
    return short(label, _TITLE)


def _end(name: str, length: int = 26) -> str:
    """The end of a long path: it says more than its start."""
    return name if len(name) <= length else "…" + name[1 - length :]
