"""Rates of this machine: of the functions that an evaluation runs."""

import numpy as np
import pytest

from configs import probe as probe_config
from musicssl.features import extract
from musicssl.planning import evaluation, rates
from musicssl.probing import beats, search
from musicssl.probing.tasks import TASKS
from musicssl.runtime import sharding
from tests.support import feature_sources


def test_rates_are_measured_of_what_an_evaluation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, searched, decoded = [], [], []
    monkeypatch.setattr(rates, "_ENOUGH", 1e-9)
    monkeypatch.setattr(rates, "_CLIPS", 2)
    calls = ((extract, "extract", heard), (search, "search", searched), (beats, "monitor", decoded))
    for module, name, seen in calls:
        real = getattr(module, name)
        record = lambda *given, real=real, seen=seen: seen.append(given) or real(*given)  # noqa: E731
        monkeypatch.setattr(module, name, record)
    config = probe_config.get_config("quick")
    chosen = [TASKS["synth_beat"], TASKS["poly_pitch"]]
    mesh, source = sharding.make_mesh(), feature_sources.source()
    found = rates.measure(source, chosen, config, mesh, evaluation.forward)
    assert [x.length for x in found.extraction] == [2, 5]  # the shortest and the longest windows
    assert {int(cut.size) for _, cut, *_ in heard} == {32_000, 80_000}
    assert len(searched) == 2 and len(decoded) == 1  # once to compile, once to be timed
    assert found.single > 0 and found.decoding > 0
    assert found.mixed is None and rates._probes(source, config, 3) > 0  # of a layer, of a sum
    assert found.seconds_of_audio == pytest.approx(5 / found.extraction[1].seconds)


def test_a_window_takes_the_time_of_the_nearest_one_measured() -> None:
    measured = [rates.Measured(2.0, 1.0, 10.0), rates.Measured(30.0, 20.0, 200.0)]
    of = rates.Rates("", measured, 1.0, None, 0.0)
    assert of.window(3.0, 15.0) == pytest.approx(1.5)
    assert of.window(20.0, 100.0) == pytest.approx(10.0)
    assert of.window(15.0, None) == pytest.approx(10.0)  # by length, where operations are unknown
    assert np.isclose(of.seconds_of_audio, 1.5)
