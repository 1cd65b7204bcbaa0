"""The figures of a study: ablations, layers, voices, training, from `results.collect`."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, TypedDict

from musicssl.probing import curves
from musicssl.probing.schema import LevelResult
from musicssl.study import svg
from musicssl.study.schema import EncoderScore, Study, StudyTask
from musicssl.study.svg import Axes, Point, Series
from musicssl.study.tables import changes

# Leaves by which configurations are grouped, and their titles. A configuration varies the first of
# these leaves that it changes; its other changes are mentioned with that.
_AXES = {
    "teacher.feature": "iteration: targets from MFCC, or from a layer of the first encoder",
    "teacher.ceps": "MFCC coefficients, each with two differences",
    "teacher.clusters": "clusters",
    "data.crop_frames": "crop, 20 ms frames",
    "mask.probability": "mask probability",
    "mask.span": "mask span, 20 ms frames",
    "data2vec.top_layers": "blocks averaged into targets",
    "steps": "updates",
}
_VALUES = {"mfcc": "MFCC", "layer": "a layer"}
VOICES = "voices"
# The training scalars that are drawn, by family: (name, title, a second scalar, drawn dotted).
_TRAINING = {
    "music2vec": (
        ("loss", "loss: squared error at masked frames", ""),
        ("target_std", "standard deviation of targets (0: collapsed)", ""),
        ("prediction_std", "standard deviation of predictions", ""),
        ("grad_norm", "norm of the gradient", ""),
    ),
    "musichubert": (
        ("loss", "loss: cross entropy at masked frames, nats", ""),
        (
            "masked_accuracy",
            "accuracy at masked frames, as a share (dotted: of the commonest label)",
            "majority",
        ),
        ("label_perplexity", "perplexity of the labels", ""),
        ("grad_norm", "norm of the gradient", ""),
    ),
}
COMPARED = {
    "logmel": "5 2",
    "cqt": "1.5 2",
    "chroma": "7 2 1.5 2",
}  # drawn dashed, with each encoder's layers


class Ablation(TypedDict):
    """Configurations that vary the same leaf of the same base.

    title: the leaf's readable name.
    models: (encoder, value of the leaf), including the base.
    """

    title: str
    base: str
    leaf: str
    models: list[tuple[str, Any]]


def style(study: Study) -> dict[str, tuple[str, str]]:
    """Return a colour and a dash for each encoder; baselines are grey."""
    encoders = study["encoders"]
    models = [x["name"] for x in encoders if x["kind"] in ("pre-trained", "given")]
    baselines = [x["name"] for x in encoders if x["name"] not in models]

    greys = ("#111111", "#666666", "#999999")
    styles = dict(zip(models, svg.colours(len(models)), strict=True))
    for number, name in enumerate(baselines):
        styles[name] = greys[number % 3], svg.DASHES[1 + number // 3 % 2]
    return styles


def ablations(study: Study) -> list[Ablation]:
    """Return what was varied."""
    groups: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for encoder in study["encoders"]:
        varies = encoder["varies"]
        if not varies or not varies["leaves"]:
            continue
        base, leaves = varies["base"], varies["leaves"]
        leaf = next((name for name in _AXES if name in leaves), next(iter(leaves)))
        base_value, own_value = leaves[leaf]
        models = groups.setdefault((base, leaf), [(base, base_value)])
        models.append((encoder["name"], own_value))

    return [
        {"title": _AXES.get(leaf, leaf), "base": base, "leaf": leaf, "models": _in_order(models)}
        for (base, leaf), models in groups.items()
    ]


def _in_order(models: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Sort numbers in ascending order, and leave words in their order."""
    if all(isinstance(value, int | float) for _, value in models):
        return sorted(models, key=lambda model: model[1])
    return models


def ablation(study: Study, group: Ablation) -> list[str]:
    """Draw a chart for each task: the score at each value, filled if it differs from the base."""
    charts = []
    for task in study["tasks"]:
        points = _ablation_points(study, group, task["name"])
        if len(points) < 2:
            continue

        # The range of y contains chance, all points and their intervals.
        values = [task["chance"]]
        for point in points:
            values += [point.y, *_interval_of(point)]
        low, high = svg.bounds(values, svg.NARROW)
        axes = Axes(
            f"{task['title']}: {task['score']} by {group['title']}",
            [(x, _value_name(value)) for x, (_, value) in enumerate(group["models"])],
            low=low,
            high=high,
            level=task["chance"],
            size=(165, 120),
        )
        drawn = svg.chart(axes, [Series("score", points, svg.PALETTE[0])])
        charts.append(_figure(drawn, _scored(task)))
    return charts


