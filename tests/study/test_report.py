"""The study: its stages, how they resume, and what its report says."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from launch import stage_records, study
from musicssl.study import report
from tests.support import fabricated_study
from tests.support.studies import PAPER

VOID = {"meta", "br"}


def written(folder: Path) -> tuple[str, dict]:
    """The page and results.json of a folder's report."""
    assert report.write(folder).startswith(f"{folder}/report/index.html: ")
    page = (folder / "report/index.html").read_text()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return page, json.loads((folder / "report/results.json").read_text(), parse_constant=refuse)


class Balance(html.parser.HTMLParser):
    """Fails where an element is closed that is not open; notes what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        if tag in ("script", "link", "iframe", "object", "img", "image"):
            self.loads.append(tag)
        self.loads += [x for x in (given.get("src"), given.get("href")) if x and x[0] != "#"]
        if given.get("href"):
            self.anchors.add(given["href"])
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_the_report_says_every_score_and_loads_nothing(demo):
    page, told = written(demo)
    reader = Balance()
    reader.feed(page)
    assert reader.open == [] and reader.loads == []
    assert "url(" not in page and "@import" not in page
    assert all(f"id='{anchor[1:]}'" in page for anchor in reader.anchors)
    plan = json.loads((demo / "study.json").read_text())
    assert (
        len(plan["encoders"]) == len(study.MODELS) + 2 + len(study.BASELINES)
        and len(plan["tasks"]) == 13
    )
    for encoder in plan["encoders"]:
        for folder in encoder["results"].values():
            for name, task in json.loads(Path(folder, "results.json").read_text())["tasks"].items():
                mean = task["chosen"]["test"][task["score"]]["mean"]
                low, high = task["chosen"]["interval"]
                cell = rf"<b>{100 * mean:.1f}</b>.{{0,30}}<br><span class='small'>"
                assert re.search(rf"{cell}{100 * low:.1f} – {100 * high:.1f}", page)
                assert told["scores"][encoder["name"]][name]["mean"] == mean
        test = told["scores"][encoder["name"]]["synth_key"]["from_reference"]
        assert test is None or f"<span class='small'>p {test['p']:.3f}</span>" in page
    for command in plan["commands"].values():
        assert command[3] in page
    assert "24 also changes clips in an update 8 → 32" in page
    assert page.count("0123456789ab") > 40  # the commit that each stage's record names
    assert "show that the machinery runs, not which method is better" in page
    assert "published:" not in page  # there is none of the synthesised music


def test_differences_are_those_of_an_independent_paired_test(demo):
    told = written(demo)[1]
    plan = json.loads((demo / "study.json").read_text())
    draws = {}
    for encoder in plan["encoders"]:
        held = json.loads(Path(encoder["results"]["synth_music"], "results.json").read_text())
        draws[encoder["name"]] = np.array(held["tasks"]["synth_key"]["chosen"]["draws"])  # [3, 400]
    seen = set()
    random = np.random.default_rng(7)

    def mean_of_two(values: np.ndarray) -> np.ndarray:
        chosen = random.integers(0, 3, (2, 100, 400))  # a hundred times as many as the product's
        return np.take_along_axis(values[:, None], chosen, 0).mean(0).ravel()

    for name in list(draws)[1:]:
        apart = mean_of_two(draws[name]) - mean_of_two(draws["music2vec-vanilla"])
        found = told["scores"][name]["synth_key"]["from_reference"]
        np.testing.assert_allclose(found["interval"], np.quantile(apart, [0.025, 0.975]), atol=0.02)
        means = [draws[x].mean() for x in (name, "music2vec-vanilla")]
        assert found["mean"] == pytest.approx(means[0] - means[1])
        smaller = min(np.mean(apart > 0), np.mean(apart < 0))
        error = np.sqrt(smaller * (1 - smaller) / 400)  # of the product's 400 draws
        assert found["p"] == pytest.approx(min(1, 2 * smaller), abs=6 * error + 0.005)
        assert found["likely"] == (found["p"] < 0.05)
        seen.add(found["likely"])
    assert seen == {True, False}
    assert told["scores"]["music2vec-vanilla"]["synth_key"]["from_reference"] is None


def test_what_is_not_there_is_said(tmp_path):
    made = fabricated_study.fabricate(tmp_path, ",".join([*PAPER[:8], "logmel"]), "base")
    for record in ("pretrain-music2vec-prob80", "data-gtzan"):  # run by hand or on a cluster
        (tmp_path / f"stages/{record}.json").unlink()
    record = stage_records.path_of(tmp_path, "pretrain/music2vec-span5")
    noted = json.loads(record.read_text())
    noted |= {"commit": "0123456789abcdef-dirty", "earlier_commits": ["aaaabbbbccccdddd"]}
    record.write_text(json.dumps(noted))
    place = made.place(made.pretrained()[1])
    (place / "checkpoints/800000").rename(place / "checkpoints/90000")
    (made.results(made.encoders[2], "gtzan") / "results.json").unlink()
    for encoder in made.encoders:
        (made.results(encoder, "mtg_jamendo") / "results.json").unlink()
    page, told = written(tmp_path)
    assert "7 of 8 encoders pre-trained here, 1 baseline; " in page and "at update 90000" in page
    assert "not run</td>" in page
    assert "pretrain/music2vec-prob80: commit fedcba987654 according to its result" in page
    assert "data/gtzan: not run, or its result existed before<" in page
    told_of = "commit 0123456789ab-dirty, begun at aaaabbbbcccc, 2026"
    assert f"pretrain/music2vec-span5: {told_of}" in page
    assert re.search(r"1 of \d+ stages were run while files differed", page)
    assert "Not run: mtg_instrument, mtg_moodtheme, mtg_genre, mtg_top50" in page
    assert "machinery runs" not in page
    # published figures stand in rows that name their source
    assert "published: MARBLE, arXiv:2306.10548v1" in page and ">74.1</td>" in page
    assert told["tasks"][0]["published"][1]["model"] == "Music2Vec 95M"
