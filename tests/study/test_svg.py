"""Axes and charts."""

import re

import numpy as np
import pytest

from musicssl.study import svg


@pytest.mark.parametrize("low, high", [(0, 1), (0.213, 0.789), (-3, 40), (0.5001, 0.5003)])
def test_ticks_are_round_and_inside(low, high):
    ticks = svg.nice_steps(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] and ticks[-1] <= high
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_charts_place_points_and_leave_out_what_is_not_finite():
    axes = svg.Axes("a & b", [(0, "x"), (1, "y")], low=0.0, high=1.0, level=0.5, size=(100, 100))
    points = [svg.Point(0, 0.0), svg.Point(1, 1.0, 0.9, 1.0), svg.Point(0.5, float("nan"))]
    drawn = svg.chart(axes, [svg.Series("s", points, "#123456")])
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    (x0, y0), (x1, y1) = [(float(x), float(y)) for x, y in circles]
    assert x0 < x1 and y0 > y1 and "nan" not in drawn
    assert "a &amp; b" in drawn and 'class="chance"' in drawn
    names = ("electric piano", "harpsichord", "organ", "violin")
    drawn = svg.chart(svg.Axes("", list(enumerate(names)), size=(200, 100)), [])
    heights = re.findall(r'y="(\d+)" text-anchor="middle"', drawn)
    assert heights == [heights[0], heights[1]] * 2 and heights[0] != heights[1]
    lines = [
        svg.Series(x, [svg.Point(0, y)], "#000000", label=x)
        for x, y in (("a", 0), ("b", 0.01), ("c", 1))
    ]
    drawn = svg.chart(svg.Axes("", [(0, "x")]), lines)
    ends = {x: float(y) for y, x in re.findall(r'y="([\d.]+)" style="[^"]*">(.)<', drawn)}
    assert ends["a"] - ends["b"] >= 10 and ends["b"] - ends["c"] > 50
    assert svg.ramp(0) == svg.RAMP[0] and svg.ramp(1) == svg.RAMP[-1]
