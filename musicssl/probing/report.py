"""Results on disk: results.json, a Markdown table beside published rows, and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from musicssl import paths
from musicssl.probing import curves, metrics, published
from musicssl.probing.schema import About, Results, TaskResult

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

RESULTS, _TABLE = "results.json", "results.md"


def save(out: Path, result: TaskResult, about: About) -> None:
    """Put a task's result into <out>/results.json, in place of an earlier one of that task.

    Raises:
      ValueError: the directory holds results of another encoder.
    """
    # Take what is there, if it is of the same encoder.
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS
    tasks: dict[str, TaskResult] = {}
    if path.exists():
        earlier = load(out)
        tasks = earlier["tasks"]
        if tasks and earlier["digest"] != about["digest"]:
            raise ValueError(
                f"{path} is of another encoder ({earlier['features']}): set config.results to "
                "another directory, or move that one away"
            )

    # Write under another name first, so that results.json is never half a file.
    tasks = tasks | {result["task"]: result}
    results: Results = {**about, "tasks": tasks}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.rename(path)


def load(out: Path) -> Results:
    """Read <out>/results.json.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is damaged.
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
    """Write the table and the pictures of <out>/results.json, and return the table."""
    results = load(out)
    table = _markdown(results)
    (out / _TABLE).write_text(table)

    tasks = results["tasks"]
    for name, task in tasks.items():
        _draw_layers(task, out / f"{name}-layers.png")
        if task["confusion"]:
            _draw_confusion(task, out / f"{name}-confusion.png")
    _draw_heat_map(tasks, out / "layers.png")
    curves.draw(curves.of_layers(tasks), out / "factors.png")
    return table


def _markdown(results: Results) -> str:
    """Return the table of an encoder's results, x 100, with chance and published rows."""
    tasks = results["tasks"]
    first = next(iter(tasks.values()))
    probe = first.get("settings", results["config"])["kind"]
    lines = [
        f"Encoder: {results['features']}. Probe: {probe}. Scores x 100; the layer "
        "and learning rate are chosen on validation; mean over seeds ± their standard deviation, "
        "and the 95 % bootstrap interval over test items of the seed that did best on validation.",
        "",
        "| task | score | test | interval | layer | chance | published |",
        "|---|---|---|---|---|---|---|",
    ]

    # A row a score, and what is to be known of them.
    for name, task in tasks.items():
        lines += [f"| {' | '.join(cells)} |" for cells in _score_rows(name, task)]

    if any(published.scores(name) for name in tasks):
        lines += ["", f"Published: {published.MARBLE} (frozen encoder, the same grid)."]
    lines += ["", *_factor_table(tasks), *notes(tasks)]
    return "\n".join(lines).rstrip() + "\n"


def _score_rows(name: str, task: TaskResult) -> list[list[str]]:
    """Return the cells of a task's rows, one row a score; the main score's row says most."""
    low, high = task["chosen"]["interval"]
    models = published.scores(name)
    rows = []
    for score, value in task["chosen"]["test"].items():
        # The title, the interval and the layer stand in the main score's row alone.
        title, interval, layer = "", "", ""
        if score == task["score"]:
            title, layer = task["title"], task["chosen"]["source"]
            interval = f"{100 * low:.1f} to {100 * high:.1f}"

        others = [f"{model} {100 * v[score]:.1f}" for model, _, v in models if score in v]
        rows.append([
            title,
            score,
            f"{100 * value['mean']:.1f} ± {100 * value['sd']:.1f}",
            interval,
            layer,
            f"{100 * task['chance'][score]:.1f}",
            ", ".join(others),
        ])  # fmt: skip
    return rows


