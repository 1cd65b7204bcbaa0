"""Results on disk: results.json, a Markdown table beside published rows, and pictures."""

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from musicssl import paths
from musicssl.probing import columns, curves, published, search
from musicssl.probing.schema import PROTOCOL, About, BesideResult, Results, TaskResult

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

RESULTS, _TABLE = "results.json", "results.md"


def refuse_others(out: Path, digest: str, name: str) -> None:
    """Raise ValueError where a directory holds results of another encoder, before work is done."""
    held = load(out) if (out / RESULTS).exists() else None
    if held and held["tasks"] and held["digest"] != digest:
        raise ValueError(
            f"{out / RESULTS} is of another encoder ({held['features']}, and this is {name}): set "
            "config.results to another directory, or move that one away"
        )


def save(out: Path, result: TaskResult, about: About) -> None:
    """Put a task's result into <out>/results.json, in place of an earlier one of that task.

    Raises:
      ValueError: the directory holds results of another encoder.
    """
    # Take what is there, if it is of the same encoder.
    refuse_others(out, about["digest"], about["features"])
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS
    tasks: dict[str, TaskResult] = load(out)["tasks"] if path.exists() else {}

    tasks = tasks | {result["task"]: result}
    results: Results = {**about, "tasks": tasks}
    paths.write(path, (json.dumps(results, indent=1) + "\n").encode())


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
        if not _has_tasks(held):
            raise ValueError("it holds no results")
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} is damaged ({error}): move it away and probe again") from error
    for settings in (held.get("config"), *(x.get("settings") for x in held["tasks"].values())):
        if settings and "probe" in settings:  # as older versions called the leaf `kind`
            settings["kind"] = settings.pop("probe")
    for task in held["tasks"].values():
        draws = task.get("chosen", {}).get("draws", [])
        if draws and not isinstance(draws[0], list):  # older versions wrote those of one seed
            task["chosen"]["draws"] = [draws]
    return held


def _has_tasks(held: Any) -> bool:
    return isinstance(held, dict) and isinstance(held.get("tasks"), dict)


def write(out: Path) -> str:
    """Write the table and the pictures of <out>/results.json, and return the table."""
    results = load(out)
    table = _markdown(results)
    paths.write(out / _TABLE, table.encode())

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
    kind = first.get("settings", results["config"])["kind"]
    scores = "Scores x 100, with the 95 % bootstrap interval over test clips."
    if kind != search.RIDGE:
        scores = (
            "Scores x 100; mean over seeds ± their standard deviation, and the mean's 95 % "
            "bootstrap interval over test clips and seeds."
        )
    lines = [
        f"Encoder: {results['features']}. {ruler(kind)} {scores}",
        "",
        "| task | score | test | interval | layer | chance | published |",
        "|---|---|---|---|---|---|---|",
    ]

    # A row for each score, and notes on them.
    for name, task in tasks.items():
        lines += [f"| {' | '.join(cells)} |" for cells in _score_rows(name, task)]

    lines += _published_lines(tasks)
    lines += ["", *_beside_table(tasks), *_deformed_table(tasks), *_geometry_table(tasks)]
    lines += [*_factor_table(tasks), *notes(tasks)]
    return "\n".join(lines).rstrip() + "\n"


def ruler(kind: str) -> str:
    """Say in a sentence or two what a kind of probe measures with."""
    if kind == search.RIDGE:
        return (
            "Probe: ridge regression in closed form on standardised features of each layer and of "
            "all layers side by side (concat); penalty and layer are chosen on validation, and "
            "nothing is drawn at random, so that intervals are over test clips alone, or over "
            "training seeds too where several runs are compared."
        )
    hidden = "with a hidden layer" if kind == "mlp" else "linear"
    return f"Probe: {hidden}, trained; layer and learning rate are chosen on validation."


