"""The GPU's kernel of a norm over channels and GELU beside the two, in the interpreter."""

import jax.numpy as jnp
import numpy as np

from musicssl.model import norm_gelu_gpu
from musicssl.model.encoder import standardise
from musicssl.model.gelu import gelu
from tests.support.gradients import assert_close, both_ways

CLIPS, FRAMES, WIDTH = 2, 45, 192  # neither frames nor width fill a block


def test_values_and_gradients_are_those_of_the_two_steps(interpreted):
    rng = np.random.default_rng(0)
    x, dy = (
        jnp.asarray(rng.normal(size=(CLIPS, FRAMES, WIDTH)) + 0.5, jnp.bfloat16) for _ in range(2)
    )
    scale, offset = (jnp.asarray(rng.normal(size=WIDTH), jnp.float32) for _ in range(2))

    def kernel(x, scale, offset):
        affine = jnp.broadcast_to(jnp.stack([scale, offset]), (CLIPS, 2, WIDTH))
        return norm_gelu_gpu.normed_gelu(x, affine)

    def written(x, scale, offset):
        return gelu(standardise(x) * scale + offset)

    ours = both_ways(kernel, [x, scale, offset], dy)
    assert_close(ours, both_ways(written, [x.astype(jnp.float32), scale, offset], dy), 4e-3)
