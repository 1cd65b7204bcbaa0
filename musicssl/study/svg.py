"""Small charts as SVG text that a page holds as it is: lines with whiskers, their legend, colours.

Each chart scales with its column, names its points when a pointer rests on them, and needs no
script, font or file.
"""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

NARROW = 0.1  # of scores: a range of shades or heights is at least so wide
# Colours that colour-blind readers tell apart (Okabe and Ito), then dashes.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5230", "#444444")
DASHES = ("", "5 2", "1.5 2")
RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#d9c300")  # a sequence: layers, low to high


class Point(NamedTuple):
    """A value; low and high: its interval, if it has one. strong: drawn filled."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    strong: bool = True


class Series(NamedTuple):
    """Points joined by a line; width 0 for none. dot: a point's radius. label: where it ends."""

    name: str
    points: Sequence[Point]
    colour: str
    dash: str = ""
    width: float = 1.4
    dot: float = 2.6
    label: str = ""


class Axes(NamedTuple):
    """What surrounds the points: labelled places on x, the range of y, a dotted line."""

    title: str
    ticks: Sequence[tuple[float, str]]
    x_label: str = ""
    low: float = 0.0
    high: float = 1.0
    level: float | None = None  # chance
    scale: float = 100.0  # of the numbers on y
    size: tuple[int, int] = (260, 170)


def colours(count: int) -> list[tuple[str, str]]:
    """A colour and a dash for each of so many lines."""
    many = len(PALETTE)
    return [(PALETTE[i % many], DASHES[i // many % len(DASHES)]) for i in range(count)]


def ramp(share: float) -> str:
    """A colour between the ends of RAMP, for a share from 0 to 1."""
    place = min(max(share, 0), 1) * (len(RAMP) - 1)
    left = min(int(place), len(RAMP) - 2)
    return mixed(RAMP[left], RAMP[left + 1], place - left)


def mixed(first: str, second: str, share: float) -> str:
    """A colour on the way from one #rrggbb to another."""
    pairs = ((int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def bounds(values: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """A range with some room around the values, `least` wide, so that noise does not look large."""
    finite = [x for x in values if x is not None and math.isfinite(x)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = max(0.06 * (high - low), (least - high + low) / 2) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def nice_steps(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within a range, `about` so many."""
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def chart(axes: Axes, series: Sequence[Series]) -> str:
    """An SVG element of all series; y runs from axes.low to axes.high."""
    width, height = axes.size
    widest = max((len(s.label) for s in series), default=0)
    left, right, top, bottom = 34, 8 + 6 * widest, 8, 30 if axes.x_label else 18
    room = (width - left - right) / max(len(axes.ticks), 1)
    crowded = 5.5 * max((len(name) for _, name in axes.ticks), default=0) > room
    bottom += 10 * crowded  # then every second name is a line lower
    xs = [x for x, _ in axes.ticks] + [p.x for s in series for p in s.points]
    first, last = min(xs, default=0), max(xs, default=1)
    margin = 0.04 * (last - first) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first + margin) / (last - first + 2 * margin)
        up = (y - axes.low) / (axes.high - axes.low)
        return left + across * (width - left - right), height - bottom - up * (
            height - top - bottom
        )

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(axes.title)}"><title>{escape(axes.title)}</title>'
    ]
    for value in nice_steps(axes.low, axes.high):
        _, y = place(first, value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        shown = f"{value * axes.scale:g}"
        parts.append(f'<text x="{left - 4}" y="{y + 3:.1f}" text-anchor="end">{shown}</text>')
    for number, (x, name) in enumerate(axes.ticks):
        across, _ = place(x, axes.low)
        y = height - bottom + 11 + 10 * (crowded and number % 2)
        parts.append(f'<text x="{across:.1f}" y="{y}" text-anchor="middle">{escape(name)}</text>')
    if axes.level is not None and axes.low <= axes.level <= axes.high:
        _, y = place(first, axes.level)
        parts.append(f'<path class="chance" d="M{left} {y:.1f}H{width - right}"/>')
    for one in series:
        parts += drawn(one, place, axes.scale)
    parts += labels(series, place, width - right, height - bottom)
    if axes.x_label:
        middle = (left + width - right) / 2
        parts.append(
            f'<text x="{middle:.0f}" y="{height - 5}" text-anchor="middle">'
            f"{escape(axes.x_label)}</text>"
        )
    return "".join([*parts, "</svg>"])


def labels(series: Sequence[Series], place, across: float, lowest: float) -> list[str]:
    """The names of lines beside their ends, one below the other where they would meet."""
    ends = [(place(s.points[-1].x, s.points[-1].y)[1] + 3, s) for s in series if s.label]
    heights = apart([y for y, _ in ends], 10, lowest)
    return [
        f'<text x="{across + 4}" y="{y:.1f}" style="fill:{one.colour}">{escape(one.label)}</text>'
        for y, (_, one) in zip(heights, ends, strict=True)
    ]


def apart(heights: Sequence[float], least: float, lowest: float) -> list[float]:
    """The same heights, moved so that neighbours are `least` apart and none is below `lowest`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + least)
    for number, i in enumerate(reversed(order)):
        moved[i] = min(moved[i], lowest - number * least)
    return moved


def drawn(one: Series, place, scale: float) -> list[str]:
    """The elements of a series."""
    points = [p for p in one.points if math.isfinite(p.y)]
    at = [place(p.x, p.y) for p in points]
    parts = [f'<g stroke="{one.colour}" fill="{one.colour}">']
    if len(at) > 1 and one.width:
        line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
        parts.append(f'<path d="{line}" fill="none" stroke-width="{one.width}"{dash}>')
        parts.append(f"<title>{escape(one.name)}</title></path>")
    for point, (x, y) in zip(points, at, strict=True):
        if point.low is not None and math.isfinite(point.low):
            (_, low), (_, high) = place(point.x, point.low), place(point.x, point.high)
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke-width="1"/>')
        if one.dot:
            fill = "" if point.strong else ' fill="#fff"'
            told = f"<title>{escape(one.name)}: {point.y * scale:.4g}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{one.dot}"{fill}>{told}</circle>')
    return [*parts, "</g>"]


def legend(series: Sequence[tuple[str, str, str]]) -> str:
    """HTML that names lines: (name, colour, dash) each."""
    parts = []
    for name, colour, dash in series:
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<span><svg viewBox="0 0 22 8" width="22" height="8"><path d="M0 4H22" '
            f'stroke="{colour}" stroke-width="2.4"{style}/></svg>{escape(name)}</span>'
        )
    return f'<p class="legend">{"".join(parts)}</p>'
