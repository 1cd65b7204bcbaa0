"""Specifications of machines, and the compiler's words for want of memory."""

import importlib.util

import pytest

from musicssl.planning import topology

GIB = 2**30


@pytest.mark.parametrize(
    "spec", ["v9:4x4", "v5e", "v5e:4", "v5p:4x4", "cpu", "cpu:2x2", "v5e:4x4@", "h100", "h300:8"]
)
def test_unknown_ones_are_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match=rf"--topology={spec} .*v5e:4x4, .*"):
        topology.prepare([spec])


def test_without_libtpu_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jax\[tpu\]'"):
        topology.prepare(["v5e:4x4"])


@pytest.mark.parametrize("spec", ["h100:9", "h100:0", "h100:0x8", "h100:2x2x8", "h100:8@2"])
def test_of_gpus_machines_and_their_number_are_asked_for(spec):
    with pytest.raises(ValueError, match=rf"--topology={spec}: .* in a machine, 8 at most"):
        topology.prepare([spec])


def test_without_the_cuda_plugin_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jax\[cuda13\]'"):
        topology.prepare(["h100:2x8"])


def test_here_is_every_device():
    import jax

    place = topology.topology("here")
    assert place.devices == jax.devices() and place.chip is None
    assert place.per_host == len(jax.devices())
    assert topology.memory_limit(place) is None


@pytest.mark.parametrize(
    "message, wanted, limit",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (3.94T) exceeds available HBM (15.75G).",
            3.94 * 1024 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 16.21G of 15.75G hbm. Exceeded hbm capacity by 471.15M.",
            16.21 * GIB,
            15.75 * GIB,
        ),
    ],
)
def test_what_a_refusal_says(message, wanted, limit):
    assert topology.refused_bytes(message) == (int(wanted), int(limit))


def test_a_refusal_in_other_words_is_not_guessed_at():
    with pytest.raises(ValueError, match="not worded as expected: no room"):
        topology.refused_bytes("no room")
