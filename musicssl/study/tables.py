"""The tables of a study's report: what was compared, scores with tests, published figures."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TypeVar

from musicssl.probing.schema import TaskResult
from musicssl.study import svg
from musicssl.study.schema import EncoderScore, PairedTest, ReportedEncoder, Study, StudyTask

_WORDS = {  # readable names of a configuration's leaves
    "batch_size": "clips in an update",
    "data.crop_frames": "20 ms frames of a clip",
    "data2vec.top_layers": "blocks averaged into targets",
    "mask.equal_counts": "clips with equal masks",
    "mask.probability": "mask probability",
    "mask.span": "frames of a masked span",
    "steps": "updates",
    "teacher.ceps": "MFCC coefficients",
    "teacher.clusters": "clusters",
    "teacher.feature": "targets from",
    "teacher.layer": "the teacher's layer",
    "teacher.targets": "targets",
    "teacher.weights": "the targets' weights",
}

GLOSSARY = (
    "Accuracy is the share of items with the right answer. ROC-AUC is how often an item with a "
    "label is ranked above one without it, 50 by guessing. The weighted score gives 100 for the "
    "right key and a part of that for a related one. F is the harmonic mean of precision and "
    "recall of beats, within 70 ms. R2 is the share of the variance explained."
)
_SUITES = {
    "synth_music": "Synthesised music",
    "synth_polyphony": "What is heard of several voices",
}
_Described = TypeVar("_Described", StudyTask, TaskResult)


def by_suite(tasks: Iterable[_Described]) -> dict[str, list[_Described]]:
    """Return tasks by the heading of the table that they share; those of real music share one."""
    groups: dict[str, list[_Described]] = {}
    for task in tasks:
        heading = _SUITES.get(task["dataset"], "Music data sets")
        groups.setdefault(heading, []).append(task)
    return groups


def title_of(study: Study, encoder: str) -> str:
    """Return an encoder's readable name."""
    return next(x["title"] for x in study["encoders"] if x["name"] == encoder)


def reference(study: Study) -> str:
    """Return the readable name of the encoder that others are tested against."""
    return title_of(study, study["reference"])


