"""A leaderboard of any encoders' results: a page whose tables can be sorted, and the same as CSV.

Results that were run here have their own tables: scores with intervals, tests against the first
encoder, and a number at each score with another protocol than the first's. Published figures are in
separate tables.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from musicssl import paths
from musicssl.probing import columns, published, report
from musicssl.probing.columns import Column
from musicssl.probing.schema import ChosenResult, Results, TaskResult
from musicssl.probing.tasks import TASKS
from musicssl.study import page, tables
from musicssl.study.results import LIKELY, name_of_score

PAGE, CSV = "compare.html", "compare.csv"
_FIELDS = (
    "encoder", "task", "score", "mean", "sd", "low", "high", "first", "p", "layer",
    "learning_rate", "chance", "test_items", "differs", "folders", "commit",
)  # fmt: skip
_Notes = dict[str, int]  # remarks on scores, and the number at the scores they apply to


def write(folders: Sequence[Path], out: Path) -> str:
    """Write the leaderboard of results directories; return a line that says where.

    Results of runs that differ only in their training seed form one row, as in `report.compare`.

    Raises:
      FileNotFoundError, ValueError: a directory has no results, or damaged ones.
    """
    encoders = [report.load(folder) for folder in folders]
    rows = columns.of_results(encoders)
    described: dict[str, TaskResult] = {}
    for encoder in encoders:
        described = dict(encoder["tasks"]) | described
    order = [name for name in TASKS if name in described]
    tasks = {name: described[name] for name in dict.fromkeys([*order, *described])}

    places = {id(x): str(folder) for x, folder in zip(encoders, folders, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ((PAGE, _document(rows, tasks)), (CSV, _csv(rows, tasks, places))):
        paths.write(out / name, text.encode())
    return f"{out / PAGE} and {CSV}: {len(rows)} encoders, {len(tasks)} tasks"


def first_with(rows: Sequence[Column], task: str) -> Column:
    """Return the first encoder with a result of a task; the others are compared with it."""
    return next(row for row in rows if row.results(task))


def _document(rows: Sequence[Column], tasks: Mapping[str, TaskResult]) -> str:
    """Return the whole page."""
    notes: _Notes = {}
    scores = _scores(rows, tasks, notes)
    sections = [
        ("scores", "Scores", scores),
        ("differs", "What differs in protocol", _differences(notes)),
        ("published", "Published elsewhere, not run here", _published()),
        ("made", "How the scores were made", _encoders(rows)),
    ]
    counts = f"{len(rows)} encoders, {len(tasks)} tasks"
    lead = (
        f"<p>{counts}. Every encoder is frozen; probes are trained on the features of each of its "
        "layers, the layer is chosen on validation items, and the score is computed on test items "
        "that neither step has seen. Click on a heading to sort by it.</p>"
    )
    return page.document("Music encoders compared", lead, sections, page.SORTING)


def _scores(rows: Sequence[Column], tasks: Mapping[str, TaskResult], notes: _Notes) -> str:
    """Return the tables of what was run; put into `notes` how its scores differ in protocol."""
    base = escape(rows[0].name)
    parts = [
        "<p>Scores are times 100; below each is its 95 % bootstrap interval over test clips. A "
        "score of several seeds is their mean, and its interval is over them too. "
        "<b class='up'>▲</b> and <b class='down'>▼</b> mark "
        f"scores above or below that of {base} (or of the first encoder with a result, if it has "
        f"none) with p &lt; {LIKELY} in a paired bootstrap test on the same test clips. These "
        "tests are not corrected for their number. A small number at a score means that its "
        "protocol differs, as explained <a href='#differs'>below</a>. Cells are shaded from chance "
        "to the best score of the column.</p>"
        f"<p class='small'>{tables.GLOSSARY}</p>"
    ]
    for heading, own in tables.by_suite(tasks.values()).items():
        table = _score_table(rows, [task["task"] for task in own], tasks, notes)
        parts.append(f"<h3>{heading}</h3><div class='wide'>{table}</div>")
    return "".join(parts)


def _score_table(
    rows: Sequence[Column],
    names: Sequence[str],
    tasks: Mapping[str, TaskResult],
    notes: _Notes,
) -> str:
    """Return a table with a row for each encoder with any of the tasks, and a column per task."""
    shown = [row for row in rows if any(row.results(name) for name in names)]
    best = {}
    for name in names:
        scores = [columns.main_score(row.results(name)).mean for row in shown if row.results(name)]
        best[name] = max(scores)

    # A row for each encoder, then chance and the number of items.
    body = []
    for row in shown:
        cells = [_score_cell(row, first_with(rows, x), tasks[x], best[x], notes) for x in names]
        body.append(f"<tr>{_named(row.name, _place(row, rows))}{''.join(cells)}</tr>")
    chance = [100 * tasks[name]["chance"][tasks[name]["score"]] for name in names]
    foot = [
        _foot_row("chance", [f"{value:.1f}" for value in chance]),
        _foot_row("test items", [str(tasks[name]["items"]["test"]) for name in names]),
    ]
    head = [_heading("encoder", order="text")]
    for name in names:
        score = name_of_score(tasks[name]["score"])
        head.append(_heading(tasks[name]["title"].removeprefix("synth_music, "), score))
    return _table(head, body, foot)


def _score_cell(row: Column, first: Column, task: TaskResult, best: float, notes: _Notes) -> str:
    """Return a cell: the score, a mark if it is likely to differ, its interval, its notes."""
    name = task["task"]
    results = row.results(name)
    if not results:
        return "<td class='none' data-value=''>not run</td>"
    mean, low, high = columns.main_score(results)

    # Its notes and its test.
    numbers = [notes.setdefault(text, len(notes) + 1) for text in columns.caveats(row, first, name)]
    note = f"<sup>{','.join(map(str, sorted(numbers)))}</sup>" if numbers else ""
    test = columns.against(results, first.results(name)) if row is not first else None
    mark, told = "", ""
    if test:
        told = f"; {100 * test.mean:+.1f} from {escape(first.name)}, p {test.p:.3f}"
        if test.p < LIKELY:
            way, arrow = ("up", "▲") if test.mean > 0 else ("down", "▼")
            mark = f"<b class='{way}'>{arrow}</b>"
    layers = ", ".join(dict.fromkeys(result["chosen"]["source"] for result in results))

    colour = tables.shade(mean, task["chance"][task["score"]], best)
    return (
        f"<td style='background:{colour}' data-value='{mean:.6f}' title='layer {layers}{told}'>"
        f"<b>{100 * mean:.1f}</b>{mark}{note}"
        f"<br><span class='small'>{_interval(low, high)}</span></td>"
    )


def _interval(low: float, high: float) -> str:
    if math.isnan(low):  # too few test items to draw from
        return "no interval"
    return f"{100 * low:.1f} – {100 * high:.1f}"


def _place(row: Column, rows: Sequence[Column]) -> str:
    """Number an encoder if others have the same name."""
    if [other.name for other in rows].count(row.name) == 1:
        return ""
    number = [other for other in rows if other.name == row.name].index(row) + 1
    return f" <span class='small'>({number})</span>"


def _named(name: str, more: str = "") -> str:
    """Return the heading of a row, which is sorted by its text."""
    return f"<th data-value='{escape(name, quote=True)}'>{escape(name)}{more}</th>"


def _heading(title: str, below: str = "", order: str = "number") -> str:
    """Return the heading of a column, which sorts by it."""
    more = f"<br><span class='small'>{escape(below)}</span>" if below else ""
    title = re.sub(r"(?<=\d) (?=s\b)", "\u00a0", escape(title))  # no line ends between 0.5 and s
    return f"<th data-order='{order}'><button>{title}</button>{more}</th>"


def _foot_row(name: str, cells: Sequence[str]) -> str:
    return f"<tr class='foot'><th>{name}</th>{''.join(f'<td>{x}</td>' for x in cells)}</tr>"


def _table(head: Sequence[str], body: Sequence[str], foot: Sequence[str] = ()) -> str:
    return (
        f"<table class='scores'><thead><tr>{''.join(head)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody><tfoot>{''.join(foot)}</tfoot></table>"
    )


def _differences(notes: _Notes) -> str:
    """Return the meanings of the numbers at scores."""
    if not notes:
        return (
            "<p>Nothing differs: all scores of a task have the same settings, the same version of "
            "the protocol and the same test clips.</p>"
        )
    lines = "".join(f"<li>{escape(text)}</li>" for text in notes)
    return (
        "<p>Unlike that of the first encoder with a result of the task, the scores with these "
        f"numbers are:</p><ol>{lines}</ol>"
    )


def _encoders(rows: Sequence[Column]) -> str:
    """Return a table of the encoders and how their results were made."""
    head = ("", "features", "grid of probes", "made with", "command")
    body = []
    for row in rows:
        for run in row.runs:
            commit = run.get("commit", "")[:12] or "unknown"
            made = f"commit {commit}, jax {run.get('jax', '?')}, {run.get('device', '?')}"
            cells = [escape(x) for x in (run["features"], _grid(run), made)]
            command = escape(run.get("command", ""))
            cells.append(f"<details><summary>show</summary><code>{command}</code></details>")
            row_cells = "".join(f"<td>{cell}</td>" for cell in cells)
            name = f"{escape(columns.short_name(run))}{_place(row, rows)}"
            body.append(f"<tr><th>{name}</th>{row_cells}</tr>")
    headings = "".join(f"<th>{x}</th>" for x in head)
    return (
        f"<div class='wide'><table class='plain told'><thead><tr>{headings}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _grid(run: Results) -> str:
    """Say in words how a result's grids of probes differ from MARBLE's."""
    apart = dict.fromkeys(published.apart(task.get("settings")) for task in run["tasks"].values())
    return "; ".join(text or "MARBLE's" for text in apart)


def _published() -> str:
    """Return a table of each source of published figures."""
    parts = [
        "<p>Figures are times 100, as in their sources. None was run here, and none has an "
        "interval.</p>"
    ]
    for source in published.sources():
        head = [_heading("model", order="text")]
        head += [_published_heading(column) for column in source["columns"]]
        body = []
        for model, values in source["models"].items():
            cells = [_published_cell(value) for value in values]
            body.append(f"<tr class='published'>{_named(model)}{''.join(cells)}</tr>")
        link = f"<a href='{escape(source['url'], quote=True)}'>{escape(source['source'])}</a>"
        parts.append(
            f"<h3>{link}, {escape(source['date'])}</h3><p>{escape(source['protocol'])}</p>"
            f"<div class='wide'>{_table(head, body)}</div>"
        )
    return "".join(parts)


def _published_heading(column: str) -> str:
    name, _, score = column.partition("/")
    return _heading(TASKS[name].title if score else name, name_of_score(score))


def _published_cell(value: float | None) -> str:
    return "<td data-value=''></td>" if value is None else f"<td data-value='{value}'>{value}</td>"


def _csv(rows: Sequence[Column], tasks: Mapping[str, TaskResult], places: Mapping[int, str]) -> str:
    """Return a line for each encoder and each score that was run; values are fractions.

    Only main scores have intervals and p.

    Args:
      places: the directory of each result of the rows, by the result's id.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for name, task in tasks.items():
            if row.results(name):
                about = {
                    "folders": " ".join(places[id(run)] for run in row.runs),
                    "commit": " ".join(run.get("commit", "") for run in row.runs),
                }
                for line in _csv_lines(row, first_with(rows, name), task):
                    writer.writerow(line | about)
    return text.getvalue()


