"""Where a run's time goes, by a clock that the test moves."""

import json

import pytest

from musicssl.runtime import goodput


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(goodput.time, "time", lambda: 1e9 + now[0])
    goodput.begin()
    yield now
    monkeypatch.undo()
    goodput.begin()


def shares(**found: float) -> object:
    kinds = dict.fromkeys(("goodput", *goodput.KINDS), 0.0) | found
    return pytest.approx({f"time/{kind}": share for kind, share in kinds.items()})


def test_time_is_counted_once_by_what_is_innermost(clock):
    with goodput.lost("start"):
        clock[0] += 10
        with goodput.lost("restore"):
            clock[0] += 20
        clock[0] += 5
    clock[0] += 60  # steps
    with pytest.raises(KeyError), goodput.lost("input"):
        clock[0] += 5
        raise KeyError
    assert goodput.shares() == shares(goodput=0.6, start=0.15, restore=0.2, input=0.05)
    assert goodput.line() == (
        "goodput 60.0% of 0:01:40, lost to restore 20.0%, start 15.0%, input 5.0%"
    )


def test_what_is_still_waited_for_counts(clock):
    clock[0] += 3600
    with goodput.lost("probe"):
        clock[0] += 3600
        assert goodput.shares()["time/probe"] == 0.5
    goodput.begin()
    clock[0] += 1
    assert goodput.line() == "goodput 100.0% of 0:00:01"


def live(workdir, clock: list[float], first: int, steps: int, unrecorded: int = 0) -> None:
    """A life that starts in 20 s and takes 10 s a step; of its last steps nothing is recorded."""
    goodput.begin()
    with goodput.lost("start"):
        clock[0] += 20
    goodput.keep(workdir, first)
    for step in range(first, first + steps):
        clock[0] += 10
        goodput.record(step + 1)
    goodput.write()
    clock[0] += 10 * unrecorded


def test_a_run_s_lives_are_one_account(clock, tmp_path):
    live(tmp_path, clock, 0, 8, unrecorded=1)  # killed 90 s after its start, saved at step 6
    clock[0] += 30
    live(tmp_path, clock, 6, 1)  # killed before it saved
    clock[0] += 60
    live(tmp_path, clock, 6, 4)
    total = 100 + 10 + 30 + 30 + 60 + 60
    seconds = {"goodput": 60 + 0 + 40, "start": 60, "repeated": 20 + 10, "down": 10 + 30 + 60}
    assert sum(seconds.values()) == total
    assert goodput.shares() == shares(**{kind: x / total for kind, x in seconds.items()})
    assert goodput.line() == (
        "goodput 34.5% of 0:04:50 in 3 lives, lost to down 34.5%, start 20.7%, repeated 10.3%"
    )
    kept = json.loads((tmp_path / "goodput.json").read_text())
    assert [(life["first"], life["step"]) for life in kept] == [(0, 8), (6, 7), (6, 10)]
    assert goodput.account(kept) == pytest.approx(dict.fromkeys(goodput.KINDS, 0.0) | seconds)


def test_steps_before_an_older_save_are_repeated_in_every_life_that_took_them(clock, tmp_path):
    """Where the saves of two lives are damaged, and the third goes on from before both."""
    live(tmp_path, clock, 0, 4)
    live(tmp_path, clock, 4, 4)
    live(tmp_path, clock, 2, 1)
    seconds = goodput.account(json.loads((tmp_path / "goodput.json").read_text()))
    assert (seconds["goodput"], seconds["repeated"]) == (pytest.approx(30), pytest.approx(60))


def test_an_account_is_written_now_and_then(clock, tmp_path):
    goodput.keep(tmp_path, 0)
    path, seen = tmp_path / "goodput.json", []
    for step in range(7):
        clock[0] += 10
        goodput.record(step + 1)
        seen.append(json.loads(path.read_text())[-1]["step"])
    assert seen == [0, 0, 3, 3, 3, 6, 6]
    assert [x.name for x in tmp_path.iterdir()] == ["goodput.json"]


@pytest.mark.parametrize("text", ["", "[1]", '[{"began": 1}]', "{}x"])
def test_an_account_that_cannot_be_read_is_told_and_begun_anew(clock, tmp_path, text, capsys):
    (tmp_path / "goodput.json").write_text(text)
    goodput.keep(tmp_path, 3)
    assert "goodput.json cannot be read: the time" in capsys.readouterr().out
    clock[0] += 5
    assert goodput.line() == "goodput 100.0% of 0:00:05"


def test_a_workdir_that_is_gone_ends_no_run(clock, tmp_path):
    goodput.keep(tmp_path / "absent", 0)
    clock[0] += 100
    goodput.record(1)
    assert not (tmp_path / "absent").exists()
