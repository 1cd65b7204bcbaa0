"""The page of a study, and every number on it as JSON."""

import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Literal

from musicssl import paths
from musicssl.probing.curves import AXES
from musicssl.study import figures, page, results, svg
from musicssl.study.commands import dirty, every_stage, makers, provenance
from musicssl.study.results import LIKELY
from musicssl.study.schema import PairedTest, Study, StudyTask
from musicssl.study.tables import (
    GLOSSARY,
    by_suite,
    difference_table,
    encoder_table,
    reference,
    score_table,
    title_of,
)

_METHODS = (
    "<p>Both methods hide stretches of a recording from an encoder, which has to predict what was "
    "there. <b>music2vec</b> (data2vec 1.0) predicts the outputs of a slowly moving average of "
    "itself for the whole recording; <b>musicHuBERT</b> (HuBERT) predicts a cluster for each "
    "hidden 20 ms, of MFCC features or, in a second iteration, of an earlier encoder's layer. The "
    "configurations are those of <i>On the Effectiveness of Speech Self-supervised Learning for "
    "Music</i> (arXiv:2307.05161). The paper's own scores are not shown, since they were not "
    "found.</p>"
)


def write(folder: Path) -> str:
    """Write the report of a study beside its results; return a line that says where.

    Raises:
      FileNotFoundError: there is no study.
      ValueError: a file of the study cannot be read.
    """
    study = results.collect(folder)
    out = folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(_without_nan(study), indent=1, allow_nan=False)
    paths.write(out / "results.json", f"{numbers}\n".encode())
    paths.write(out / "index.html", _document(study).encode())
    counts = f"{len(study['encoders'])} encoders, {len(study['tasks'])} tasks"
    return f"{out / 'index.html'}: {counts}"