def _trained(chosen: ChosenResult) -> bool:
    return "learning_rate" in chosen  # ridge regression has a penalty instead


def _csv_lines(row: Column, first: Column, task: TaskResult) -> list[dict[str, object]]:
    """Return the lines of an encoder's scores of a task; the main score has the most columns."""
    name = task["task"]
    results = row.results(name)
    chosen = [result["chosen"] for result in results]
    test = columns.against(results, first.results(name)) if row is not first else None
    lines = []
    for score in chosen[0]["test"]:
        values = [x["test"][score] for x in chosen]
        line: dict[str, object] = {
            "encoder": row.name,
            "task": name,
            "score": score,
            "mean": sum(value["mean"] for value in values) / len(values),
            "sd": values[0]["sd"] if len(values) == 1 else "",
            "layer": " ".join(x["source"] for x in chosen),
            "learning_rate": " ".join(f"{x['learning_rate']:g}" for x in chosen if _trained(x)),
            "chance": task["chance"][score],
            "test_items": results[0]["items"]["test"],
            "differs": "; ".join(columns.caveats(row, first, name)),
        }
        if score == task["score"]:
            _, low, high = columns.main_score(results)
            line |= {"low": low, "high": high, "first": first.name}
            line["p"] = test.p if test else ""
        lines.append(line)
    return lines
