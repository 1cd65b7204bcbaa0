"""The GPU's kernel of dropout, residual sum and layer norm beside the three, in the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model import dropout, residual_norm_gpu
from musicssl.model.encoder import standardise
from tests.support.gradients import assert_close, both_ways

KEY = jax.random.key(3)
CLIPS, FRAMES, WIDTH = 2, 45, 192  # neither frames nor width fill a block


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_values_and_gradients_are_those_of_the_three_steps(interpreted, rate):
    rng = np.random.default_rng(0)
    x, y, dy = (
        jnp.asarray(rng.normal(size=(CLIPS, FRAMES, WIDTH)), jnp.bfloat16) for _ in range(3)
    )
    scale, offset = (jnp.asarray(rng.normal(size=WIDTH), jnp.float32) for _ in range(2))
    salts = jnp.stack(dropout.salts(KEY, (CLIPS,)), axis=-1)

    def kernel(x, y, scale, offset):
        affine = jnp.broadcast_to(jnp.stack([scale, offset]), (CLIPS, 2, WIDTH))
        return residual_norm_gpu.normed_sum(x, y, affine, salts, rate)

    def written(x, y, scale, offset):
        if rate:
            y = jnp.where(dropout.keep(KEY, y.shape, rate), y / (1 - rate), 0)
        return standardise(x + y) * scale + offset

    exact = [x.astype(jnp.float32), y.astype(jnp.float32), scale, offset]
    ours = both_ways(kernel, [x, y, scale, offset], dy)
    assert_close(ours, both_ways(written, exact, dy), 4e-3)
