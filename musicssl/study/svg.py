"""Small charts as SVG text for a page: lines with whiskers, their legend, colours.

Each chart scales with its column, shows a point's name and value under the pointer, and needs no
script, font or file.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

NARROW = 0.1  # the least range of scores over which shades or heights are spread
# Colours that colour-blind readers can distinguish (Okabe and Ito), then dashes.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5230", "#444444")
DASHES = ("", "5 2", "1.5 2")
RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#d9c300")  # a sequence: layers, low to high


class Point(NamedTuple):
    """A value to draw.

    low, high: its interval, if it has one.
    strong: whether it is drawn filled.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    strong: bool = True


Place = Callable[[float, float], tuple[float, float]]  # from values to a place in the picture


class Series(NamedTuple):
    """Points that are joined by a line.

    width: of the line, 0 for none.
    dot: the radius of a point, 0 for none.
    label: the text at the end of the line.
    """

    name: str
    points: Sequence[Point]
    colour: str
    dash: str = ""
    width: float = 1.4
    dot: float = 2.6
    label: str = ""


class Axes(NamedTuple):
    """The frame around the points.

    ticks: labelled places on x.
    low, high: the range of y.
    level: where a dotted line is drawn, for chance.
    scale: of the numbers beside y.
    size: width and height.
    """

    title: str
    ticks: Sequence[tuple[float, str]]
    x_label: str = ""
    low: float = 0.0
    high: float = 1.0
    level: float | None = None
    scale: float = 100.0
    size: tuple[int, int] = (260, 170)


def colours(count: int) -> list[tuple[str, str]]:
    """Return a colour and a dash for each of a number of lines."""
    pairs = [(colour, dash) for dash, colour in itertools.product(DASHES, PALETTE)]
    return [pairs[i % len(pairs)] for i in range(count)]


def ramp(share: float) -> str:
    """Return a colour between the ends of RAMP, for a share from 0 to 1."""
    place = min(max(share, 0), 1) * (len(RAMP) - 1)
    left = min(int(place), len(RAMP) - 2)
    return mixed(RAMP[left], RAMP[left + 1], place - left)


def mixed(first: str, second: str, share: float) -> str:
    """Return a colour on the way from one #rrggbb to another."""
    channels = []
    for i in (1, 3, 5):
        low, high = int(first[i : i + 2], 16), int(second[i : i + 2], 16)
        channels.append(f"{round(low + (high - low) * share):02x}")
    return "#" + "".join(channels)


def bounds(values: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """Return a range with some room around the values.

    Args:
      least: its least width, so that noise does not look large.
    """
    finite = [x for x in values if x is not None and math.isfinite(x)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = max(0.06 * (high - low), (least - high + low) / 2)
    if not room:  # all values are the same
        room = 0.05 * abs(high) or 0.5
    return low - room, high + room


def nice_steps(low: float, high: float, about: int = 4) -> list[float]:
    """Return about a given number of round values within a range."""
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def chart(axes: Axes, series: Sequence[Series]) -> str:
    """Return an SVG element of all series; y runs from axes.low to axes.high."""
    # Leave room for numbers, ticks and the names of lines.
    width, height = axes.size
    widest = max((len(s.label) for s in series), default=0)
    left, right, top, bottom = 34, 8 + 6 * widest, 8, 30 if axes.x_label else 18
    room = (width - left - right) / max(len(axes.ticks), 1)
    crowded = 5.5 * max((len(name) for _, name in axes.ticks), default=0) > room
    if crowded:  # then every second name is a line lower
        bottom += 10

    # The scales.
    xs = [x for x, _ in axes.ticks]
    for line in series:
        xs += [point.x for point in line.points]
    first, last = min(xs, default=0), max(xs, default=1)
    margin = 0.04 * (last - first) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first + margin) / (last - first + 2 * margin)
        up = (y - axes.low) / (axes.high - axes.low)
        x_place = left + across * (width - left - right)
        return x_place, height - bottom - up * (height - top - bottom)

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(axes.title)}"><title>{escape(axes.title)}</title>'
    ]

    # Lines across, ticks and chance.
    for value in nice_steps(axes.low, axes.high):
        _, y = place(first, value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        shown = f"{value * axes.scale:g}"
        parts.append(f'<text x="{left - 4}" y="{y + 3:.1f}" text-anchor="end">{shown}</text>')
    for number, (x, name) in enumerate(axes.ticks):
        across, _ = place(x, axes.low)
        baseline = height - bottom + 11
        if crowded and number % 2:
            baseline += 10
        parts.append(
            f'<text x="{across:.1f}" y="{baseline}" text-anchor="middle">{escape(name)}</text>'
        )
    if axes.level is not None and axes.low <= axes.level <= axes.high:
        _, y = place(first, axes.level)
        parts.append(f'<path class="chance" d="M{left} {y:.1f}H{width - right}"/>')

    # The series, and their names.
    for line in series:
        parts += _drawn(line, place, axes.scale)
    parts += _end_labels(series, place, width - right, height - bottom)
    if axes.x_label:
        middle = (left + width - right) / 2
        parts.append(
            f'<text x="{middle:.0f}" y="{height - 5}" text-anchor="middle">'
            f"{escape(axes.x_label)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _end_labels(series: Sequence[Series], place: Place, across: float, lowest: float) -> list[str]:
    """Return the names of lines beside their ends, moved apart if they would overlap."""
    named = [line for line in series if line.label]
    ends = [place(line.points[-1].x, line.points[-1].y) for line in named]
    heights = _apart([y + 3 for _, y in ends], 10, lowest)
    return [
        f'<text x="{across + 4}" y="{y:.1f}" style="fill:{line.colour}">{escape(line.label)}</text>'
        for y, line in zip(heights, named, strict=True)
    ]


def _apart(heights: Sequence[float], least: float, lowest: float) -> list[float]:
    """Move heights so that neighbours are `least` apart and none is below `lowest`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for above, below in itertools.pairwise(order):
        moved[below] = max(moved[below], moved[above] + least)
    for number, i in enumerate(reversed(order)):
        moved[i] = min(moved[i], lowest - number * least)
    return moved


def _drawn(series: Series, place: Place, scale: float) -> list[str]:
    """Return the elements of a series."""
    points = [p for p in series.points if math.isfinite(p.y)]
    at = [place(p.x, p.y) for p in points]
    parts = [f'<g stroke="{series.colour}" fill="{series.colour}">']

    # The line.
    if len(at) > 1 and series.width:
        line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
        parts.append(f'<path d="{line}" fill="none" stroke-width="{series.width}"{dash}>')
        parts.append(f"<title>{escape(series.name)}</title></path>")

    # Each point and its interval.
    for point, (x, y) in zip(points, at, strict=True):
        if point.low is not None and point.high is not None and math.isfinite(point.low):
            (_, low), (_, high) = place(point.x, point.low), place(point.x, point.high)
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke-width="1"/>')
        if series.dot:
            fill = "" if point.strong else ' fill="#fff"'
            name = f"<title>{escape(series.name)}: {point.y * scale:.4g}</title>"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{series.dot}"{fill}>{name}</circle>'
            )
    return [*parts, "</g>"]


def legend(series: Sequence[tuple[str, str, str]]) -> str:
    """Return HTML that names lines, given as (name, colour, dash)."""
    parts = []
    for name, colour, dash in series:
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<span><svg viewBox="0 0 22 8" width="22" height="8"><path d="M0 4H22" '
            f'stroke="{colour}" stroke-width="2.4"{style}/></svg>{escape(name)}</span>'
        )
    return f'<p class="legend">{"".join(parts)}</p>'