def encoder_table(study: Study) -> str:
    """Return a table of what was compared, and of its state."""
    # A row for each encoder; runs fill more columns than baselines.
    wanted = len(study["tasks"]) + len(study["missing_tasks"])
    rows = []
    for encoder in study["encoders"]:
        run = encoder["run"]
        updates, hours, state = "", "", ""
        if run:
            updates = str(run["leaves"].get("steps", ""))
            hours = f"{run['curves'].get('audio_hours', [[0, 0]])[-1][1]:.2f}"
            state = "complete" if run["complete"] else f"<b>at update {run['step']}</b>"
        scores = study["scores"][encoder["name"]]
        done = sum(task["name"] in scores for task in study["tasks"])
        minutes = _processor_minutes(encoder, study)
        cells = [
            _what_it_is(encoder, study), updates, hours, state, f"{done} of {wanted}", minutes,
        ]  # fmt: skip
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th>{escape(encoder['title'])}</th>{row}</tr>")

    # The table, and the tasks that it lacks.
    head = "".join(
        f"<th>{x}</th>"
        for x in ("", "what it is", "updates", "audio hours", "training", "tasks", "CPU minutes")
    )
    table = (
        f"<table class='plain'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    missing = study["missing_tasks"]
    more = f"<p>Not run: {escape(', '.join(missing))}.</p>" if missing else ""
    return f"<div class='wide'>{table}</div>{more}"


def _what_it_is(encoder: ReportedEncoder, study: Study) -> str:
    """Say in words what a configuration changes, or which baseline it is."""
    if encoder["kind"] == "random":
        return "the same architecture before any training"
    if encoder["kind"] == "features":
        return "a fixed transform, no training"
    varies = encoder["varies"]
    if varies is None:
        return f"read from {escape(encoder['spec'])}"
    if not varies["leaves"]:
        return "the recipe that its family varies"
    base = title_of(study, varies["base"])
    return f"as {escape(base)}, but {escape(changes(varies['leaves']))}"


def changes(leaves: Mapping[str, Sequence]) -> str:
    """Describe each leaf that differs by its value there and here."""
    parts = [f"{_WORDS.get(leaf, leaf)} {there} → {here}" for leaf, (there, here) in leaves.items()]
    return "; ".join(parts)


def _processor_minutes(encoder: ReportedEncoder, study: Study) -> str:
    """Sum the processor time of an encoder's stages, if it is recorded."""
    made = [study["stages"][name]["made"] for name in encoder["stages"]]
    seconds = [record["cpu_seconds"] for record in made if record]
    return f"{sum(seconds) / 60:.1f}" if seconds else ""


def score_table(study: Study, tasks: Sequence[StudyTask]) -> str:
    """Return a table of encoders and tasks: scores, intervals and marks.

    Below them are chance, the number of items, and published figures.
    """
    # The best score of each task, which is shaded darkest.
    best = {}
    for task in tasks:
        all_scores = [scores.get(task["name"]) for scores in study["scores"].values()]
        best[task["name"]] = max(score["mean"] for score in all_scores if score)

    # A row an encoder, and what the scores are to be compared with.
    rows = []
    for encoder in study["encoders"]:
        own = study["scores"][encoder["name"]]
        cells = [_score_cell(own.get(task["name"]), task, best[task["name"]]) for task in tasks]
        rows.append(_encoder_row(encoder, cells))

    chance = "".join(f"<td>{100 * task['chance']:.1f}</td>" for task in tasks)
    items = "".join(f"<td>{task['items'].get('test', '')}</td>" for task in tasks)
    rows.append(f"<tr class='foot'><th>chance</th>{chance}</tr>")
    rows.append(f"<tr class='foot'><th>test items</th>{items}</tr>")
    rows += _published_rows(tasks)
    return _task_table(tasks, rows)


def _encoder_row(encoder: ReportedEncoder, cells: Sequence[str]) -> str:
    title = escape(encoder["title"])
    return f"<tr class='{encoder['kind']}'><th>{title}</th>{''.join(cells)}</tr>"


def _task_table(tasks: Sequence[StudyTask], rows: Sequence[str]) -> str:
    """Return a table with a column for each task."""
    head = "".join(
        f"<th>{escape(task['title'])}<br><span class='small'>{task['score']}</span></th>"
        for task in tasks
    )
    return (
        f"<table class='scores'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _score_cell(score: EncoderScore | None, task: StudyTask, best: float) -> str:
    """Return a cell that is shaded from chance to the best score of its column."""
    if score is None:
        return "<td class='none'>not run</td>"
    colour = shade(score["mean"], task["chance"], best)
    low, high = (f"{100 * x:.1f}" for x in score["interval"])
    return (
        f"<td style='background:{colour}' title='layer {score['layer']}'>"
        f"<b>{100 * score['mean']:.1f}</b>{_mark(score['from_reference'])}"
        f"<br><span class='small'>{low} – {high}</span></td>"
    )


def shade(value: float, chance: float, best: float) -> str:
    """Return a colour for a score, from white at chance to blue at the best of its column."""
    share = (value - chance) / max(best - chance, svg.NARROW)
    return svg.mixed("#ffffff", "#9ecae1", min(max(share, 0), 1))


def _mark(test: PairedTest | None) -> str:
    """Return an arrow up or down where a difference is likely."""
    if not test or not test["likely"]:
        return ""
    return "<b class='up'>▲</b>" if test["mean"] > 0 else "<b class='down'>▼</b>"


def difference_table(study: Study, tasks: Sequence[StudyTask]) -> str:
    """Return a table of the paired tests against the reference: difference, interval and p."""
    rows = []
    for encoder in study["encoders"]:
        if encoder["name"] == study["reference"]:
            continue
        own = study["scores"][encoder["name"]]
        scores = [own.get(task["name"]) for task in tasks]
        tests = [score["from_reference"] if score else None for score in scores]
        rows.append(_encoder_row(encoder, [_difference_cell(test) for test in tests]))
    return _task_table(tasks, rows)


def _difference_cell(test: PairedTest | None) -> str:
    if test is None:
        return "<td class='none'>none</td>"
    low, high = (f"{100 * x:+.1f}" for x in test["interval"])
    return (
        f"<td>{100 * test['mean']:+.1f}{_mark(test)} <span class='small'>p {test['p']:.3f}</span>"
        f"<br><span class='small'>{low} to {high}</span></td>"
    )


def _published_rows(tasks: Sequence[StudyTask]) -> list[str]:
    """Return rows of published figures, which name their source."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for task in tasks:
        for score in task["published"]:
            of_model = values.setdefault((score["model"], score["source"]), {})
            of_model[task["name"]] = score["value"]

    rows = []
    for (model, source), of_model in values.items():
        cells = []
        for task in tasks:
            value = of_model.get(task["name"])
            cells.append("<td></td>" if value is None else f"<td>{100 * value:.1f}</td>")
        name = f"{escape(model)}<br><span class='small'>published: {escape(source)}</span>"
        rows.append(f"<tr class='published'><th>{name}</th>{''.join(cells)}</tr>")
    return rows
