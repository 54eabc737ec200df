"""Axes of all plots: linear, or logarithmic with plain numbers."""

from __future__ import annotations

import pytest

from benchmark.svg import blank, spread_scale


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ((1.0, 29.0), False),
        ((0.02, 0.9), True),
        ((1.0, 1e6), True),
        ((0.0, 1e6), False),
        ((-1.0, 50.0), False),
        ((), False),
    ],
)
def test_values_far_apart(values: tuple[float, ...], logarithmic: bool) -> None:
    """Plots are drawn without math in their texts, so ticks must not be written as powers."""
    figure = blank(3)
    axes = figure.subplots()
    axes.plot(values, values)
    assert spread_scale(axes, "y", values) == logarithmic == (axes.get_yscale() == "log")
    figure.canvas.draw()
    if logarithmic:
        ticks = [float(label.get_text()) for label in axes.get_yticklabels() if label.get_text()]
        assert len(ticks) > 2 and min(ticks) > 0
