"""The kernel of attention in Pallas's interpreter, against the plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.model import attention, attention_kernel, dropout
from tests.support.attention_forms import with_gradients


@pytest.mark.parametrize("frames, heads, d", [(40, 4, 64), (264, 1, 128), (24, 8, 32)])
def test_the_kernel_drops_the_same_weights_and_has_the_same_gradients(frames, heads, d):
    """One block of rows, several, and four heads of one block of channels."""
    rng = np.random.default_rng(1)
    shape = (2, frames, heads, d)
    *qkv, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4))
    key = jax.random.key(3)
    words = jnp.stack(dropout.salts(key, (2, heads)), axis=-1)
    assert attention_kernel.fits(frames, heads, d)
    kernels = with_gradients(lambda *x: attention_kernel.attend(*x, words, 0.3, True), qkv, dy)
    plain = with_gradients(lambda *x: attention.attend(*x, key, 0.3), qkv, dy)
    for ours, theirs in zip(kernels, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "frames, heads, d, rows",
    [
        (1496, 12, 64, 136),
        (1496, 16, 64, 136),
        (1499, 12, 64, None),  # prime
        (1496, 3, 64, None),  # no whole number of 128 channels
        (1496, 12, 96, None),
    ],
)
def test_shapes_that_the_kernel_takes(frames, heads, d, rows):
    assert attention_kernel.fits(frames, heads, d) == (rows is not None)
    if rows:
        assert attention_kernel.rows_of(frames) == rows
