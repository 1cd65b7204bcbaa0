"""The page of a study, and every number on it as JSON."""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from musicssl.probing.curves import AXES
from musicssl.study import figures, results, svg
from musicssl.study import page as study_page
from musicssl.study.commands import dirty, every_stage, makers, provenance
from musicssl.study.results import LIKELY
from musicssl.study.tables import difference_table, encoder_table, reference, score_table

METHODS = (
    "<p>Both methods hide stretches of a recording from an encoder and ask for what was there. "
    "<b>music2vec</b> (data2vec 1.0) predicts what a slowly moving average of itself makes of the "
    "whole recording; <b>musicHuBERT</b> (HuBERT) the cluster of each hidden 20 ms, of MFCC "
    "features or, in a second iteration, of an earlier encoder's layer. The configurations are "
    "those of <i>On the Effectiveness of Speech Self-supervised Learning for Music</i> "
    "(arXiv:2307.05161), whose own scores are not shown here: they were not found.</p>"
)
GLOSSARY = (
    "Accuracy: share of items answered rightly. ROC-AUC: how often an item that has a label is put "
    "above one that has not, 50 by guessing. Weighted score: 100 for the right key, part of it for "
    "a related one. F: harmonic mean of precision and recall of beats, within 70 ms. R2: share of "
    "the variance explained."
)
SUITES = {
    "synth_music": "Synthesised music",
    "synth_polyphony": "What is heard of several voices",
}


def write(folder: Path) -> str:
    """Write the report of a study beside its results; return a line that says where.

    Raises:
      FileNotFoundError, ValueError: there is no study, or what it wrote cannot be read.
    """
    found = results.collect(folder)
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(strict(found), indent=1, allow_nan=False) + "\n")
    temporary = out / "index.tmp"
    temporary.write_text(page(found))
    temporary.rename(out / "index.html")
    counts = f"{len(found['encoders'])} encoders, {len(found['tasks'])} tasks"
    return f"{out / 'index.html'}: {counts}"


def strict(value: Any) -> Any:
    """The same with None for what is not a finite number, which JSON has no word for."""
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def page(found: dict) -> str:
    """The whole document."""
    sections = [
        ("encoders", "What was compared", METHODS + encoder_table(found)),
        ("scores", "Scores", scores(found)),
        ("ablations", "What each choice does", ablations(found)),
        ("layers", "Which layer knows", layers(found)),
        ("voices", "What is heard of several voices", voices(found)),
        ("training", "Training", training(found)),
        ("made", "How it was made", every_stage(found)),
    ]
    return study_page.document(
        f"A study of music encoders, {found['about']['scale']} scale",
        lead(found),
        [x for x in sections if x[2]],
    )


