"""States of few arrays, and configurations that save them often."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from musicssl.training import optim
from musicssl.training.step import TrainState
from tests.support import tiny

EVERY = {"steps": 11, "checkpoint.every": 2, "checkpoint.keep": 2, "checkpoint.keep_every": 4}


def config(leaves: dict | None = None) -> ml_collections.ConfigDict:
    return tiny.config(EVERY | (leaves or {}))


def made_state(seed: int = 0) -> TrainState:
    """A state of few arrays, one of them large enough to be sharded, values of every size."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30), jnp.float32)

    params = {
        "encoder": {"layer_0": {"kernel": array(256, 512)}, "stem_conv_0": {"bias": array(5)}},
        "head": {"kernel": array(3, 4)},
    }
    teacher = {"encoder": {"layer_0": {"kernel": array(256, 512)}}}
    optimizer = jax.tree.map(
        lambda x: array(*x.shape) if x.ndim else jnp.int32(seed), optim.adam(config()).init(params)
    )
    return TrainState(jnp.int32(seed), jnp.int32(7), params, teacher, optimizer)
