"""The figures of a study: ablations, layers, voices, training, from `results.collect`."""

from collections.abc import Iterable
from html import escape
from typing import Any

from musicssl.probing import curves
from musicssl.study import svg
from musicssl.study.svg import Axes, Point, Series
from musicssl.study.tables import changes

# Leaves by which configurations are put in order, what each is called; the first that a
# configuration changes is what it varies, others come with it.
AXES = {
    "teacher.feature": "iteration: targets from MFCC, or from a layer of the first's encoder",
    "teacher.ceps": "MFCC coefficients, each with two differences",
    "teacher.clusters": "clusters",
    "data.crop_frames": "crop, 20 ms frames",
    "mask.probability": "mask probability",
    "mask.span": "mask span, 20 ms frames",
    "data2vec.top_layers": "blocks averaged into targets",
    "steps": "updates",
}
VALUES = {"mfcc": "MFCC", "layer": "a layer"}
VOICES = "voices"
TRAINING = {  # what is looked at, by family: title, and a second scalar drawn dotted
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
COMPARED = {"logmel": "5 2", "cqt": "1.5 2", "chroma": "7 2 1.5 2"}  # beside each encoder's layers


def style(found: dict) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each encoder; baselines are grey."""
    names = [x["name"] for x in found["encoders"] if x["kind"] in ("pre-trained", "given")]
    others = [x["name"] for x in found["encoders"] if x["name"] not in names]
    greys = ("#111111", "#666666", "#999999")
    styled = dict(zip(names, svg.colours(len(names)), strict=True))
    for number, name in enumerate(others):
        styled[name] = greys[number % 3], svg.DASHES[1 + number // 3 % 2]
    return styled


def ablations(found: dict) -> list[dict[str, Any]]:
    """What was varied: {"title", "base", "leaf", "models": [(name, value)]}, the base too."""
    groups: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for encoder in found["encoders"]:
        varied = encoder["varies"]
        if not varied or not varied["leaves"]:
            continue
        leaf = next((x for x in AXES if x in varied["leaves"]), next(iter(varied["leaves"])))
        there, here = varied["leaves"][leaf]
        models = groups.setdefault((varied["base"], leaf), [(varied["base"], there)])
        models.append((encoder["name"], here))
    return [
        {"title": AXES.get(leaf, leaf), "base": base, "leaf": leaf, "models": in_order(models)}
        for (base, leaf), models in groups.items()
    ]


def in_order(models: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Numbers ascending; words as they come."""
    if all(isinstance(value, int | float) for _, value in models):
        return sorted(models, key=lambda x: x[1])
    return models


def ablation(found: dict, group: dict) -> list[str]:
    """One chart a task: the score at each value, filled where it differs from the base."""
    ticks = [(i, str(VALUES.get(value, value))) for i, (_, value) in enumerate(group["models"])]
    charts = []
    for task in found["tasks"]:
        points = []
        for x, (name, _) in enumerate(group["models"]):
            if not (score := found["scores"][name].get(task["name"])):
                continue
            test = score["from_base"]
            differs = name == group["base"] or bool(test and test["likely"])
            points.append(Point(x, score["mean"], *score["interval"], differs))
        if len(points) < 2:
            continue
        values = [v for p in points for v in (p.y, p.low, p.high)] + [task["chance"]]
        axes = Axes(
            f"{task['title']}: {task['score']} by {group['title']}",
            ticks, "", *svg.bounds(values, svg.NARROW), level=task["chance"], size=(165, 120),
        )  # fmt: skip
        drawn = svg.chart(axes, [Series("score", points, svg.PALETTE[0])])
        charts.append(figure(drawn, scored(task)))
    return charts


def also(found: dict, group: dict) -> str:
    """What else the configurations of a group change, "" for nothing."""
    varied = {x["name"]: x["varies"] for x in found["encoders"]}
    others = {
        value: {k: v for k, v in varied[name]["leaves"].items() if k != group["leaf"]}
        for name, value in group["models"]
        if name != group["base"]
    }
    return "; ".join(
        f"with {VALUES.get(value, value)} goes {changes(leaves)}"
        for value, leaves in others.items()
        if leaves
    )


def scored(task: dict) -> str:
    return f"{task['title']}, {task['score']}"


def figure(drawn: str, caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>"


def layers(found: dict, task: dict) -> str:
    """A table of encoders and layers, shaded from chance to the best that any layer reached."""
    rows = [
        (x["title"], found["scores"][x["name"]][task["name"]])
        for x in found["encoders"]
        if task["name"] in found["scores"][x["name"]]
    ]
    sources = list(dict.fromkeys(source for _, score in rows for source in score["layers"]))
    best = max(value for _, score in rows for value in score["layers"].values())
    head = "".join(f"<th>{escape(x)}</th>" for x in sources)
    lines = [f"<table class='heat'><thead><tr><th></th>{head}</tr></thead><tbody>"]
    for name, score in rows:
        cells = "".join(
            shaded(score["layers"].get(x), task["chance"], best, x == score["layer"])
            for x in sources
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return "".join([*lines, "</tbody></table>"])


def shaded(value: float | None, low: float, high: float, chosen: bool) -> str:
    """A cell; the layer that validation chose has a border."""
    if value is None:
        return "<td></td>"
    share = min(max((value - low) / max(high - low, svg.NARROW), 0), 1)
    colour = svg.mixed("#ffffff", "#08519c", share)
    text = "#fff" if share > 0.55 else "#111"
    mark = " class='chosen'" if chosen else ""
    return f"<td{mark} style='background:{colour};color:{text}'>{100 * value:.0f}</td>"


def factors(task: str, found: dict) -> list[str]:
    """The factors at whose levels a task is scored by any encoder."""
    each = (found["scores"][x["name"]].get(task, {}).get("factors", {}) for x in found["encoders"])
    return [x for x in dict.fromkeys(f for one in each for f in one) if x != "all"]


def levels_of(score: dict, factor: str) -> list[dict]:
    """The levels of a factor, numbers in their order."""
    levels = score["factors"].get(factor, [])
    if all(number(x["level"]) is not None for x in levels):
        return sorted(levels, key=lambda x: number(x["level"]))
    return levels


def number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def level_points(score: dict, factor: str, source: str, whiskers: bool = False) -> list[Point]:
    points = []
    for x, level in enumerate(levels_of(score, factor)):
        if value := level["sources"].get(source):
            interval = value["interval"] if whiskers and value.get("interval") else (None, None)
            points.append(Point(x, value["mean"], *interval))
    return points


def level_axes(title: str, score: dict, factor: str, size: tuple[int, int], values: list) -> Axes:
    levels = levels_of(score, factor)
    ticks = [(x, str(level["level"]).replace("_", " ")) for x, level in enumerate(levels)]
    chances = [level["chance"] for level in levels]
    high = min(svg.bounds([*values, *chances])[1], 1.02)
    return Axes(title, ticks, curves.AXES.get(factor, factor), 0, high, None, size=size)


def chance_series(score: dict, factor: str) -> Series:
    points = [Point(x, level["chance"]) for x, level in enumerate(levels_of(score, factor))]
    return Series("chance", points, "#888888", "1 2", 1.2, 0)


def by_level(found: dict, task: dict, factor: str) -> str:
    """Every encoder's score by level, at the layer that validation chose; the baselines in grey,
    those that are features named where their lines end."""
    styled, series, held = style(found), [], None
    for x in found["encoders"]:
        score = found["scores"][x["name"]].get(task["name"])
        if not score or factor not in score["factors"]:
            continue
        held = score
        points = level_points(score, factor, score["layer"])
        label = x["title"] if x["kind"] == "features" else ""
        series.append(Series(x["title"], points, *styled[x["name"]], 1.3, 1.8, label))
    values = [p.y for s in series for p in s.points]
    axes = level_axes(f"{task['title']} by {factor}", held, factor, (300, 210), values)
    return figure(svg.chart(axes, [chance_series(held, factor), *series]), scored(task))


def reach(found: dict, factor: str) -> float:
    """How far 95 % intervals at a factor's levels reach to either side, on average."""
    widths = [
        level["sources"][score["layer"]]["interval"]
        for one in found["scores"].values()
        for score in one.values()
        for level in score["factors"].get(factor, ())
    ]
    return sum(high - low for low, high in widths) / 2 / max(len(widths), 1)


def by_layer(found: dict, task: dict, factor: str) -> list[str]:
    """A chart an encoder: a line for each of its layers, dark to light, beside baselines."""
    name = task["name"]
    scores = {
        x["name"]: found["scores"][x["name"]][name]
        for x in found["encoders"]
        if factor in found["scores"][x["name"]].get(name, {}).get("factors", {})
    }
    titles = {x["name"]: x["title"] for x in found["encoders"]}
    every = [
        value["mean"]
        for score in scores.values()
        for level in levels_of(score, factor)
        for value in level["sources"].values()
    ]
    charts = []
    for encoder, score in scores.items():
        if len(score["layers"]) == 1:
            continue
        series = [chance_series(score, factor)]
        for beside in filter(scores.get, COMPARED):
            points = level_points(scores[beside], factor, scores[beside]["layer"])
            series.append(Series(titles[beside], points, "#111111", COMPARED[beside], 1.1, 0))
        blocks = [x for x in score["layers"] if x != "sum"]
        for place, source in enumerate(blocks):
            colour = svg.ramp(place / max(len(blocks) - 1, 1))
            points = level_points(score, factor, source)
            series.append(Series(f"layer {source}", points, colour, dot=1.8))
        axes = level_axes(f"{titles[encoder]}: {task['title']}", score, factor, (165, 120), every)
        charts.append(figure(svg.chart(axes, series), titles[encoder]))
    return charts


def training(found: dict, family: str) -> list[str]:
    """Curves of all runs of a family, one chart a scalar."""
    styled, charts = style(found), []
    runs = [x for x in found["encoders"] if x["family"] == family and x["run"]]
    for name, title, second in TRAINING.get(family, (("loss", "loss", ""),)):
        series = []
        for x in runs:
            curves, (colour, dash) = x["run"]["curves"], styled[x["name"]]
            series.append(curve(x["title"], curves.get(name, ()), colour, dash))
            if second:
                series.append(
                    curve(f"{x['title']}, {second}", curves.get(second, ()), colour, "1 3")
                )
        values = [p.y for s in series for p in s.points]
        last = max((p.x for s in series for p in s.points), default=1)
        ticks = [(x, f"{x:g}") for x in svg.nice_steps(0, last)]
        axes = Axes(title, ticks, "updates", *svg.bounds(values), scale=1, size=(300, 200))
        charts.append(figure(svg.chart(axes, series), title))
    return charts


def curve(name: str, values: Iterable, colour: str, dash: str) -> Series:
    points = [Point(step, value) for step, value in values]
    return Series(name, points, colour, dash, 1.3, 0)
