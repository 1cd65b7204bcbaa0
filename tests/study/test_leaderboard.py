"""The leaderboard: every score of any results, what differs told, published figures apart."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from musicssl.probing import published, report, schema
from musicssl.study import leaderboard
from tests.study.test_report import Balance


def result(name: str, mean: float, **fields) -> dict:
    """A result of three probe seeds whose bootstrap samples lie around a mean."""
    spread = np.random.default_rng(int(1000 * mean)).normal(0, 0.01, (3, 200))
    return {
        "task": name,
        "title": f"the task {name}",
        "dataset": "gtzan" if name.startswith("gtzan") else "synth_music",
        "score": "accuracy",
        "chosen": {
            "source": "1",
            "learning_rate": 1e-3,
            "test": {"accuracy": {"mean": mean, "sd": 0.01}, "other": {"mean": 0.3, "sd": 0.02}},
            "test_seeds": [mean] * 3,
            "draws": (mean + spread).tolist(),
        },
        "test_items": "these",
        "chance": {"accuracy": 0.1, "other": 0.0},
        "items": {"train": 443, "validation": 197, "test": 290},
        "settings": {"kind": "mlp"},
        "protocol": schema.PROTOCOL,
    } | fields


def hold(folder: Path, *tasks: dict, **about) -> Path:
    folder.mkdir(parents=True)
    held = {"encoder": folder.name, "features": f"of {folder.name}", "config": {}} | about
    held["tasks"] = {task["task"]: task for task in tasks}
    (folder / "results.json").write_text(json.dumps(held))
    return folder


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, list[dict[str, str]]]:
    """The page and the lines of the CSV of four encoders."""
    linear = {"settings": {"kind": "linear"}}
    folders = [
        hold(tmp_path / "one", result("gtzan_genre", 0.6), result("synth_key", 0.5)),
        hold(tmp_path / "<two>", result("gtzan_genre", 0.7)),
        hold(tmp_path / "old", result("gtzan_genre", 0.5, **linear, protocol=1)),
        hold(tmp_path / "other", result("gtzan_genre", 0.65, test_items="others")),
    ]
    line = leaderboard.write(folders, tmp_path / "out")
    assert line == f"{tmp_path}/out/compare.html and compare.csv: 4 encoders, 2 tasks"
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.html"]
    with (tmp_path / "out/compare.csv").open() as file:
        return (tmp_path / "out/compare.html").read_text(), list(csv.DictReader(file))


def test_the_page_is_whole_and_loads_nothing(written) -> None:
    page, _ = written
    reader = Balance()
    reader.feed(page)
    sources = [source["url"] for source in published.sources()]
    assert reader.open == [] and reader.loads == [*sources, "script"]  # links, and its own script
    assert "<script src" not in page and "url(" not in page and "@import" not in page
    assert all(f"id='{anchor[1:]}'" in page for anchor in reader.anchors if anchor[0] == "#")
    assert "&lt;two&gt;" in page and "<two>" not in page


def test_every_score_can_be_sorted_by_and_has_its_interval(written) -> None:
    page, lines = written
    for line in lines:
        if line["score"] == "accuracy":
            low, high = (f"{100 * float(line[x]):.1f}" for x in ("low", "high"))
            mean = float(line["mean"])
            cell = rf"data-value='{mean:.6f}'.{{0,90}}<b>{100 * mean:.1f}"
            assert re.search(rf"{cell}.{{0,99}}{low} – {high}", page)
    assert page.count("not run</td>") == 0  # encoders without any task of a table are not in it
    assert page.count("<tbody><tr><th data-value='one'>") == 2


def test_what_differs_is_said_at_the_score_and_in_the_csv(written) -> None:
    page, lines = written
    differing = {x["encoder"]: x["differs"] for x in lines if x["task"] == "gtzan_genre"}
    probed = "probed with kind linear instead of mlp, protocol version 1 instead of 2"
    items = "test items are not the same, so there is no test"
    assert differing == {"one": "", "<two>": "", "old": probed, "other": items}
    assert f"<ol><li>{probed}</li><li>{items}</li></ol>" in page
    assert "<b>50.0</b><b class='down'>▼</b><sup>1</sup>" in page
    assert "<b>65.0</b><sup>2</sup>" in page and "<b>70.0</b><b class='up'>▲</b><br>" in page
    tests = {x["encoder"]: x["p"] for x in lines if x["score"] == "accuracy"}
    assert tests["one"] == tests["other"] == "" and float(tests["<two>"]) < 0.05


def test_published_figures_are_apart_from_what_was_run(written) -> None:
    page, lines = written
    run, elsewhere = page.split("<section id='published'>")
    elsewhere = elsewhere.split("<section id='made'>")[0]
    for source in published.sources():
        assert f">{source['source']}</a>, {source['date']}" in elsewhere
        assert all(f"data-value='{model}'" in elsewhere for model in source["models"])
        assert not any(model in run for model in source["models"])
    assert {line["encoder"] for line in lines} == {"one", "<two>", "old", "other"}


def test_encoders_need_not_have_all_tasks_but_two_must_share_one(tmp_path: Path) -> None:
    a = hold(tmp_path / "a", result("gtzan_genre", 0.6))
    b = hold(tmp_path / "b", result("gtzan_genre", 0.6), result("synth_key", 0.6))
    c = hold(tmp_path / "c", result("synth_key", 0.6))
    with pytest.raises(ValueError, match="no task in common"):
        report.compare([a, c], tmp_path / "out")
    assert "No task is in all of the results" in report.compare([a, b, c], tmp_path / "out")
    leaderboard.write([a, b, c], tmp_path / "out")
    page = (tmp_path / "out/compare.html").read_text()
    assert "<p>3 encoders, 2 tasks." in page and "<p>Nothing differs: all scores" in page
