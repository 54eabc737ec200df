"""How objectives, values and parameters are named wherever people read of a study: terminal, page, progress bar."""

from __future__ import annotations

from typing import Any

from search.distributions import json_text
from search.space import Objective, Space

_MEGABYTES = ("size_on_disk", "_bytes")  # ends of metrics that are counted in bytes
_LONGEST = 60  # characters of one value in a line of text; trials' workflow.json has all of it


def objective_label(space: Space, objective: Objective) -> str:
    """The metric; with several targets also the target: `tpot_p50_ms, cuda`."""
    return f"{objective.metric}, {objective.target}" if space.several_targets else objective.metric


def metric_text(metric: str, value: float | None) -> str:
    """A value with the unit that the metric's name does not say: 0.967, 3.20 MB for size_on_disk; `-` for none."""
    if value is None:
        return "-"
    if metric.endswith(_MEGABYTES):
        return f"{value / 1e6:,.3g} MB" if abs(value) < 1e9 else f"{value / 1e6:,.0f} MB"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def plot_scale(metric: str) -> tuple[float, str]:
    """What an axis divides a metric by, and its unit where the metric's name does not say it: bytes are shown as MB."""
    return (1e6, "MB") if metric.endswith(_MEGABYTES) else (1.0, "")


def short_names(space: Space) -> dict[str, str]:
    """Each parameter's name without the start of its path, as far as no two become alike: `learning_rate`, `rank`."""
    names = [p.name for p in space.parameters]
    found = {}
    for name in names:
        parts = name.split(".")
        tails = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        alone = [tail for tail in tails if sum(n == tail or n.endswith(f".{tail}") for n in names) == 1]
        found[name] = alone[0] if alone else name
    return found


def value_text(value: Any, longest: int = _LONGEST) -> str:
    """A parameter's value: words as they are, numbers with 4 digits, all else as JSON, cut where it is too long."""
    text = value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json_text(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def duration_text(seconds: float) -> str:
    """0.4 s, 41 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"