def _ablation_points(study: Study, group: Ablation, task: str) -> list[Point]:
    points = []
    for x, (name, _) in enumerate(group["models"]):
        score = study["scores"][name].get(task)
        if not score:
            continue
        test = score.get("from_base")
        differs = name == group["base"] or bool(test and test["likely"])
        low, high = score["interval"]
        points.append(Point(x, score["mean"], low, high, differs))
    return points


def _interval_of(point: Point) -> list[float]:
    return [value for value in (point.low, point.high) if value is not None]


def _value_name(value: Any) -> str:
    return str(_VALUES.get(value, value))


def also_changed(study: Study, group: Ablation) -> str:
    """Say what else the configurations of a group change; "" for nothing."""
    variations = {encoder["name"]: encoder["varies"] for encoder in study["encoders"]}
    others: dict[Any, dict[str, list[Any]]] = {}
    for name, value in group["models"]:
        varies = variations[name]
        if name != group["base"] and varies:
            leaves = varies["leaves"].items()
            others[value] = {leaf: pair for leaf, pair in leaves if leaf != group["leaf"]}
    return "; ".join(
        f"{_VALUES.get(value, value)} also changes {changes(leaves)}"
        for value, leaves in others.items()
        if leaves
    )


def _scored(task: StudyTask) -> str:
    return f"{task['title']}, {task['score']}"


