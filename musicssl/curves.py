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

ACROSS = 4  # panels
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
            {name: (task, source) for name, task in tasks.items()},
        )
        for source, colour in zip(sources, colours, strict=True)
    ]


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
    pairs = [(name, factor) for factor in AXES for name in tasks
             if factor in tasks[name].get("factors", {})]  # fmt: skip
    return pairs


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draws every panel of the curves' tasks, with 95 % intervals and chance; none without any."""
    tasks = {name: task for name, (task, _) in curves[0].shown.items()}
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
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 8))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axes: pyplot.Axes, curves: Sequence[Curve], name: str, factor: str) -> None:
    result = curves[0].shown[name][0]
    levels = result["factors"][factor]
    place = np.arange(len(levels))
    for number, curve in enumerate(curves):
        task, source = curve.shown[name]
        scores = [level["sources"][source] for level in task["factors"][factor]]
        mean = np.array([score["mean"] for score in scores])
        low, high = np.array([score["interval"] for score in scores]).T
        aside = 0.3 * ((number + 0.5) / len(curves) - 0.5)  # so that intervals do not cover others
        axes.errorbar(
            place + aside, mean, [mean - low, high - mean], color=curve.colour, marker="o",
            markersize=3, linewidth=1.2, elinewidth=0.7, label=curve.name,
        )  # fmt: skip
    chance = [level["chance"] for level in levels]
    axes.plot(place, chance, "k:", label="chance")
    names = [level["level"].replace("_", "\n") for level in levels]
    axes.set_xticks(place, names, fontsize=7 if factor == "timbre" else 9)
    axes.set_xlabel(AXES[factor], fontsize=9)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(result["title"], fontsize=10)
    axes.grid(axis="y", alpha=0.3)