def _factor_table(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Return a table of scores at each level of each factor, of the layer that was chosen."""
    lines = ["| task | factor | score at each level, and its interval |", "|---|---|---|"]
    for name, factor in curves.panels(tasks):
        task = tasks[name]
        cells = []
        for level in task["factors"][factor]:
            score = level["sources"][task["chosen"]["source"]]
            low, high = score["interval"]
            cells.append(
                f"{level['level']}: {100 * score['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            )
        lines.append(f"| {task['title']} | {factor} | {', '.join(cells)} |")
    return [*lines, ""] if lines[2:] else []


def notes(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Say of which tasks figures do not compare with published ones or the first's, and why."""
    lines = []
    first = next(iter(tasks.values()))
    for name, task in tasks.items():
        if settings := unlike(task, first):
            lines.append(f"- {name}: probed with {settings}")
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


def unlike(task: TaskResult, other: TaskResult) -> str:
    """Return in words which settings of a result's probes are not another's, of those in both."""
    ours, theirs = task.get("settings", {}), other.get("settings", {})
    changed = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return ", ".join(f"{name} {ours[name]} instead of {theirs[name]}" for name in sorted(changed))


def compare(folders: Sequence[Path], out: Path) -> str:
    """Write a table and pictures of several encoders' main scores, and return the table.

    Scores are means over seeds. The 95 % interval over test items and, from the second encoder on,
    p of the paired test against the first are of the seed that did best on validation.

    Raises:
      ValueError: the results have no task in common.
    """
    encoders = [load(folder) for folder in folders]
    names = [_short_name(encoder) for encoder in encoders]
    tasks = [encoder["tasks"] for encoder in encoders]
    shared = [name for name in tasks[0] if _all_have(tasks, name)]
    if not shared:
        raise ValueError("the results to compare have no task in common")

    # The table: a row a task, a column an encoder.
    lines = [
        f"| task | score | {' | '.join(names)} | chance |",
        "|---" * (len(names) + 3) + "|",
    ]
    for name in shared:
        first = tasks[0][name]
        score = first["score"]
        cells = [_compared_cell(of_encoder[name], first) for of_encoder in tasks]
        chance = 100 * first["chance"][score]
        lines.append(f"| {first['title']} | {score} | {' | '.join(cells)} | {chance:.1f} |")

    # What is to be known of it.
    lines += ["", f"p: paired bootstrap test against {names[0]} on the same test items."]
    for name in shared:
        for encoder, of_encoder in zip(names[1:], tasks[1:], strict=True):
            if settings := unlike(of_encoder[name], tasks[0][name]):
                lines.append(f"- {name}: {encoder} was probed with {settings}")
    table = "\n".join(lines) + "\n"

    # Write it, and draw the same.
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(table)
    common = []
    for of_encoder in tasks:
        common.append({name: of_encoder[name] for name in shared})
    _draw_bars(common, names, out / "compare.png")
    curves.draw(curves.of_encoders(names, common), out / "compare-factors.png")
    return table


def _all_have(encoders: Sequence[Mapping[str, TaskResult]], task: str) -> bool:
    return all(task in tasks for tasks in encoders)


def _short_name(results: Results) -> str:
    kind, path = paths.split_kind(results["encoder"])
    return f"{kind}{Path(path).name}"


def _compared_cell(task: TaskResult, first: TaskResult) -> str:
    """Return an encoder's main score, its interval, and p against the first encoder."""
    mean = task["chosen"]["test"][first["score"]]["mean"]
    low, high = task["chosen"]["interval"]
    text = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    difference = None if task is first else against(task, first)
    return f"{text}, p {difference.p:.3f}" if difference else text


def against(task: TaskResult, other: TaskResult) -> metrics.Difference | None:
    """Return the paired test of two encoders' results, or None where the test items differ."""
    if task.get("test_items") is None or task["test_items"] != other.get("test_items"):
        return None
    return metrics.paired(task["chosen"]["draws"], other["chosen"]["draws"])


def _main_score(result: TaskResult) -> float:
    return result["chosen"]["test"][result["score"]]["mean"]


def _draw_bars(
    encoders: Sequence[Mapping[str, TaskResult]], names: Sequence[str], path: Path
) -> None:
    """Draw main test scores: a group of bars a task, intervals over items, chance as a line.

    Args:
      encoders: results of the same tasks, of each encoder.
      names: of the encoders.
    """
    first = encoders[0]
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.6 * len(first), 3.6), layout="constrained")

    # Bars, of one encoder after another.
    wide = 0.8 / len(encoders)
    for number, (encoder, name) in enumerate(zip(encoders, names, strict=True)):
        values = [_main_score(result) for result in encoder.values()]
        low, high = np.array([result["chosen"]["interval"] for result in encoder.values()]).T
        place = np.arange(len(encoder)) + (number - (len(encoders) - 1) / 2) * wide
        error = np.maximum([np.subtract(values, low), np.subtract(high, values)], 0)
        axes.bar(place, values, wide, yerr=error, label=name, error_kw={"lw": 0.8})

    # Chance, and what stands below.
    for x, result in enumerate(first.values()):
        axes.hlines(result["chance"][result["score"]], x - 0.45, x + 0.45, "k", "dotted")
    labels = [f"{name}\n{result['score']}" for name, result in first.items()]
    axes.set_xticks(range(len(first)), labels, fontsize=8)
    axes.set_ylabel("test score (dotted: chance)")
    axes.legend(fontsize=8)
    _close(figure, path)


def _draw_layers(task: TaskResult, path: Path) -> None:
    """Draw the test score by layer, of each layer's best learning rate."""
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


def _draw_heat_map(tasks: Mapping[str, TaskResult], path: Path) -> None:
    """Draw layers x tasks: each task's test scores from its worst layer (0) to its best (1)."""
    # Scale each task's scores between its worst and its best layer.
    sources = curves.sources_of(tasks)
    grid = np.full((len(tasks), len(sources)), np.nan)
    for row, task in enumerate(tasks.values()):
        values = {x["source"]: x["test"][task["score"]]["mean"] for x in task["layers"]}
        low, high = min(values.values()), max(values.values())
        for source, value in values.items():
            grid[row, sources.index(source)] = (value - low) / max(high - low, 1e-9)

    # Draw them.
    size = (2.5 + 0.4 * len(sources), 1.2 + 0.35 * len(tasks))
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(grid, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(sources)), sources)
    axes.set_yticks(range(len(tasks)), list(tasks), fontsize=8)
    axes.set_xlabel("layer")
    figure.colorbar(image, label="worst to best layer")
    _close(figure, path)


def _draw_confusion(task: TaskResult, path: Path) -> None:
    """Draw test items by label and answer, as shares of the label's items."""
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


def _close(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