def _without_nan(value: Any) -> Any:
    """Return the value with None for numbers that are not finite, which JSON cannot express."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _document(study: Study) -> str:
    """Return the whole page."""
    sections = [
        ("encoders", "What was compared", _METHODS + encoder_table(study)),
        ("scores", "Scores", _scores(study)),
        ("ablations", "What each choice does", _ablations(study)),
        ("layers", "Which layer knows", _layers(study)),
        ("voices", "What is heard of several voices", _voices(study)),
        ("training", "Training", _training(study)),
        ("made", "How it was made", every_stage(study)),
    ]
    title = f"A study of music encoders, {study['about']['scale']} scale"
    return page.document(title, _lead(study), [section for section in sections if section[2]])


def _lead(study: Study) -> str:
    """Return the text above all sections: what was done, how much of it, and the caveats."""
    about = study["about"]

    # How many encoders of which kind, and how they were compared.
    runs = [encoder["run"] for encoder in study["encoders"] if encoder["run"]]
    complete = sum(run["complete"] for run in runs)
    given = sum(encoder["kind"] == "given" for encoder in study["encoders"])
    baselines = len(study["encoders"]) - len(runs) - given
    counts = [f"{complete} of {len(runs)} encoders pre-trained here"]
    if given:
        counts.append(f"{given} from elsewhere")
    counts.append(f"{baselines} baseline{'s' * (baselines != 1)}")
    lines = [
        f"<p>{', '.join(counts)}; {len(study['tasks'])} tasks. "
        "Every encoder is frozen; a small classifier is trained on the features of each of its "
        "layers, the layer is chosen on validation items, and the score is computed on test items "
        "that neither step has seen.</p>",
    ]
    if about["scale"] == "demo":
        lines.append(
            "<p class='note'><b>These models show that the machinery runs, not which method is "
            "better.</b> They have 1 to 2 million parameters and minutes of training on "
            "synthesised music; the published ones have 95 million parameters and a thousand hours "
            "of music. Differences between them say nothing about the methods at full size. They "
            "are named as in the paper; the table below says what each name means here.</p>"
        )

    # How many differences are likely.
    gained = _tests_against(study, "from_random")
    if gained:
        up = sum(test["likely"] and test["mean"] > 0 for test in gained)
        down = sum(test["likely"] and test["mean"] < 0 for test in gained)
        lines.append(
            f"<p>Of {len(gained)} scores of pre-trained encoders, {up} are above and {down} below "
            f"those of the same architecture with random values (p &lt; {LIKELY}; by chance alone, "
            f"about {LIKELY * len(gained) / 2:.0f} each).</p>"
        )
    tests = _tests_against(study, "from_reference")
    if tests:
        likely = sum(test["likely"] for test in tests)
        lines.append(
            f"<p>Of {len(tests)} comparisons with {reference(study)}, p is below {LIKELY} in "
            f"{likely}; if there were no differences at all, that would be so in about "
            f"{LIKELY * len(tests):.0f}. The tests are not corrected for their number.</p>"
        )

    # How the page was made.
    records = [stage["made"] for stage in study["stages"].values()]
    seconds = [record["cpu_seconds"] for record in records if record]
    spent = f"{sum(seconds) / 3600:.1f} hours of processor time" if seconds else "not recorded"
    lines.append(
        f"<p class='small'>Made by <code>{escape(about['command'])}</code>; this page at commit "
        f"<code>{escape(about['commit'] or 'unknown')}</code>; {spent}; "
        f"{escape(about['machine'])}; written {about['written']}. Every number is in "
        "<code>results.json</code> beside this page.</p>" + dirty(study)
    )
    return "".join(lines)


def _tests_against(
    study: Study, field: Literal["from_reference", "from_random"]
) -> list[PairedTest]:
    """Return all paired tests of one kind."""
    tests = []
    for scores in study["scores"].values():
        tests += [score.get(field) for score in scores.values()]
    return [test for test in tests if test]


def _datasets(tasks: Iterable[StudyTask]) -> set[str]:
    return {task["dataset"] for task in tasks}


def _scores(study: Study) -> str:
    """Return a table per data set: encoders, tasks, intervals, tests, then published figures."""
    # What the numbers mean, and then the tables.
    base = escape(reference(study))
    parts = [
        "<p>Scores are times 100, and means over several seeds of the classifier; below each is "
        "the mean's 95 % bootstrap interval over test clips and seeds. <b class='up'>▲</b> and "
        f"<b class='down'>▼</b> mark scores above or below that of {base} "
        f"with p &lt; {LIKELY} in a paired bootstrap test of the means on the same test clips. It "
        "shows what other test clips and seeds of the classifier would give, not what another "
        "training run would, since there is one of each. Cells are shaded from chance to the "
        "best of the column.</p>"
    ]
    parts.append(f"<p class='small'>{GLOSSARY}</p>")
    for heading, tasks in by_suite(study["tasks"]).items():
        parts.append(f"<h3>{heading}</h3><div class='wide'>{score_table(study, tasks)}</div>")
        parts.append(
            f"<details class='tests'><summary>Differences from {base}</summary>"
            f"<div class='wide'>{difference_table(study, tasks)}</div></details>"
        )
        parts.append(provenance(study, makers(study, _datasets(tasks))))
    return "".join(parts)


def _ablations(study: Study) -> str:
    """Return the charts of each group of configurations that vary the same leaf."""
    parts = []
    for group in figures.ablations(study):
        charts = figures.ablation(study, group)
        if not charts:
            continue

        # The stages of all encoders of the group.
        names = [name for name, _ in group["models"]]
        stages = []
        for encoder in study["encoders"]:
            if encoder["name"] in names:
                stages += encoder["stages"]

        # The charts, and what else the configurations change.
        details = f"compared with {title_of(study, group['base'])}"
        if also := figures.also_changed(study, group):
            details += f"; {also}"
        parts.append(
            f"<details open><summary>{escape(group['title'])} <span class='small'>{escape(details)}"
            f"</span></summary><div class='small-charts'>{''.join(charts)}</div>"
            f"{provenance(study, stages)}</details>"
        )
    if not parts:
        return ""
    note = (
        "<p>The charts show the score times 100 with its 95 % interval, one chart per task. The "
        "dotted line is chance. A hollow point means that the paired difference from the base has "
        f"p above {LIKELY}. There is one training run of each configuration; how far apart two "
        "runs of the same one would lie was not measured.</p>"
    )
    return note + "".join(parts)


def _layers(study: Study) -> str:
    """Return a table of encoders and layers for each task."""
    tables = "".join(
        f"<figure><figcaption>{escape(task['title'])}, {task['score']}</figcaption>"
        f"<div class='wide'>{figures.layers(study, task)}</div></figure>"
        for task in study["tasks"]
    )
    if not tables:
        return ""
    return (
        "<p>Test scores times 100 by layer, shaded from chance to the table's best. The layer "
        "that validation chose is framed. Layer 0 is the transformer's input, or a transform's "
        "features; "
        f"<i>sum</i> is a learnt weighting of the others.</p><div class='heats'>{tables}</div>"
        + provenance(study, makers(study, _datasets(study["tasks"])))
    )


def _voices(study: Study) -> str:
    """Return the charts of scores by factor, for the tasks that have factors."""
    # The factors of each task, and all of them.
    factors_of = {task["name"]: figures.factors(study, task) for task in study["tasks"]}
    factors: dict[str, None] = {}
    for names in factors_of.values():
        factors |= dict.fromkeys(names)

    # A part for each factor.
    parts = []
    for factor in factors:
        tasks = [task for task in study["tasks"] if factor in factors_of[task["name"]]]
        charts = [figures.by_level(study, task, factor) for task in tasks]
        heading = escape(AXES.get(factor, factor))
        reach = figures.mean_reach(study, factor)
        parts.append(
            f"<h3>By {heading}</h3><p class='small'>95 % intervals reach about "
            f"{100 * reach:.0f} points to either side.</p>"
            f"<div class='charts'>{''.join(charts)}</div>"
        )
        if factor == figures.VOICES:
            parts += [_layer_details(study, task, factor) for task in tasks]
    if not parts:
        return ""

    # One legend for all charts, of the encoders in any of them.
    styles, lines = figures.style(study), []
    for encoder in study["encoders"]:
        scores = study["scores"][encoder["name"]].values()
        if any(score["factors"] for score in scores):
            lines.append((encoder["title"], *styles[encoder["name"]]))
    with_factors = [task for task in study["tasks"] if factors_of[task["name"]]]
    return (
        "<p>Test scores times 100 on clips with one to six notes at once, for the layer that "
        "validation chose. Grey and dashed lines are untrained baselines, and the dotted line is "
        "chance.</p>"
        + svg.legend(lines)
        + "".join(parts)
        + provenance(study, makers(study, _datasets(with_factors)))
    )


def _layer_details(study: Study, task: StudyTask, factor: str) -> str:
    """Return a task's charts of each encoder's layers, in a folded element."""
    charts = figures.by_layer(study, task, factor)
    lines = []
    for name, dash in figures.COMPARED.items():
        if task["name"] in study["scores"].get(name, {}):
            lines.append((title_of(study, name), "#111111", dash))
    return (
        f"<details><summary>{escape(task['title'])}: each layer of each encoder</summary>"
        "<p class='small'>Accuracy by the number of notes at once; the lines go from dark (the "
        "first layer) to light (the last).</p>"
        f"{svg.legend(lines)}<div class='small-charts'>{''.join(charts)}</div></details>"
    )


def _training(study: Study) -> str:
    """Return the curves of all runs, family by family."""
    parts = [
        "<p>Scalars that the runs logged during training. Losses can be compared only if the "
        "targets are the same, so not between crops, blocks, features or numbers of clusters.</p>"
    ]
    trained = [encoder for encoder in study["encoders"] if encoder["run"]]
    if not trained:
        return ""

    # A part for each family.
    styles = figures.style(study)
    for family in dict.fromkeys(encoder["family"] for encoder in trained):
        encoders = [encoder for encoder in trained if encoder["family"] == family]
        lines = [(encoder["title"], *styles[encoder["name"]]) for encoder in encoders]
        charts = figures.training(study, family)
        parts.append(
            f"<h3>{escape(results.NAMES.get(family, family))}</h3>{svg.legend(lines)}"
            f"<div class='charts'>{''.join(charts)}</div>"
        )
    stages = [name for name in study["stages"] if name.startswith("pretrain/")]
    return "".join(parts) + provenance(study, stages)