def lead(found: dict) -> str:
    about, tests = found["about"], tests_against(found, "from_reference")
    trained = [x for x in found["encoders"] if x["run"]]
    complete = sum(x["run"]["complete"] for x in trained)
    seconds = [x["made"]["cpu_seconds"] for x in found["stages"].values() if x["made"]]
    given = sum(x["kind"] == "given" for x in found["encoders"])
    baselines = len(found["encoders"]) - len(trained) - given
    counts = [
        f"{complete} of {len(trained)} encoders pre-trained here",
        *([f"{given} from elsewhere"] if given else []),
        f"{baselines} baseline{'s' * (baselines != 1)}",
    ]
    lines = [
        f"<p>{', '.join(counts)}; {len(found['tasks'])} tasks. "
        "Every encoder is frozen; a small classifier is trained on the features of each of its "
        "layers, the layer is chosen on validation items, and the score is that of test items "
        "which neither has seen.</p>",
    ]
    if about["scale"] == "demo":
        lines.append(
            "<p class='note'><b>These models show that the machinery runs, not which method is "
            "better.</b> They have 1 to 2 million parameters and minutes of training on "
            "synthesised music, where the published ones have 95 million and a thousand hours. "
            "Differences between them say nothing about the methods at full size. They are called "
            "as in the paper; what each name stands for here is told in the table below.</p>"
        )
    gained = tests_against(found, "from_random")
    if gained:
        up = sum(x["likely"] and x["mean"] > 0 for x in gained)
        down = sum(x["likely"] and x["mean"] < 0 for x in gained)
        lines.append(
            f"<p>Of {len(gained)} scores of pre-trained encoders, {up} are above and {down} below "
            f"those of the same architecture with random values (p &lt; {LIKELY}; by chance alone, "
            f"about {LIKELY * len(gained) / 2:.0f} each).</p>"
        )
    if tests:
        likely = sum(x["likely"] for x in tests)
        lines.append(
            f"<p>Of {len(tests)} comparisons with {reference(found)}, p is below {LIKELY} in "
            f"{likely}; were there no differences at all, it would be in about "
            f"{LIKELY * len(tests):.0f}. They are not corrected for their number.</p>"
        )
    spent = f"{sum(seconds) / 3600:.1f} hours of processor time" if seconds else "not recorded"
    lines.append(
        f"<p class='small'>Made by <code>{escape(about['command'])}</code>; this page at commit "
        f"<code>{escape(about['commit'] or 'unknown')}</code>; {spent}; "
        f"{escape(about['machine'])}; written {about['written']}. Every number is in "
        "<code>results.json</code> beside this page.</p>" + dirty(found)
    )
    return "".join(lines)


def tests_against(found: dict, other: str) -> list[dict]:
    """All paired tests of one kind."""
    each = (score.get(other) for one in found["scores"].values() for score in one.values())
    return [x for x in each if x]


def scores(found: dict) -> str:
    """A table a data set: encoders, tasks, intervals and tests, published figures under it."""
    groups: dict[str, list[dict]] = {}
    for task in found["tasks"]:
        suite = task["dataset"] if task["dataset"] in SUITES else "mir"
        groups.setdefault(suite, []).append(task)
    parts = [
        "<p>Scores times 100, the mean of several seeds of the classifier; below, the 95 % "
        "bootstrap interval over test items, of the seed that did best on validation. "
        f"<b class='up'>▲</b> and <b class='down'>▼</b>: above or below {escape(reference(found))} "
        f"with p &lt; {LIKELY} in a paired bootstrap test on the same test items, of that seed, "
        "and by the mean over seeds too. It tells what other test items would give, not what "
        "another training run would: there is one of each. Shaded from chance to the best of the "
        "column.</p>"
    ]
    parts.append(f"<p class='small'>{GLOSSARY}</p>")
    for suite, tasks in groups.items():
        heading = SUITES.get(suite, "Music data sets")
        parts.append(f"<h3>{heading}</h3><div class='wide'>{score_table(found, tasks)}</div>")
        parts.append(
            f"<details class='tests'><summary>Differences from {escape(reference(found))}, of the "
            f"seed that is tested</summary><div class='wide'>{difference_table(found, tasks)}</div>"
            "</details>"
        )
        parts.append(provenance(found, makers(found, {task["dataset"] for task in tasks})))
    return "".join(parts)


def ablations(found: dict) -> str:
    parts = []
    for group in figures.ablations(found):
        charts = figures.ablation(found, group)
        if not charts:
            continue
        names = [name for name, _ in group["models"]]
        used = [y for x in found["encoders"] if x["name"] in names for y in x["stages"]]
        base = next(x["title"] for x in found["encoders"] if x["name"] == group["base"])
        told = "; ".join(filter(None, [f"beside {base}", figures.also(found, group)]))
        parts.append(
            f"<details open><summary>{escape(group['title'])} <span class='small'>{escape(told)}"
            f"</span></summary><div class='small-charts'>{''.join(charts)}</div>"
            f"{provenance(found, used)}</details>"
        )
    if not parts:
        return ""
    note = (
        "<p>The score times 100 with its 95 % interval, one chart a task; dotted: chance. Hollow: "
        f"the paired difference from the base has p above {LIKELY}, or the seeds disagree. There "
        "is one training run of each: how far two runs of one configuration would lie apart was "
        "not measured.</p>"
    )
    return note + "".join(parts)


