"""Where a run's time goes, by a clock that the test moves."""

import pytest

from musicssl.runtime import goodput


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    goodput.begin()
    return now


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
    found = goodput.shares()
    assert found == pytest.approx(
        dict.fromkeys((f"time/{kind}" for kind in goodput.KINDS), 0)
        | {"time/goodput": 0.6, "time/start": 0.15, "time/restore": 0.2, "time/input": 0.05}
    )
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
