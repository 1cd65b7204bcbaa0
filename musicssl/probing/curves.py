"""A picture of scores by factor: over the number of notes, the octave, the timbre, the detuning.

It has a panel for each task and factor, with a curve for each layer of an encoder, or for each of
several encoders.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from musicssl import paths
from musicssl.probing.schema import LevelScore, TaskResult

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

AXES = {
    "voices": "notes at once",
    "octave": "octave of the lowest note (middle C begins 4)",
    "timbre": "timbre",
    "detuning": "cents out of tune",
}
_ACROSS = 4  # panels
_ABSENT: LevelScore = {"mean": np.nan, "interval": [np.nan, np.nan]}

Colour = str | tuple[float, float, float, float]


class Curve(NamedTuple):
    """One line in each panel.

    name: in the legend.
    shown: by task, the result and the source of features in it that the line shows.
    """

    name: str
    colour: Colour
    shown: Mapping[str, tuple[TaskResult, str]]


def sources_of(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Return the sources of features that any of the tasks has, each once."""
    sources: dict[str, None] = {}
    for task in tasks.values():
        sources |= dict.fromkeys(layer["source"] for layer in task["layers"])
    return list(sources)


def of_layers(tasks: Mapping[str, TaskResult]) -> list[Curve]:
    """Return a curve for each layer, the lower the darker, and one for the weighted sum."""
    sources = sources_of(tasks)
    colours = pyplot.get_cmap("viridis")(np.linspace(0, 0.9, len(sources)))
    layers = []
    for source, (red, green, blue, alpha) in zip(sources, colours, strict=True):
        name = f"layer {source}" if source.isdigit() else source
        colour = "tab:red" if source == "sum" else (red, green, blue, alpha)
        shown = {task: (result, source) for task, result in tasks.items() if _has(result, source)}
        layers.append(Curve(name, colour, shown))
    return layers


def _has(task: TaskResult, source: str) -> bool:
    return source in (layer["source"] for layer in task["layers"])


def of_encoders(names: Sequence[str], encoders: Sequence[Mapping[str, TaskResult]]) -> list[Curve]:
    """Return a curve for each encoder, of the layer that validation chose.

    Args:
      names: of the encoders.
      encoders: the results of each by task.
    """
    colours = pyplot.get_cmap("tab10")
    lines = []
    for number, (name, tasks) in enumerate(zip(names, encoders, strict=True)):
        shown = {task: (result, result["chosen"]["source"]) for task, result in tasks.items()}
        lines.append(Curve(name, colours(number % 10), shown))
    return lines


def panels(tasks: Mapping[str, TaskResult]) -> list[tuple[str, str]]:
    """Return the (task, factor) pairs to draw, those of a factor together."""
    pairs = []
    for factor in AXES:
        for name, task in tasks.items():
            if factor in task.get("factors", {}):  # missing in results of earlier versions
                pairs.append((name, factor))
    return pairs


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw every panel of the curves' tasks, with 95 % intervals and chance.

    No picture is written where no task has factors.
    """
    tasks: dict[str, TaskResult] = {}
    for curve in curves:
        for name, (task, _) in curve.shown.items():
            tasks.setdefault(name, task)
    pairs = panels(tasks)
    if not pairs:
        return

    # Panels, row by row; the places left over stay empty.
    across = min(_ACROSS, len(pairs))
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

    # One legend for all.
    lines = [Line2D([], [], color=c.colour, marker="o", label=c.name) for c in curves]
    lines.append(Line2D([], [], color="k", linestyle="dotted", label="chance"))
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 8))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    paths.write(path, drawn.getvalue())
    pyplot.close(figure)


def _panel(axes: Axes, curves: Sequence[Curve], name: str, factor: str) -> None:
    """Draw a task's scores at the levels of a factor."""
    # Leave out encoders and layers that have none: results of several commands may be compared.
    drawn = []
    for curve in curves:
        if name in curve.shown and factor in curve.shown[name][0].get("factors", {}):
            drawn.append((curve, *curve.shown[name]))
    first = drawn[0][1]
    levels = [level["level"] for level in first["factors"][factor]]
    place = np.arange(len(levels))

    # Curves, shifted a little so that their intervals do not cover each other.
    for number, (curve, task, source) in enumerate(drawn):
        by_level = {level["level"]: level["sources"][source] for level in task["factors"][factor]}
        scores = [by_level.get(level, _ABSENT) for level in levels]
        mean = np.array([score["mean"] for score in scores])
        low, high = np.array([score["interval"] for score in scores]).T
        aside = 0.3 * ((number + 0.5) / len(drawn) - 0.5)
        axes.errorbar(
            place + aside, mean, [mean - low, high - mean], color=curve.colour, marker="o",
            markersize=3, linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip

    # Chance, and the labels of the axes.
    chance = [level["chance"] for level in first["factors"][factor]]
    axes.plot(place, chance, "k:")
    names = [level.replace("_", "\n") for level in levels]
    axes.set_xticks(place, names, fontsize=7 if factor == "timbre" else 9)
    axes.set_xlabel(AXES[factor], fontsize=9)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(first["title"], fontsize=10)
    axes.grid(axis="y", alpha=0.3)
