"""The study: its stages, how they resume, and what its report says."""

import html.parser
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import music2vec
from launch import stage_records, stages, study
from musicssl.study import figures, report, results, svg
from tests.support import commands, fabricated_study
from tests.support.recorded_stages import Recorded

ROOT = Path(__file__).parents[2]
PAPER = [
    *(f"music2vec-{x}" for x in ("vanilla", "800k", "crop5s", "prob50", "prob80")),
    *(f"music2vec-{x}" for x in ("span5", "span15", "target12")),
    *(f"musichubert-{x}" for x in ("k500", "k500_mfcc60", "k2000_iter1", "k2000_iter2")),
]
VOID = {"meta", "br"}


def dry_run(capsys: pytest.CaptureFixture, *arguments: str) -> list[tuple[str, str]]:
    """(comment, command) of each stage that --dry-run prints."""
    assert study.main(["--dry-run", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize("scale, datasets", [("demo", 2), ("base", 8)])
def test_a_dry_run_prints_every_stage_in_an_order_that_runs(scale, datasets, tmp_path, capsys):
    printed = dry_run(capsys, f"--scale={scale}", f"--workdir={tmp_path}")
    names = [comment.split(": ")[1] for comment, _ in printed]
    baselines = 2 + len(study.BASELINES)
    models = [f"pretrain/{model.name}" for model in study.MODELS]
    assert [name for name in names if name.startswith("pretrain/")] == models
    assert [x for x in models if x.partition("/")[2] in PAPER] == [f"pretrain/{x}" for x in PAPER]
    assert sum(name.startswith("probe/") for name in names) == (len(models) + baselines) * datasets
    assert names[-1] == "report" and len(set(names)) == len(names)
    for place, (comment, command) in enumerate(printed):
        needs = comment.partition(", needs ")[2]
        assert all(need in names[:place] for need in filter(None, needs.split(", ")))
        assert re.match(r"python -m (musicssl\.\w+|data_pipelines\.build) ", command)
    assert list(tmp_path.iterdir()) == []
    second = next(command for _, command in printed if "k2000_iter2" in command)
    assert f"--config.teacher.encoder={tmp_path}/musichubert-k2000_iter1" in second


def test_models_tasks_and_encoders_are_chosen(tmp_path, capsys):
    given = tmp_path / "hubert-base"
    given.mkdir()
    (given / "config.json").write_text('{"model_type": "hubert"}')
    (given / "preprocessor_config.json").write_text('{"sampling_rate": 16000}')
    printed = dry_run(
        capsys, "--scale=base", "--models=musichubert-k2000_iter2,logmel", "--tasks=gtzan_genre",
        f"--encoders={given}", f"--workdir={tmp_path}", "--", "--config.mesh.fsdp=4",
    )  # fmt: skip
    names = [comment.split(": ")[1] for comment, _ in printed]
    assert names == [
        *("data/music_folder", "data/gtzan"),
        *("pretrain/musichubert-k2000_iter1", "pretrain/musichubert-k2000_iter2"),
        *(f"probe/{x}/gtzan" for x in ("musichubert-k2000_iter2", "logmel", "hubert-base")),
        "report",
    ]
    assert all(("--config.mesh.fsdp=4" in x) == ("musicssl.main" in x) for _, x in printed)
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech/config.json").write_text('{"model_type": "whisper"}')
    wrong = {
        "--models=logmel,music3vec": "--models: 'music3vec' names none",
        "--tasks=gtzan_mood": "gtzan_mood",
        "--stages=report,train/*": "--stages: 'train/*' names none",
        "--encoders=/no/such": "--encoders: /no/such is not there",
        f"--encoders={tmp_path}/speech": "model_type is 'whisper'",
        f"--encoders={given},{given}/": "two are called hubert-base",
    }
    for argument, words in wrong.items():
        assert study.main(["--scale=demo", f"--workdir={tmp_path}", argument]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and words in said
    with pytest.raises(SystemExit):  # after -- it would be no word to this command
        study.main(["--scale=demo", f"--workdir={tmp_path}", "--", "--dry-run"])
    assert "--dry-run: what comes after --" in capsys.readouterr().err


def test_a_thirteenth_configuration_is_a_variant_and_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(music2vec.VARIANTS, "span40_demo", music2vec.STUDY | {"mask.span": 40})
    monkeypatch.setattr(study, "MODELS", (*study.MODELS, study.Model("music2vec", "span40")))
    printed = dry_run(capsys, "--scale=demo", f"--workdir={tmp_path}")
    assert sum("music2vec.py:span40_demo" in command for _, command in printed) == 1
    assert sum("probes/music2vec-span40/" in command for _, command in printed) == 2
    fabricated_study.fabricate(tmp_path)
    found = results.collect(tmp_path)
    spans = next(x for x in figures.ablations(found) if x["leaf"] == "mask.span")
    values = [value for _, value in spans["models"]]
    assert {5, 10, 15, 40} <= set(values) and values == sorted(values)


def test_stages_run_once_after_what_they_need(tmp_path, capsys):
    of = Recorded(tmp_path)
    broken = of.stage("b", ("a",), "raise SystemExit(3)")
    after, last = of.stage("c", ("b",)), of.stage("report", last=True)
    code, ran = of.run(of.stage("a"), broken, after, of.stage("d"), last)
    assert code == 3
    assert sorted(ran) == ["a", "b", "d", "report"] and ran[-1] == "report"
    said = capsys.readouterr().err
    assert "b ended with exit code 3" in said and "left out: c" in said

    every = (of.stage("a"), of.stage("b", ("a",)), after, of.stage("d"), last)
    assert of.run(*every) == (0, ["b", "c", "report"])  # mended, and what waited for it
    assert of.run(*every) == (0, [])
    assert "all 5 stages are complete" in capsys.readouterr().err
    other = of.stage("d", code="pass  # another command")
    assert of.run(*every[:3], other, last) == (0, ["d", "report"])
    (tmp_path / "a.product").unlink()
    assert of.run(of.stage("a"))[1] == ["a"]
    noted = json.loads((tmp_path / "study/stages/d.json").read_text())
    assert noted["command"] == list(other.command) and noted["commit"] == "c0ffee"
    assert not list((tmp_path / "study/stages").glob("*.attempts"))


def test_times_are_guessed_from_stages_that_are_alike():
    alike = (("probe/a-1/gtzan", "probe/b/gtzan"), ("pretrain/a-1", "pretrain/a-2"))
    apart = (("probe/a/gtzan", "probe/a/nsynth"), ("pretrain/a-1", "pretrain/b-1"))
    assert all(stages.kind(one) == stages.kind(other) for one, other in alike)
    assert all(stages.kind(one) != stages.kind(other) for one, other in apart)


def test_a_part_is_chosen_if_what_it_needs_is_chosen_too_or_complete(tmp_path):
    of = Recorded(tmp_path)
    first, *rest = every = [of.stage("a"), of.stage("b", ("a",)), of.stage("c", ("b",))]
    folder = tmp_path / "study"
    with pytest.raises(ValueError, match="b needs a, which is not complete"):
        stages.without_complete(rest, every, folder)
    assert of.run(first) == (0, ["a"])
    rest = stages.without_complete(rest, every, folder)
    assert [x.needs for x in rest] == [(), ("b",)]
    assert of.run(*rest) == (0, ["b", "c"])


SCRIPT = """
import sys
from pathlib import Path
from launch import stages
from tests.support import recorded_stages

of = recorded_stages.Recorded(Path(sys.argv[1]))
each = [of.stage("a"), of.stage("b", ("a",), sys.argv[2]), of.stage("c", ("b",))]
sys.exit(stages.run(each, of.folder / "study", 1, lambda: sys.argv[3]))
"""


def start(folder: Path, code: str, commit: str = "") -> subprocess.CompletedProcess:
    """A study of three stages in a process of its own, the second of which runs some code."""
    command = [sys.executable, "-c", SCRIPT, str(folder), code, commit]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_study_that_is_asked_to_end_goes_on_later(tmp_path):
    """The stage itself asks, so that no clock decides; then it waits to be ended."""
    asking = (
        f"import os, pathlib, signal, time; asked = pathlib.Path({str(tmp_path / 'asked')!r})\n"
    )
    asking += "if not asked.exists(): asked.touch(); os.kill(os.getppid(), signal.SIGTERM); "
    asking += "time.sleep(600)"
    for code, commit, ran in ((75, "first", "a b "), (0, "second", "a b b c ")):
        done = start(tmp_path, asking, commit)
        assert done.returncode == code, done.stderr
        assert (tmp_path / "ran").read_text() == ran
        assert ("asked to end: run the same command" in done.stderr) == (code == 75)
        assert "left out" not in done.stderr
    noted = stage_records.read(tmp_path / "study", "b")
    assert noted["commit"] == "second" and noted["earlier_commits"] == ["first"]


def test_a_stage_that_outlives_a_killed_study_is_not_run_beside_itself(tmp_path):
    """The stage kills the study and then stays until it is let go."""
    kill = "import os, pathlib, signal, time; os.kill(os.getppid(), signal.SIGKILL)\n"
    wait = f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    assert start(tmp_path, kill + wait).returncode == -signal.SIGKILL
    again = start(tmp_path, "")
    assert again.returncode == 1 and "is in use by a study or a stage that one left" in again.stderr
    (tmp_path / "go").touch()
    for _ in range(3000):  # until the stage has ended: half a minute at most
        done = start(tmp_path, "")
        if "is in use" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").read_text() == "a b c "  # what it made counts


def test_two_studies_do_not_share_a_folder(tmp_path):
    with (
        stages.alone(tmp_path),
        pytest.raises(ValueError, match="is in use"),
        stages.alone(tmp_path),
    ):
        pass


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    fabricated_study.fabricate(folder)
    return folder


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
    assert "with 24 goes clips in an update 8 → 32" in page
    assert page.count("0123456789ab") > 40  # the commit that each stage's record names
    assert "show that the machinery runs, not which method is better" in page
    assert "published:" not in page  # there is none of the synthesised music


def test_differences_are_those_of_an_independent_paired_test(demo):
    told = written(demo)[1]
    plan = json.loads((demo / "study.json").read_text())
    draws = {}
    for encoder in plan["encoders"]:
        held = json.loads(Path(encoder["results"]["synth_music"], "results.json").read_text())
        draws[encoder["name"]] = np.array(held["tasks"]["synth_key"]["chosen"]["draws"])
    seen = set()
    for name in list(draws)[1:]:
        apart = draws[name] - draws["music2vec-vanilla"]
        found = told["scores"][name]["synth_key"]["from_reference"]
        np.testing.assert_allclose(found["interval"], np.quantile(apart, [0.025, 0.975]))
        assert found["mean"] == pytest.approx(np.sum(apart) / 400)
        smaller = sorted([np.sum(apart > 0), np.sum(apart < 0)])[0]
        assert found["p"] == pytest.approx(min(1, 2 * (smaller + 1) / 401))
        seen.add(found["p"] < 0.05)
        assert found["likely"] == (found["p"] < 0.05)  # their means are those of the draws
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
    assert "pretrain/music2vec-prob80: commit fedcba987654 by its result, not noted" in page
    assert "data/gtzan: not run, or its result was there before<" in page
    told_of = "commit 0123456789ab-dirty, begun at aaaabbbbcccc, 2026"
    assert f"pretrain/music2vec-span5: {told_of}" in page
    assert re.search(r"1 of \d+ stages were run while files differed", page)
    assert "Not run: mtg_instrument, mtg_moodtheme, mtg_genre, mtg_top50" in page
    assert "machinery runs" not in page
    # published figures stand in rows that name their source
    assert "published: MARBLE, arXiv:2306.10548v1" in page and ">74.1</td>" in page
    assert told["tasks"][0]["published"][1]["model"] == "Music2Vec 95M"


def test_no_study_is_refused_in_a_line(tmp_path):
    process = commands.Process(commands.module, "musicssl.study_report", f"--workdir={tmp_path}")
    _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("\n") == 1
    assert "study.json is not there: launch/study.py writes it" in errors


def test_what_a_configuration_varies_is_found_from_the_runs(demo):
    found = results.collect(demo)
    groups = {(x["base"], x["leaf"]): dict(x["models"]) for x in figures.ablations(found)}
    vanilla, first = "music2vec-vanilla", "musichubert-k500"
    assert set(groups) == {
        *((vanilla, x) for x in ("steps", "data.crop_frames", "mask.probability", "mask.span")),
        (vanilla, "data2vec.top_layers"),
        *((first, x) for x in ("teacher.ceps", "teacher.clusters")),
        ("musichubert-k2000_iter1", "teacher.feature"),
    }
    assert list(groups[vanilla, "mask.probability"].values()) == [0.5, 0.65, 0.8]
    assert list(groups["musichubert-k2000_iter1", "teacher.feature"].values()) == ["mfcc", "layer"]


@pytest.mark.parametrize("low, high", [(0, 1), (0.213, 0.789), (-3, 40), (0.5001, 0.5003)])
def test_ticks_are_round_and_inside(low, high):
    ticks = svg.nice_steps(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] and ticks[-1] <= high
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_charts_place_points_and_leave_out_what_is_not_finite():
    axes = svg.Axes("a & b", [(0, "x"), (1, "y")], low=0.0, high=1.0, level=0.5, size=(100, 100))
    points = [svg.Point(0, 0.0), svg.Point(1, 1.0, 0.9, 1.0), svg.Point(0.5, float("nan"))]
    drawn = svg.chart(axes, [svg.Series("s", points, "#123456")])
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    (x0, y0), (x1, y1) = [(float(x), float(y)) for x, y in circles]
    assert x0 < x1 and y0 > y1 and "nan" not in drawn
    assert "a &amp; b" in drawn and 'class="chance"' in drawn
    names = ("electric piano", "harpsichord", "organ", "violin")
    drawn = svg.chart(svg.Axes("", list(enumerate(names)), size=(200, 100)), [])
    heights = re.findall(r'y="(\d+)" text-anchor="middle"', drawn)
    assert heights == [heights[0], heights[1]] * 2 and heights[0] != heights[1]
    lines = [
        svg.Series(x, [svg.Point(0, y)], "#000000", label=x)
        for x, y in (("a", 0), ("b", 0.01), ("c", 1))
    ]
    drawn = svg.chart(svg.Axes("", [(0, "x")]), lines)
    ends = {x: float(y) for y, x in re.findall(r'y="([\d.]+)" style="[^"]*">(.)<', drawn)}
    assert ends["a"] - ends["b"] >= 10 and ends["b"] - ends["c"] > 50
    assert svg.ramp(0) == svg.RAMP[0] and svg.ramp(1) == svg.RAMP[-1]


def plan_told(seconds: dict[str, float], fits: bool = True) -> list[dict]:
    """The part of a planner's answer that costs are taken from."""
    told = {"topology": "v5e:4x4", "devices": 16, "clips": 4, "seconds": seconds}
    return [told | {"memory": {"fits": fits}}]


def test_costs_are_the_planners(tmp_path, capsys):
    arguments = ["--scale=base", "--cost", f"--models={','.join(PAPER[:8])}"]
    arguments.append(f"--workdir={tmp_path}")
    assert study.main([*arguments, "--dry-run"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [x[3] for x in told] == [
        f"--config=configs/music2vec.py:{name}" for name in ("vanilla", "crop5s")
    ]
    (tmp_path / "cost").mkdir()
    outputs = [Path(x[-1].partition("=")[2] + ".json") for x in told]
    for path in outputs:
        path.write_text(json.dumps(plan_told({"roofline": 0.5, "compiler": 2.0})))
        path.with_suffix(".commit").write_text("c0ffee")
    assert study.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {x.split(" | ")[0].strip("| "): [y.strip(" |") for y in x.split(" | ")] for x in printed}
    assert printed[-1].startswith("Planned at commit c0ffee; today's is ")
    # 400,000 updates of 112 clips, 4 a chip: 11.2 million chip steps
    low, high = (11.2e6 * x / 3600 for x in (0.5, 2.0))
    assert rows["music2vec-vanilla"][5] == f"{low:,.0f} to {high:,.0f}"
    assert rows["music2vec-vanilla"][4] == f"{low / 16:,.0f} to {high / 16:,.0f}"
    assert rows["music2vec-800k"][5] == f"{2 * low:,.0f} to {2 * high:,.0f}"
    assert rows["music2vec-span5"][-1] == "music2vec-vanilla"
    times = 1 + 2 + 5 + 752 / 112  # vanilla, twice the updates, five like it, crop5s
    assert rows["all 8"][5] == f"{low * times:,.0f} to {high * times:,.0f}"
    outputs[0].write_text(json.dumps(plan_told({"roofline": 0.5}, fits=False)))
    assert study.main(arguments) == 2
    assert "4 clips a chip do not fit v5e:4x4" in capsys.readouterr().err
    outputs[0].write_text(json.dumps(plan_told({"roofline": None})))
    assert study.main(arguments) == 2
    assert "has no estimate of time: name a TPU" in capsys.readouterr().err