def _figure(drawn: str, caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def _scores_of(study: Study, task: StudyTask) -> dict[str, EncoderScore]:
    """Return the scores of a task, by encoder, in the study's order."""
    scores = {}
    for encoder in study["encoders"]:
        score = study["scores"][encoder["name"]].get(task["name"])
        if score:
            scores[encoder["name"]] = score
    return scores


def _titles(study: Study) -> dict[str, str]:
    return {encoder["name"]: encoder["title"] for encoder in study["encoders"]}


def layers(study: Study, task: StudyTask) -> str:
    """Return a table of encoders and layers, shaded from chance to the best layer's score."""
    # The columns, and the score that is shaded darkest.
    titles, scores = _titles(study), _scores_of(study, task)
    sources: dict[str, None] = {}
    best = float("-inf")
    for score in scores.values():
        sources |= dict.fromkeys(score["layers"])
        best = max(best, *score["layers"].values())

    # A row for each encoder.
    head = "".join(f"<th>{escape(source)}</th>" for source in sources)
    lines = [f"<table class='heat'><thead><tr><th></th>{head}</tr></thead><tbody>"]
    for name, score in scores.items():
        cells = [
            _shaded(score["layers"].get(source), task["chance"], best, source == score["layer"])
            for source in sources
        ]
        lines.append(f"<tr><th>{escape(titles[name])}</th>{''.join(cells)}</tr>")
    return "".join([*lines, "</tbody></table>"])


def _shaded(value: float | None, low: float, high: float, chosen: bool) -> str:
    """Return a cell, with a border if validation chose the layer."""
    if value is None:
        return "<td></td>"
    share = min(max((value - low) / max(high - low, svg.NARROW), 0), 1)
    colour = svg.mixed("#ffffff", "#08519c", share)
    text = "#fff" if share > 0.55 else "#111"
    mark = " class='chosen'" if chosen else ""
    return f"<td{mark} style='background:{colour};color:{text}'>{100 * value:.0f}</td>"


def factors(study: Study, task: StudyTask) -> list[str]:
    """Return the factors by whose levels any encoder's scores of a task are split."""
    names: dict[str, None] = {}
    for score in _scores_of(study, task).values():
        names |= dict.fromkeys(score["factors"])
    return [name for name in names if name != "all"]


def _levels_of(score: EncoderScore, factor: str) -> list[LevelResult]:
    """Return the levels of a factor, numbers in ascending order."""
    levels = score["factors"].get(factor, [])
    numbers = [_number(level["level"]) for level in levels]
    if any(number is None for number in numbers):
        return levels
    return sorted(levels, key=lambda level: float(level["level"]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _level_points(score: EncoderScore, factor: str, source: str) -> list[Point]:
    points = []
    for x, level in enumerate(_levels_of(score, factor)):
        if value := level["sources"].get(source):
            points.append(Point(x, value["mean"]))
    return points


def _level_axes(
    title: str, score: EncoderScore, factor: str, size: tuple[int, int], values: Sequence[float]
) -> Axes:
    levels = _levels_of(score, factor)
    ticks = [(x, level["level"].replace("_", " ")) for x, level in enumerate(levels)]
    chances = [level["chance"] for level in levels]
    high = min(svg.bounds([*values, *chances])[1], 1.02)
    return Axes(title, ticks, curves.AXES.get(factor, factor), 0, high, None, size=size)


def _chance_series(score: EncoderScore, factor: str) -> Series:
    points = [Point(x, level["chance"]) for x, level in enumerate(_levels_of(score, factor))]
    return Series("chance", points, "#888888", "1 2", 1.2, 0)


def by_level(study: Study, task: StudyTask, factor: str) -> str:
    """Draw every encoder's score by level, for the layer that validation chose.

    Baselines are grey; those that are signal features are named at the ends of their lines.
    """
    styles, scores = style(study), _scores_of(study, task)
    scored = {name: score for name, score in scores.items() if factor in score["factors"]}
    series = []
    for encoder in study["encoders"]:
        name, title = encoder["name"], encoder["title"]
        if name not in scored:
            continue
        points = _level_points(scored[name], factor, scored[name]["layer"])
        label = title if encoder["kind"] == "features" else ""
        series.append(Series(title, points, *styles[name], 1.3, 1.8, label))

    # The last encoder's levels and chances are the same as all others'.
    *_, last = scored.values()
    axes = _level_axes(f"{task['title']} by {factor}", last, factor, (300, 210), _heights(series))
    return _figure(svg.chart(axes, [_chance_series(last, factor), *series]), _scored(task))


def _heights(series: Sequence[Series]) -> list[float]:
    heights = []
    for line in series:
        heights += [point.y for point in line.points]
    return heights


def mean_reach(study: Study, factor: str) -> float:
    """Return how far 95 % intervals at a factor's levels reach to each side, on average."""
    widths = []
    for tasks in study["scores"].values():
        for score in tasks.values():
            for level in score["factors"].get(factor, ()):
                low, high = level["sources"][score["layer"]]["interval"]
                widths.append(high - low)
    return sum(widths) / 2 / max(len(widths), 1)


def by_layer(study: Study, task: StudyTask, factor: str) -> list[str]:
    """Draw a chart for each encoder: a line per layer, dark to light, and baselines."""
    titles, all_scores = _titles(study), _scores_of(study, task)
    scores = {name: score for name, score in all_scores.items() if factor in score["factors"]}

    # All charts have the same range of y.
    heights = []
    for score in scores.values():
        for level in _levels_of(score, factor):
            heights += [value["mean"] for value in level["sources"].values()]

    charts = []
    for encoder, score in scores.items():
        if len(score["layers"]) == 1:
            continue

        # Chance, baselines, and then the layers.
        series = [_chance_series(score, factor)]
        for name, dash in COMPARED.items():
            if name in scores:
                points = _level_points(scores[name], factor, scores[name]["layer"])
                series.append(Series(titles[name], points, "#111111", dash, 1.1, 0))
        blocks = [source for source in score["layers"] if source != "sum"]
        for place, source in enumerate(blocks):
            colour = svg.ramp(place / max(len(blocks) - 1, 1))
            points = _level_points(score, factor, source)
            series.append(Series(f"layer {source}", points, colour, dot=1.8))
        title = f"{titles[encoder]}: {task['title']}"
        axes = _level_axes(title, score, factor, (165, 120), heights)
        charts.append(_figure(svg.chart(axes, series), titles[encoder]))
    return charts


def training(study: Study, family: str) -> list[str]:
    """Draw the curves of all runs of a family, one chart per scalar."""
    # A chart for each scalar, with one or two lines for each run.
    styles, charts = style(study), []
    for name, title, second in _TRAINING.get(family, (("loss", "loss", ""),)):
        series = []
        for encoder in study["encoders"]:
            run = encoder["run"]
            if not run or encoder["family"] != family:
                continue
            colour, dash = styles[encoder["name"]]
            series.append(_curve(encoder["title"], run["curves"].get(name, ()), colour, dash))
            if second:
                line = f"{encoder['title']}, {second}"
                series.append(_curve(line, run["curves"].get(second, ()), colour, "1 3"))

        # The axes reach as far as the longest run.
        updates: list[float] = []
        for drawn in series:
            updates += [point.x for point in drawn.points]
        last = max(updates, default=1)
        ticks = [(x, f"{x:g}") for x in svg.nice_steps(0, last)]
        low, high = svg.bounds(_heights(series))
        axes = Axes(title, ticks, "updates", low, high, scale=1, size=(300, 200))
        charts.append(_figure(svg.chart(axes, series), title))
    return charts


def _curve(name: str, values: Iterable[Sequence[float]], colour: str, dash: str) -> Series:
    points = [Point(step, value) for step, value in values]
    return Series(name, points, colour, dash, 1.3, 0)
