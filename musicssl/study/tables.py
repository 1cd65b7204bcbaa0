"""The tables of a study's report: what was compared, scores with tests, published figures."""

from html import escape

from musicssl.study import svg

WORDS = {  # leaves of a configuration, for people
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
}


def reference(found: dict) -> str:
    return next(x["title"] for x in found["encoders"] if x["name"] == found["reference"])


def encoder_table(found: dict) -> str:
    """A table of what was compared and what became of it."""
    rows = []
    for x in found["encoders"]:
        run = x["run"]
        cells = [f"<th>{escape(x['title'])}</th>", f"<td>{what(x, found)}</td>"]
        if run:
            hours = run["curves"].get("audio_hours", [[0, 0]])[-1][1]
            state = "complete" if run["complete"] else f"<b>at update {run['step']}</b>"
            cells += [f"<td>{run['leaves'].get('steps', '')}</td>", f"<td>{hours:.2f}</td>"]
        else:
            cells += ["<td></td>", "<td></td>"]
            state = ""
        done = sum(task["name"] in found["scores"][x["name"]] for task in found["tasks"])
        wanted = len(found["tasks"]) + len(found["missing_tasks"])
        cells += [
            f"<td>{state}</td>",
            f"<td>{done} of {wanted}</td>",
            f"<td>{minutes(x, found)}</td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f"<th>{x}</th>"
        for x in ("", "what it is", "updates", "audio hours", "training", "tasks", "CPU minutes")
    )
    table = (
        f"<table class='plain'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    missing = found["missing_tasks"]
    more = f"<p>Not run: {escape(', '.join(missing))}.</p>" if missing else ""
    return f"<div class='wide'>{table}</div>{more}"


def what(encoder: dict, found: dict) -> str:
    """In words: what a configuration changes, or which baseline it is."""
    if encoder["kind"] == "random":
        return "the same architecture before any training"
    if encoder["kind"] == "features":
        return "a fixed transform, no training"
    if encoder["kind"] == "given":
        return f"read from {escape(encoder['spec'])}"
    leaves = encoder["varies"]["leaves"]
    if not leaves:
        return "the recipe that its family varies"
    base = next(x["title"] for x in found["encoders"] if x["name"] == encoder["varies"]["base"])
    return f"as {escape(base)}, but {escape(changes(leaves))}"


def changes(leaves: dict[str, list]) -> str:
    """Leaves that differ, each there and here."""
    each = leaves.items()
    return "; ".join(f"{WORDS.get(leaf, leaf)} {there} → {here}" for leaf, (there, here) in each)


def minutes(encoder: dict, found: dict) -> str:
    noted = [found["stages"][x]["made"] for x in encoder["stages"]]
    return f"{sum(x['cpu_seconds'] for x in noted if x) / 60:.1f}" if any(noted) else ""


def score_table(found: dict, tasks: list[dict]) -> str:
    """Encoders and tasks: scores, intervals and marks; chance, items, published figures."""
    best = {
        task["name"]: max(
            one[task["name"]]["mean"] for one in found["scores"].values() if task["name"] in one
        )
        for task in tasks
    }
    rows = []
    for x in found["encoders"]:
        held = found["scores"][x["name"]]
        cells = "".join(score_cell(held.get(t["name"]), t, best[t["name"]]) for t in tasks)
        rows.append(f"<tr class='{x['kind']}'><th>{escape(x['title'])}</th>{cells}</tr>")
    chance = "".join(f"<td>{100 * task['chance']:.1f}</td>" for task in tasks)
    items = "".join(f"<td>{task['items'].get('test', '')}</td>" for task in tasks)
    rows.append(f"<tr class='foot'><th>chance</th>{chance}</tr>")
    rows.append(f"<tr class='foot'><th>test items</th>{items}</tr>")
    rows += published(tasks)
    return of_tasks(tasks, rows)


def of_tasks(tasks: list[dict], rows: list[str]) -> str:
    """A table with a column a task."""
    head = "".join(
        f"<th>{escape(task['title'])}<br><span class='small'>{task['score']}</span></th>"
        for task in tasks
    )
    return (
        f"<table class='scores'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def score_cell(score: dict | None, task: dict, best: float) -> str:
    if score is None:
        return "<td class='none'>not run</td>"
    share = min(
        max((score["mean"] - task["chance"]) / max(best - task["chance"], svg.NARROW), 0), 1
    )
    colour = svg.mixed("#ffffff", "#9ecae1", share)
    low, high = (f"{100 * x:.1f}" for x in score["interval"])
    return (
        f"<td style='background:{colour}' title='layer {score['layer']}'>"
        f"<b>{100 * score['mean']:.1f}</b>{mark(score['from_reference'])}"
        f"<br><span class='small'>{low} – {high}</span></td>"
    )


def mark(test: dict | None) -> str:
    if not test or not test["likely"]:
        return ""
    return "<b class='up'>▲</b>" if test["mean"] > 0 else "<b class='down'>▼</b>"


def difference_table(found: dict, tasks: list[dict]) -> str:
    """The paired tests against the reference: difference, 95 % interval and p."""
    rows = []
    for x in found["encoders"]:
        if x["name"] == found["reference"]:
            continue
        held = found["scores"][x["name"]]
        tests = [held.get(task["name"], {}).get("from_reference") for task in tasks]
        cells = "".join(map(difference_cell, tests))
        rows.append(f"<tr class='{x['kind']}'><th>{escape(x['title'])}</th>{cells}</tr>")
    return of_tasks(tasks, rows)


def difference_cell(test: dict | None) -> str:
    if test is None:
        return "<td class='none'>none</td>"
    low, high = (f"{100 * x:+.1f}" for x in test["interval"])
    return (
        f"<td>{100 * test['mean']:+.1f}{mark(test)} <span class='small'>p {test['p']:.3f}</span>"
        f"<br><span class='small'>{low} to {high}</span></td>"
    )


def published(tasks: list[dict]) -> list[str]:
    """Rows of published figures; their source stands in the row."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for task in tasks:
        for x in task["published"]:
            rows.setdefault((x["model"], x["source"]), {})[task["name"]] = x["value"]
    lines = []
    for (model, source), values in rows.items():
        cells = "".join(
            f"<td>{100 * values[t['name']]:.1f}</td>" if t["name"] in values else "<td></td>"
            for t in tasks
        )
        name = f"{escape(model)}<br><span class='small'>published: {escape(source)}</span>"
        lines.append(f"<tr class='published'><th>{name}</th>{cells}</tr>")
    return lines
