"""Stages: run once, in order, and gone on with after whatever interrupts them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import stage_records, stages
from tests.support.recorded_stages import Recorded

ROOT = Path(__file__).parents[2]


def test_stages_run_once_after_what_they_need(tmp_path, capsys):
    of = Recorded(tmp_path)
    broken = of.stage("b", ("a",), "raise SystemExit(3)")
    after, last = of.stage("c", ("b",)), of.stage("report", last=True)
    code, ran = of.run(of.stage("a"), broken, after, of.stage("d"), last)
    assert code == 3
    assert sorted(ran) == ["a", "b", "d", "report"] and ran[-1] == "report"
    said = capsys.readouterr().err
    assert "b ended with exit code 3" in said and "c was left out" in said

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
    assert again.returncode == 1
    assert "is in use by a study, or by a stage that outlived one" in again.stderr
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
