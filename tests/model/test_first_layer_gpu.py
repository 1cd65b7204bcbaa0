"""The stem's first layer as the GPU's kernel beside the layer as it is written."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from musicssl import audio
from musicssl.model import first_layer_gpu, stem
from tests.support.gradients import assert_close, both_ways

WIDTH = first_layer_gpu.CHANNELS


@pytest.mark.parametrize(
    ("axis", "bias", "surplus"),
    [(stem.TIME, False, 0), (stem.CHANNELS, False, 211), (stem.CHANNELS, True, 0)],
)
def test_values_and_gradients_are_those_of_convolution_norm_and_gelu(
    interpreted, axis, bias, surplus
):
    """Blocks of frames are not filled; a gradient sums over more than one program's frames."""
    rng = np.random.default_rng(1)
    sound = jnp.asarray(0.3 * rng.normal(size=(2, audio.crop_samples(33) + surplus)), jnp.bfloat16)
    values = [
        rng.normal(size=(stem.KERNELS[0], 1, WIDTH)) / 3,
        *([0.2 * rng.normal(size=WIDTH)] if bias else []),
        1 + 0.2 * rng.normal(size=WIDTH),
        0.2 * rng.normal(size=WIDTH),
    ]
    values = [jnp.asarray(x, jnp.float32) for x in values]

    def layer(kernel, *rest):
        return stem.StemLayer(kernel, rest[0] if bias else None, stem.Norm(*rest[-2:]))

    def written(*values):
        return stem.onward(sound.astype(jnp.float32)[..., None], [layer(*values)], axis, 0)

    frames = (sound.shape[1] - stem.KERNELS[0]) // stem.STRIDES[0] + 1
    assert frames > first_layer_gpu.FRAMES * first_layer_gpu.BLOCKS
    dy = jnp.asarray(rng.normal(size=(2, frames, WIDTH)), jnp.bfloat16)
    ours = both_ways(lambda *x: stem.first_on_gpu(sound, layer(*x), axis), values, dy)
    assert_close(ours, both_ways(written, values, dy), 8e-3)


def test_the_norm_over_time_counts_a_padded_clips_own_frames(interpreted):
    rng = np.random.default_rng(2)
    kernel = jnp.asarray(rng.normal(size=(stem.KERNELS[0], 1, WIDTH)) / 3, jnp.float32)
    layer = stem.StemLayer(kernel, None, stem.Norm(jnp.ones(WIDTH), jnp.zeros(WIDTH)))
    alone = jnp.asarray(0.3 * rng.normal(size=(1, 1_203)), jnp.bfloat16)
    padded = jnp.pad(alone, ((0, 0), (0, 800)))
    wanted = np.asarray(stem.first_on_gpu(alone, layer, stem.TIME), np.float32)
    frames = wanted.shape[1]
    real = jnp.arange((2_003 - 10) // 5 + 1)[None] < frames
    found = np.asarray(stem.first_on_gpu(padded, layer, stem.TIME, real), np.float32)[:, :frames]
    np.testing.assert_allclose(found, wanted, atol=2e-2)  # a unit in bfloat16's last place
    unaware = np.asarray(stem.first_on_gpu(padded, layer, stem.TIME), np.float32)[:, :frames]
    assert np.abs(unaware - wanted).mean() > 0.05


def test_the_normal_distribution_function_is_that_of_erf():
    z = np.linspace(-6, 6, 2001)
    below, density = first_layer_gpu.normal(jnp.asarray(z, jnp.float32))
    exact = [0.5 * math.erfc(-x / math.sqrt(2)) for x in z]
    np.testing.assert_allclose(below, exact, atol=2e-7)
    np.testing.assert_allclose(density, np.exp(-z * z / 2) / math.sqrt(2 * math.pi), atol=1e-7)
