"""Draws a run from its metrics.jsonl: loss, validation, health of the layers, probes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musicssl import paths
from musicssl.runtime import workdir as workdir_lib

PICTURE = "curves.png"
Points = list[tuple[float, float]]  # steps and values


def series(workdir: Path) -> dict[str, Points]:
    """Return the points of every scalar that a run has logged, by name."""
    found: dict[str, Points] = {}
    for _, scalars in workdir_lib.metrics(workdir):
        for name, value in (scalars or {}).items():
            if scalars and name != "step":
                found.setdefault(name, []).append((scalars["step"], value))
    return found


def panels(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return which of the existing scalars are drawn: {title: {label: name}}."""
    drawn: dict[str, dict[str, str]] = {"loss": {}}
    for name in names:
        section, _, rest = name.partition("/")
        if name == "loss":
            drawn["loss"]["training"] = name
        elif name == "validation/loss":
            drawn["loss"]["validation"] = name
        elif section == "validation":
            kind = rest.partition("/")[0]
            if kind.endswith("accuracy"):
                drawn.setdefault("validation: accuracy at masked frames", {})[rest] = name
            elif kind == "code_usage":
                drawn.setdefault("validation: share of codes that occur", {})[rest] = name
            elif kind.endswith("_std"):
                title = "validation: deviation of targets and predictions"
                drawn.setdefault(title, {})[rest] = name
        elif section == "health":
            layer, _, measure = rest.rpartition("_")
            words = {"std": "deviation of frames", "rank": "effective rank of frames"}
            drawn.setdefault(f"layers: {words[measure]}", {})[layer.replace("_", " ")] = name
        elif section == "probe":
            drawn.setdefault("probes: test score", {})[rest] = name
    return {title: lines for title, lines in drawn.items() if lines}


def draw(workdir: Path) -> Path | None:
    """Draw <workdir>/curves.png and return its path; None if there is nothing to draw."""
    points = series(workdir)
    shown = panels(list(points))
    if not shown:
        return None

    import matplotlib  # here, since most importers of this module draw nothing

    matplotlib.use("agg")
    from matplotlib import pyplot

    across = min(len(shown), 3)
    down = -(-len(shown) // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(4.6 * across, 3.2 * down), layout="constrained", squeeze=False
    )
    for axes, (title, lines) in zip(grid.flat, shown.items(), strict=False):
        _panel(axes, title, lines, points)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    path = workdir / PICTURE
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    pyplot.close(figure)
    paths.write(path, drawn.getvalue())
    return path


def _panel(axes: Any, title: str, lines: Mapping[str, str], points: Mapping[str, Points]) -> None:
    """Draw the lines {label: name}; the layers' go from dark to light, and the stem's is red."""
    from matplotlib import pyplot

    layers = [label for label in lines if label.startswith("layer ")]
    colours = pyplot.get_cmap("viridis")
    for label, name in lines.items():
        steps, values = zip(*points[name], strict=True)
        style: dict[str, Any] = {"marker": "." if len(steps) < 40 else None, "linewidth": 1.3}
        if label in layers:
            style["color"] = colours(layers.index(label) / max(len(layers) - 1, 1) * 0.9)
        if label == "stem":
            style["color"] = "tab:red"
        axes.plot(steps, values, label=label, **style)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)
    if len(lines) > 1 or title != "loss":
        axes.legend(fontsize=7, ncols=2 if len(lines) > 7 else 1)
    if "rank" in title or "deviation" in title:
        axes.set_ylim(bottom=0)