def _published_lines(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Say where published figures are from, and how the probes beside them differ."""
    differing: dict[str, list[str]] = {}
    for name, task in tasks.items():
        if published.scores(name):
            older = task.get("protocol", 1) != PROTOCOL
            apart = "an earlier version's" if older else published.apart(task.get("settings"))
            differing.setdefault(apart, []).append(name)
    if not differing:
        return []

    lines = [f"Published: {published.MARBLE}, of frozen encoders; {published.DEVIATIONS}."]
    if list(differing) == [""]:
        lines.append("The grid of probes is the same.")
    else:
        for settings, names in differing.items():
            grid = f"another grid: {settings}" if settings else "the same grid"
            lines.append(f"- {', '.join(names)}: {grid}")
    return ["", *lines]


def _score_rows(name: str, task: TaskResult) -> list[list[str]]:
    """Return the cells of a task's rows, one row a score; the main score's row has the most."""
    low, high = task["chosen"]["interval"]
    drawn = task.get("settings", {}).get("kind") != search.RIDGE
    models = published.scores(name)
    rows = []
    for score, value in task["chosen"]["test"].items():
        # The title, the interval and the layer are in the main score's row alone.
        title, interval, layer = "", "", ""
        if score == task["score"]:
            title, layer = task["title"], task["chosen"]["source"]
            interval = f"{100 * low:.1f} to {100 * high:.1f}"

        others = [f"{model} {100 * v[score]:.1f}" for model, _, v in models if score in v]
        rows.append([
            title,
            score,
            f"{100 * value['mean']:.1f}" + (f" ± {100 * value['sd']:.1f}" if drawn else ""),
            interval,
            layer,
            f"{100 * task['chance'][score]:.1f}",
            ", ".join(others),
        ])  # fmt: skip
    return rows


def _beside_table(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Return a table of the scores of answers without training, beside the probes'."""
    lines = [
        "| task | score | probe | few items of each class | nearest neighbours |",
        "|---" * 5 + "|",
    ]
    for task in tasks.values():
        if "few_shot" in task or "knn" in task:
            score = task["score"]
            probe = f"{100 * task['chosen']['test'][score]['mean']:.1f}"
            cells = [_beside_cell(x, score) for x in (task.get("few_shot"), task.get("knn"))]
            lines.append(f"| {' | '.join([task['title'], score, probe, *cells])} |")
    if not lines[2:]:
        return []
    told = (
        "Few items of each class: the nearest class mean, over draws of the items. Nearest "
        "neighbours: the mean of what the k nearest training items are labelled with, by cosine. "
        "Single layers; layer and k are chosen on validation."
    )
    return [*lines, "", told, ""]


def _beside_cell(result: BesideResult | None, score: str) -> str:
    if result is None:
        return ""
    low, high = result["interval"]
    mean = 100 * result["test"][score]["mean"]
    of = f"layer {result['source']}, {result['number']}"
    return f"{mean:.1f} ({100 * low:.1f} to {100 * high:.1f}; {of})"


def _deformed_table(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Return a table of scores on deformed test items, and of how far they are below the others."""
    lines = ["| task | score | deformation | test | drop | p |", "|---" * 6 + "|"]
    for task in tasks.values():
        for result in task.get("deformed", []):
            low, high = result["interval"]
            drop = f"{100 * result['drop']:+.1f}"
            if result["drop_interval"]:
                least, most = result["drop_interval"]
                drop += f" ({100 * least:+.1f} to {100 * most:+.1f})"
            p = "other items" if result["p"] is None else f"{result['p']:.3f}"
            test = f"{100 * result['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            cells = [task["title"], task["score"], result["deformation"], test, drop, p]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines[2:]:
        return []
    told = (
        "Deformed: the probes above on the test's audio after a deformation that training has not "
        "heard. Drop: what the score loses, with its interval and p of the paired test."
    )
    return [*lines, "", told, ""]


def _geometry_table(tasks: Mapping[str, TaskResult]) -> list[str]:
    """Return a table of the geometry of each layer's features."""
    with_it = [task for task in tasks.values() if "geometry" in task]
    if not with_it:
        return []
    sources = [layer["source"] for layer in with_it[0]["geometry"]]
    lines = [f"| task | layer | {' | '.join(sources)} |", "|---" * (len(sources) + 2) + "|"]
    for task in with_it:
        layers = task["geometry"]
        rows = {
            "isotropy": [f"{x['isotropy']:.3f}" for x in layers],
            "effective rank": [f"{x['effective_rank']:.1f}" for x in layers],
            "mean cosine": [f"{x['mean_cosine']:.2f}" for x in layers],
        }
        lines += [f"| {task['title']} | {name} | {' | '.join(x)} |" for name, x in rows.items()]
    told = (
        "Geometry of training items' features: isotropy (IsoScore) from 0 to 1, effective rank "
        "from 1 to the width, mean cosine of two items."
    )
    return [*lines, "", told, ""]


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
    """Say which tasks' figures do not compare with published ones or the first task's, and why."""
    lines = []
    first = next(iter(tasks.values()))
    for name, task in tasks.items():
        if settings := columns.unlike(task, first):
            lines.append(f"- {name}: probed with {settings}")
        lines += [f"- {name}: {text}" for text in columns.of_earlier_versions(task)]
        if task["unscored_classes"]:
            lines.append(f"- {name}: not in the averages, since no test item or every one has "
                         f"them: {', '.join(task['unscored_classes'])}")  # fmt: skip
        if task["untrained_classes"]:
            lines.append(f"- {name}: no training item of {', '.join(task['untrained_classes'])}")
        built = list(task["items"].values())
        if task["published_items"] and built != list(task["published_items"]):
            lines.append(f"- {name}: {built} items in train, validation and test, but "
                         f"{list(task['published_items'])} are published")  # fmt: skip
    return lines


def compare(folders: Sequence[Path], out: Path) -> str:
    """Write a table and pictures of several encoders' main scores, and return the table.

    Results of runs that differ in their training seed alone are one column. Scores are means over
    seeds. Beside them are the 95 % interval over test clips and seeds and, from the second column
    on, p of the paired test against the first.

    Raises:
      ValueError: no two of the results have a task in common.
    """
    encoders = [load(folder) for folder in folders]
    shared = [name for name in encoders[0]["tasks"] if _all_have(encoders, name)]
    if not shared:
        if not any(a["tasks"].keys() & b["tasks"] for a, b in itertools.combinations(encoders, 2)):
            raise ValueError("the results to compare have no task in common")
        return "No task is in all of the results, so there is no table of them."

    # The table: a row for each task, a column for each encoder.
    shown = columns.of_results(encoders)
    names = [column.name for column in shown]
    first_task = encoders[0]["tasks"][shared[0]]
    kind = first_task.get("settings", encoders[0]["config"])["kind"]
    items = first_task["items"]
    lines = [
        f"{ruler(kind)} {shared[0]} has {items['train']} items to train on, {items['validation']} "
        f"to choose on and {items['test']} to test on.",
        "",
        f"| task | score | {' | '.join(names)} | chance |",
        "|---" * (len(names) + 3) + "|",
    ]
    for name in shared:
        first = encoders[0]["tasks"][name]
        score = first["score"]
        cells = [_compared_cell(column, shown[0], name) for column in shown]
        chance = 100 * first["chance"][score]
        lines.append(f"| {first['title']} | {score} | {' | '.join(cells)} | {chance:.1f} |")

    # Notes on the table.
    lines += [
        "",
        "Scores x 100, with 95 % bootstrap intervals over test clips; a score of several seeds is "
        "their mean, and its interval is over them too. p: paired bootstrap test against "
        f"{names[0]} on the same samples of test clips, seeds drawn for each column by itself.",
        *columns.notes(shown, shared),
    ]
    table = "\n".join(lines) + "\n"

    # Write the table, and draw it; pictures by factor have a curve for each training seed.
    out.mkdir(parents=True, exist_ok=True)
    paths.write(out / "compare.md", table.encode())
    _draw_bars(shown, shared, out / "compare.png")
    own = [{name: encoder["tasks"][name] for name in shared} for encoder in encoders]
    of_each = curves.of_encoders([columns.short_name(encoder) for encoder in encoders], own)
    curves.draw(of_each, out / "compare-factors.png")
    return table


def _all_have(encoders: Sequence[Results], task: str) -> bool:
    return all(task in encoder["tasks"] for encoder in encoders)


def _compared_cell(column: columns.Column, first: columns.Column, task: str) -> str:
    """Return a column's main score, its interval, and p against the first column."""
    mean, low, high = columns.main_score(column.results(task))
    text = f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    if column is first:
        return text
    difference = columns.against(column.results(task), first.results(task))
    return f"{text}, p {difference.p:.3f}" if difference else text


def _draw_bars(shown: Sequence[columns.Column], tasks: Sequence[str], path: Path) -> None:
    """Draw main test scores: a group of bars a task, 95 % intervals, chance as a line."""
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.6 * len(tasks), 3.6), layout="constrained")

    # Bars, of one column after another.
    wide = 0.8 / len(shown)
    for number, column in enumerate(shown):
        scores = [columns.main_score(column.results(name)) for name in tasks]
        values, low, high = np.array(scores).T
        place = np.arange(len(tasks)) + (number - (len(shown) - 1) / 2) * wide
        error = np.maximum([values - low, high - values], 0)
        axes.bar(place, values, wide, yerr=error, label=column.name, error_kw={"lw": 0.8})

    # Chance, and the labels below.
    first = [shown[0].results(name)[0] for name in tasks]
    for x, result in enumerate(first):
        axes.hlines(result["chance"][result["score"]], x - 0.45, x + 0.45, "k", "dotted")
    labels = [f"{name}\n{result['score']}" for name, result in zip(tasks, first, strict=True)]
    axes.set_xticks(range(len(tasks)), labels, fontsize=8)
    axes.set_ylabel("test score")
    axes.set_xlabel("vertical lines: 95 % intervals; dotted lines: chance", fontsize=8)
    figure.legend(fontsize=8, loc="outside upper center", ncols=min(len(shown), 4))
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
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    paths.write(path, drawn.getvalue())
    pyplot.close(figure)
