"""What makes many short runs of the loop quick, and what they share."""

import signal
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from jax.sharding import Mesh

from musicssl.objectives import data2vec
from musicssl.runtime.workdir import MAY_CHANGE, flat
from musicssl.training import step as step_lib
from tests.support.sessions import Session, config


@pytest.fixture(scope="module")
def silence_is_nan() -> Iterator[None]:
    """Make the loss of a batch of silence NaN; no other batch here is silent."""
    loss = data2vec.loss

    def patched(encoder, config, params, teacher, batch, rngs):
        value, sums = loss(encoder, config, params, teacher, batch, rngs)
        return value + jnp.where(jnp.abs(batch.waveform).max() == 0, jnp.nan, 0), sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data2vec, "loss", patched)
        yield


@pytest.fixture(scope="module")
def traced_once() -> Iterator[None]:
    """Let sessions that compute the same share it: to trace it takes longer than to run it."""
    make_step, sharded_init = step_lib.make_step, step_lib.sharded_init
    steps: dict[str, Callable] = {}
    states: dict[str, step_lib.TrainState] = {}

    def same(tiny_config: ml_collections.ConfigDict, mesh: Mesh) -> str:
        leaves = flat(tiny_config.to_dict()).items()
        kept = [leaf for leaf in leaves if not leaf[0].startswith(MAY_CHANGE)]
        return f"{kept} {mesh}"

    def step(tiny_config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
        if (key := same(tiny_config, mesh)) not in steps:
            steps[key] = make_step(tiny_config, mesh)
        return steps[key]

    def init(tiny_config: ml_collections.ConfigDict, mesh: Mesh) -> step_lib.TrainState:
        if (key := same(tiny_config, mesh)) not in states:
            states[key] = sharded_init(tiny_config, mesh)
        return jax.tree.map(jnp.copy, states[key])  # a run consumes it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_lib, "make_step", step)
        patch.setattr(step_lib, "sharded_init", init)
        yield


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Give pytest its own signals back: a run takes them over."""
    before = {x: signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Session:
    """A run from nothing to its end."""
    session = Session(config(), tmp_path_factory.mktemp("unbroken"))
    assert session.run()
    return session
