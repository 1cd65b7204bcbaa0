"""Results on disk: results.json, a Markdown table beside published rows, and pictures."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from musicssl.probing import curves, metrics, published

matplotlib.use("agg")
from matplotlib import pyplot

RESULTS, TABLE = "results.json", "results.md"


def save(out: Path, result: dict, about: dict) -> None:
    """Puts a task's result into <out>/results.json, in place of an earlier one of that task.

    Raises:
      ValueError: the directory holds results of another encoder.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS
    held = load(out) if path.exists() else {"tasks": {}}
    if held["tasks"] and held["digest"] != about["digest"]:
        raise ValueError(
            f"{path} is of another encoder ({held['features']}): set config.results to another "
            "directory, or move that one away"
        )
    held = about | {"tasks": held["tasks"] | {result["task"]: result}}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(held, indent=1) + "\n")
    temporary.rename(path)


def load(out: Path) -> dict:
    """Reads <out>/results.json.

    Raises:
      FileNotFoundError, ValueError: it is not there, or damaged.
    """
    path = out / RESULTS
    if not path.exists():
        raise FileNotFoundError(f"{out} has no {RESULTS}: run musicssl.probe on that encoder first")
    try:
        held = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): move it away and probe again") from error
    for settings in (held.get("config"), *(x.get("settings") for x in held["tasks"].values())):
        if settings and "probe" in settings:  # as older versions called the leaf `kind`
            settings["kind"] = settings.pop("probe")
    return held


def write(out: Path) -> str:
    """Writes the table and the pictures of <out>/results.json, and returns the table."""
    held = load(out)
    table = markdown(held)
    (out / TABLE).write_text(table)
    for name, task in held["tasks"].items():
        draw_layers(task, out / f"{name}-layers.png")
        if task["confusion"]:
            draw_confusion(task, out / f"{name}-confusion.png")
    draw_heat_map(held["tasks"], out / "layers.png")
    curves.draw(curves.of_layers(held["tasks"]), out / "factors.png")
    return table


def markdown(held: dict) -> str:
    """The table of an encoder's results, x 100, with chance and published rows."""
    first = next(iter(held["tasks"].values()))
    probe = first.get("settings", held["config"])["kind"]
    lines = [
        f"Encoder: {held['features']}. Probe: {probe}. Scores x 100; the layer "
        "and learning rate are chosen on validation; mean over seeds ± their standard deviation, "
        "and the 95 % bootstrap interval over test items of the seed that did best on validation.",
        "",
        "| task | score | test | interval | layer | chance | published |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in held["tasks"].items():
        rows = published.scores(name)
        for score, value in task["chosen"]["test"].items():
            main = score == task["score"]
            low, high = task["chosen"]["interval"]
            cells = [
                task["title"] if main else "",
                score,
                f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}" if main else "",
                task["chosen"]["source"] if main else "",
                f"{100 * task['chance'][score]:.1f}",
                ", ".join(f"{model} {100 * v[score]:.1f}" for model, _, v in rows if score in v),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if any(published.scores(name) for name in held["tasks"]):
        lines += ["", f"Published: {published.MARBLE} (frozen encoder, the same grid)."]
    lines += ["", *by_factor(held["tasks"]), *notes(held["tasks"])]
    return "\n".join(lines).rstrip() + "\n"


def by_factor(tasks: dict) -> list[str]:
    """A table of the scores at each level of each factor, of the layer that validation chose."""
    lines = ["| task | factor | score at each level, and its interval |", "|---|---|---|"]
    for name, factor in curves.panels(tasks):
        task = tasks[name]
        cells = []
        for level in task["factors"][factor]:
            found = level["sources"][task["chosen"]["source"]]
            low, high = found["interval"]
            cells.append(
                f"{level['level']}: {100 * found['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            )
        lines.append(f"| {task['title']} | {factor} | {', '.join(cells)} |")
    return [*lines, ""] if lines[2:] else []


def notes(tasks: dict) -> list[str]:
    """Lines on tasks whose figures do not compare with published ones or the first's, and why."""
    lines = []
    first = next(iter(tasks.values()))
    for name, task in tasks.items():
        if found := unlike(task, first):
            lines.append(f"- {name}: probed with {found}")
        if task["unscored_classes"]:
            lines.append(f"- {name}: not in the averages, for want of test items with and "
                         f"without: {', '.join(task['unscored_classes'])}")  # fmt: skip
        if task["untrained_classes"]:
            lines.append(f"- {name}: no training item of {', '.join(task['untrained_classes'])}")
        built = list(task["items"].values())
        if task["published_items"] and built != list(task["published_items"]):
            lines.append(f"- {name}: {built} items in train, validation and test; published "
                         f"are {list(task['published_items'])}")  # fmt: skip
    return lines


def unlike(task: dict, other: dict) -> str:
    """The settings of a result's probes that are not another's, in words, where both tell them."""
    ours, theirs = task.get("settings", {}), other.get("settings", {})
    changed = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return ", ".join(f"{name} {ours[name]} instead of {theirs[name]}" for name in sorted(changed))


def compare(folders: Sequence[Path], out: Path) -> str:
    """A table and a picture (bars) of several encoders' main scores; returns the table.

    Scores are means over seeds; the 95 % interval over test items and, from the second encoder on,
    p of the paired test against the first are of the seed that did best on validation.
    """
    held = [load(folder) for folder in folders]
    names = [_short(one) for one in held]
    shared = [name for name in held[0]["tasks"] if all(name in one["tasks"] for one in held)]
    if not shared:
        raise ValueError("the results to compare have no task in common")
    lines = [
        f"| task | score | {' | '.join(names)} | chance |",
        "|---" * (len(names) + 3) + "|",
    ]
    for name in shared:
        each = [one["tasks"][name] for one in held]
        score = each[0]["score"]
        cells = [_cell(task, score, each[0]) for task in each]
        chance = 100 * each[0]["chance"][score]
        lines.append(f"| {each[0]['title']} | {score} | {' | '.join(cells)} | {chance:.1f} |")
    lines += ["", f"p: paired bootstrap test against {names[0]} on the same test items."]
    for name in shared:
        for one, encoder in zip(held[1:], names[1:], strict=True):
            if found := unlike(one["tasks"][name], held[0]["tasks"][name]):
                lines.append(f"- {name}: {encoder} was probed with {found}")
    table = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(table)
    draw_bars(held, names, shared, out / "compare.png")
    each = [{name: one["tasks"][name] for name in shared} for one in held]
    curves.draw(curves.of_encoders(names, each), out / "compare-factors.png")
    return table


def _short(held: dict) -> str:
    kind, colon, path = held["encoder"].rpartition(":")
    return f"{kind}{colon}{Path(path).name}"


def _cell(task: dict, score: str, first: dict) -> str:
    mean = task["chosen"]["test"][score]["mean"]
    low, high = task["chosen"]["interval"]
    text = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    found = None if task is first else against(task, first)
    return f"{text}, p {found.p:.3f}" if found else text


def against(task: dict, other: dict) -> metrics.Difference | None:
    """The paired test of two encoders' results of a task, None where the test items differ."""
    if task.get("test_items") is None or task["test_items"] != other.get("test_items"):
        return None
    return metrics.paired(task["chosen"]["draws"], other["chosen"]["draws"])


def draw_bars(held: list[dict], names: list[str], tasks: list[str], path: Path) -> None:
    """Main test scores, a group of bars a task, intervals over items, chance as a line."""
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.6 * len(tasks), 3.6), layout="constrained")
    wide = 0.8 / len(held)
    for number, (one, name) in enumerate(zip(held, names, strict=True)):
        chosen = [one["tasks"][task]["chosen"] for task in tasks]
        scores = [one["tasks"][task]["score"] for task in tasks]
        values = [c["test"][s]["mean"] for c, s in zip(chosen, scores, strict=True)]
        place = np.arange(len(tasks)) + (number - (len(held) - 1) / 2) * wide
        low, high = np.array([c["interval"] for c in chosen]).T
        error = np.maximum([np.subtract(values, low), np.subtract(high, values)], 0)
        axes.bar(place, values, wide, yerr=error, label=name, error_kw={"lw": 0.8})
    for x, task in enumerate(tasks):
        result = held[0]["tasks"][task]
        axes.hlines(result["chance"][result["score"]], x - 0.45, x + 0.45, "k", "dotted")
    labels = [f"{task}\n{held[0]['tasks'][task]['score']}" for task in tasks]
    axes.set_xticks(range(len(tasks)), labels, fontsize=8)
    axes.set_ylabel("test score (dotted: chance)")
    axes.legend(fontsize=8)
    _close(figure, path)


