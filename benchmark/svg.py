"""How every plot of this workspace is drawn: SVG text for the width of a phone, in one style.

Drawn 360 points wide with letters of 12 points, so that it stays readable when a page scales it down to a phone. The
same values give the same bytes.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
WIDTH = 5.0  # inches, 360 points
# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too light on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NAME_LENGTH = 24  # characters of a name beside an axis; tables have it in full
_LOG_FROM = 30  # times the smallest value: a linear axis would press the small ones together
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "text.parse_math": False,  # names may have a $ in them
    "svg.fonttype": "path",  # looks alike where DejaVu is not installed
    "svg.hashsalt": "olival",
}


def styled(plot: Callable[Arguments, Figure]) -> Callable[Arguments, str]:
    """Draws with the style of this module, whatever matplotlib is set to, and gives SVG text.

    The first argument of `plot` starts every id in the SVG; it must be the only one of its page.
    """

    @functools.wraps(plot)
    def draw(*args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return _svg(plot(*args, **kwargs), str(args[0]))

    return draw


def blank(height: float) -> Figure:
    """A figure without axes, `height` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def spread_scale(axes: Axes, axis: str, values: Sequence[float]) -> bool:
    """Makes an axis ("x" or "y") logarithmic where values lie too far apart for a linear one; says whether it did."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not values or min(values) <= 0 or max(values) / min(values) <= _LOG_FROM:
        return False
    axes.set(**{f"{axis}scale": "log"})
    ticks = axes.xaxis if axis == "x" else axes.yaxis
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) / min(values) < 1000 else (1,)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # 10 to a power would be math, which is off
    ticks.set_minor_formatter(NullFormatter())
    return True


def short(name: str, length: int = NAME_LENGTH) -> str:
    """A name whose lines have at most `length` characters; what is cut ends with an ellipsis."""
    return "\n".join(part if len(part) <= length else part[: length - 1] + "…" for part in name.split("\n"))


def _svg(figure: Figure, slug: str) -> str:
    """The figure as an <svg> element that takes its size from the page, with ids that no other figure has."""
    buffer = io.StringIO()
    nothing: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', text)
    text = re.sub(r'href="#', f'href="#{slug}-', text).replace("url(#", f"url(#{slug}-")
    head, _, rest = text.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} aria-hidden="true">{rest.strip()}\n'
