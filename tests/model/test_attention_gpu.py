"""The GPU's kernels of attention beside attention as it is written, in Pallas's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model import attention, attention_gpu, dropout
from tests.support.gradients import assert_close, both_ways

KEY = jax.random.key(5)


@pytest.mark.parametrize(("frames", "heads", "d"), [(200, 2, 64), (128, 1, 32), (37, 3, 128)])
def test_values_and_gradients_are_those_of_attention_with_the_same_dropout(
    interpreted, frames, heads, d
):
    rng = np.random.default_rng(frames)
    arrays = [jnp.asarray(rng.normal(size=(2, frames, heads, d)), jnp.bfloat16) for _ in range(4)]
    *qkv, dy = arrays
    salts = jnp.stack(dropout.salts(KEY, (2, heads)), axis=-1)
    ours = both_ways(lambda *x: attention_gpu.attend(jnp.stack(x, axis=2), salts, 0.1), qkv, dy)
    exact = [x.astype(jnp.float32) for x in qkv]
    written = both_ways(lambda *x: attention.attend(*x, KEY, 0.1), exact, dy)
    assert_close(ours, written, 4e-3)  # of bfloat16, whose numbers are 2**-8 apart


def test_kernels_are_for_bfloat16_and_heads_of_a_power_of_two():
    like = lambda d, dtype: jax.ShapeDtypeStruct((2, 40, 3, 4, d), dtype)  # noqa: E731
    assert attention_gpu.fits(like(64, jnp.bfloat16))
    assert not attention_gpu.fits(like(48, jnp.bfloat16))
    assert not attention_gpu.fits(like(64, jnp.float32))