def layers(found: dict) -> str:
    tables = "".join(
        f"<figure><figcaption>{escape(task['title'])}, {task['score']}</figcaption>"
        f"<div class='wide'>{figures.layers(found, task)}</div></figure>"
        for task in found["tasks"]
    )
    if not tables:
        return ""
    return (
        "<p>Test score times 100 by layer, shaded from chance to the table's best; framed: the "
        "layer that validation chose. 0 is the transformer's input, or a transform's features; "
        f"<i>sum</i> a learnt weighting of the others.</p><div class='heats'>{tables}</div>"
        + provenance(found, makers(found, {task["dataset"] for task in found["tasks"]}))
    )


def voices(found: dict) -> str:
    asked = [(t, figures.factors(t["name"], found)) for t in found["tasks"]]
    factors = dict.fromkeys(x for _, each in asked for x in each)
    parts = []
    for factor in factors:
        charts = [figures.by_level(found, t, factor) for t, each in asked if factor in each]
        heading = escape(AXES.get(factor, factor))
        wide = f"95 % intervals reach about {100 * figures.reach(found, factor):.0f} points"
        parts.append(
            f"<h3>By {heading}</h3><p class='small'>{wide} to either side.</p>"
            f"<div class='charts'>{''.join(charts)}</div>"
        )
        if factor == figures.VOICES:
            parts += [layer_details(found, t, factor) for t, each in asked if factor in each]
    if not parts:
        return ""
    styled = figures.style(found)
    drawn = [x for x in found["encoders"] if any(y["factors"] for y in scored(x, found))]
    lines = [(x["title"], *styled[x["name"]]) for x in drawn]
    return (
        "<p>Test score times 100 of clips with one to six notes at once, the layer chosen on "
        "validation; grey and dashed: baselines without training; dotted: chance.</p>"
        + svg.legend(lines)
        + "".join(parts)
        + provenance(found, makers(found, {task["dataset"] for task, each in asked if each}))
    )


def scored(encoder: dict, found: dict) -> list[dict]:
    """An encoder's scores."""
    return list(found["scores"][encoder["name"]].values())


def layer_details(found: dict, task: dict, factor: str) -> str:
    charts = figures.by_layer(found, task, factor)
    titles = {x["name"]: x["title"] for x in found["encoders"]}
    compared = figures.COMPARED.items()
    lines = [
        (titles[name], "#111111", dash)
        for name, dash in compared
        if task["name"] in found["scores"].get(name, {})
    ]
    return (
        f"<details><summary>{escape(task['title'])}: each layer of each encoder</summary>"
        "<p class='small'>Accuracy by notes at once; dark to light: first to last layer.</p>"
        f"{svg.legend(lines)}<div class='small-charts'>{''.join(charts)}</div></details>"
    )


def training(found: dict) -> str:
    parts = [
        "<p>What the runs wrote as they trained. Losses compare only where the targets are the "
        "same: not between crops, blocks, features or numbers of clusters.</p>"
    ]
    families = dict.fromkeys(x["family"] for x in found["encoders"] if x["run"])
    styled = figures.style(found)
    for family in families:
        runs = [x for x in found["encoders"] if x["run"] and x["family"] == family]
        lines = [(x["title"], *styled[x["name"]]) for x in runs]
        charts = figures.training(found, family)
        parts.append(
            f"<h3>{escape(results.NAMES.get(family, family))}</h3>{svg.legend(lines)}"
            f"<div class='charts'>{''.join(charts)}</div>"
        )
    stages = [x for x in found["stages"] if x.startswith("pretrain/")]
    return "".join(parts) + provenance(found, stages) if families else ""
