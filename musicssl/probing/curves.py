"""A picture of scores by factor: over the number of notes, the octave, the timbre, the detuning.

A panel for each task and factor; a curve for each layer of an encoder, or for each of several
encoders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.lines import Line2D

ACROSS = 4  # panels
ABSENT = {"mean": np.nan, "interval": [np.nan, np.nan]}
AXES = {
    "voices": "notes at once",
    "octave": "octave of the lowest note (middle C begins 4)",
    "timbre": "timbre",
    "detuning": "cents out of tune",
}


class Curve(NamedTuple):
    """One line in each panel: its name, and by task which source of which result it shows."""

    name: str
    colour: tuple[float, ...]
    shown: Mapping[str, tuple[Mapping, str]]


def of_layers(tasks: Mapping[str, Mapping]) -> list[Curve]:
    """A curve for each layer, the lower the darker, and one for the weighted sum."""
    sources = list(dict.fromkeys(layer["source"] for t in tasks.values() for layer in t["layers"]))
    colours = pyplot.get_cmap("viridis")(np.linspace(0, 0.9, len(sources)))
    return [
        Curve(
            f"layer {source}" if source.isdigit() else source,
            "tab:red" if source == "sum" else tuple(colour),
            {name: (task, source) for name, task in tasks.items() if _has(task, source)},
        )
        for source, colour in zip(sources, colours, strict=True)
    ]


def _has(task: Mapping, source: str) -> bool:
    return source in (layer["source"] for layer in task["layers"])


def of_encoders(names: Sequence[str], each: Sequence[Mapping[str, Mapping]]) -> list[Curve]:
    """A curve for each encoder, of the layer that validation chose."""
    return [
        Curve(
            name,
            pyplot.get_cmap("tab10")(number % 10),
            {task: (result, result["chosen"]["source"]) for task, result in tasks.items()},
        )
        for number, (name, tasks) in enumerate(zip(names, each, strict=True))
    ]


def panels(tasks: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    """The (task, factor) pairs to draw, those of a factor together."""
    return [
        (name, factor)
        for factor in AXES
        for name, task in tasks.items()
        if factor in task.get("factors", {})  # which results of earlier versions have not
    ]


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draws every panel of the curves' tasks, with 95 % intervals and chance; none without any."""
    tasks: dict[str, Mapping] = {}
    for curve in curves:
        for name, (task, _) in curve.shown.items():
            tasks.setdefault(name, task)
    pairs = panels(tasks)
    if not pairs:
        return
    across = min(ACROSS, len(pairs))
    down = -(-len(pairs) // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(3.4 * across, 2.6 * down + 0.5), layout="constrained", squeeze=False
    )
    for axes, (name, factor) in zip(grid.flat, pairs, strict=False):
        _panel(axes, curves, name, factor)
    for axes in grid.flat[len(pairs) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel("test accuracy")
    lines = [Line2D([], [], color=c.colour, marker="o", label=c.name) for c in curves]
    lines.append(Line2D([], [], color="k", linestyle="dotted", label="chance"))
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 8))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axes: pyplot.Axes, curves: Sequence[Curve], name: str, factor: str) -> None:
    # Only encoders and layers that were asked: results of several commands may be side by side.
    asked = [
        (curve, *curve.shown[name])
        for curve in curves
        if name in curve.shown and factor in curve.shown[name][0].get("factors", {})
    ]
    levels = [level["level"] for level in asked[0][1]["factors"][factor]]
    place = np.arange(len(levels))
    for number, (curve, task, source) in enumerate(asked):
        found = {x["level"]: x["sources"][source] for x in task["factors"][factor]}
        scores = [found.get(level, ABSENT) for level in levels]
        mean = np.array([score["mean"] for score in scores])
        low, high = np.array([score["interval"] for score in scores]).T
        aside = 0.3 * ((number + 0.5) / len(asked) - 0.5)  # so that intervals do not cover others
        axes.errorbar(
            place + aside, mean, [mean - low, high - mean], color=curve.colour, marker="o",
            markersize=3, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
    chance = [level["chance"] for level in asked[0][1]["factors"][factor]]
    axes.plot(place, chance, "k:")
    names = [level.replace("_", "\n") for level in levels]
    axes.set_xticks(place, names, fontsize=7 if factor == "timbre" else 9)
    axes.set_xlabel(AXES[factor], fontsize=9)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(asked[0][1]["title"], fontsize=10)
    axes.grid(axis="y", alpha=0.3)