def draw_layers(task: dict, path: Path) -> None:
    """Validation and test score by layer, of each layer's best learning rate."""
    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    places = range(len(task["layers"]))
    score = task["score"]
    mean = [layer["test"][score]["mean"] for layer in task["layers"]]
    spread = [layer["test"][score]["sd"] for layer in task["layers"]]
    axes.errorbar(places, mean, spread, marker="o", label=f"test {score}")
    axes.axhline(task["chance"][score], color="k", linestyle="dotted", label="chance")
    axes.set_xticks(places, [layer["source"] for layer in task["layers"]])
    axes.set_xlabel("layer")
    axes.set_title(task["title"], fontsize=9)
    axes.legend(fontsize=8)
    _close(figure, path)


def draw_heat_map(tasks: dict, path: Path) -> None:
    """Layers x tasks: each task's test scores from its worst layer (0) to its best (1)."""
    sources = list(dict.fromkeys(layer["source"] for t in tasks.values() for layer in t["layers"]))
    grid = np.full((len(tasks), len(sources)), np.nan)
    for row, task in enumerate(tasks.values()):
        values = {x["source"]: x["test"][task["score"]]["mean"] for x in task["layers"]}
        low, high = min(values.values()), max(values.values())
        for source, value in values.items():
            grid[row, sources.index(source)] = (value - low) / max(high - low, 1e-9)
    size = (2.5 + 0.4 * len(sources), 1.2 + 0.35 * len(tasks))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(sources)), sources)
    axes.set_yticks(range(len(tasks)), list(tasks), fontsize=8)
    axes.set_xlabel("layer")
    figure.colorbar(image, label="worst to best layer")
    _close(figure, path)


def draw_confusion(task: dict, path: Path) -> None:
    """Test items by label and answer, as shares of the label's items."""
    table = np.array(task["confusion"], float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    figure, axes = pyplot.subplots(figsize=(5, 4.5), layout="constrained")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(task["classes"]) == len(table) <= 30:
        axes.set_xticks(range(len(table)), task["classes"], rotation=90, fontsize=7)
        axes.set_yticks(range(len(table)), task["classes"], fontsize=7)
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    axes.set_title(task["title"], fontsize=9)
    figure.colorbar(image)
    _close(figure, path)


def _close(figure: pyplot.Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
