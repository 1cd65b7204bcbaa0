"""The stem as a TPU computes it, beside the stem as it is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from musicssl import audio
from musicssl.model import first_norm, stem
from musicssl.planning import hlo
from musicssl.runtime import sharding
from tests.support import tiny

WIDTH = 24


def layers(bias: bool, norms: int) -> list[stem.Layer]:
    """Random values of a narrow stem."""
    rng = np.random.default_rng(7)
    made, channels = [], 1
    for i, taps in enumerate(stem.KERNELS):
        kernel = rng.normal(size=(taps, channels, WIDTH)) * np.sqrt(2 / (taps * channels))
        affine = 1 + 0.3 * rng.normal(size=WIDTH), 0.3 * rng.normal(size=WIDTH)
        values = kernel, 0.1 * rng.normal(size=WIDTH) if bias else None, *affine
        values = [None if x is None else jnp.asarray(x, jnp.float32) for x in values]
        made.append(stem.Layer(*values[:2], *(values[2:] if i < norms else (None, None))))
        channels = WIDTH
    return made


def sound(samples: int) -> jax.Array:
    """Three clips: noise, a low tone with an offset, and a quiet high one."""
    n = np.arange(samples) / audio.SAMPLE_RATE
    noise = 0.3 * np.random.default_rng(0).normal(size=samples)
    clips = noise, 0.2 + 0.5 * np.sin(2 * np.pi * 80 * n), 0.01 * np.sin(2 * np.pi * 5000 * n)
    return jnp.asarray(np.stack(clips), jnp.float32)


@pytest.mark.parametrize(
    "axis, norms, bias, frames, surplus",
    [
        (stem.TIME, 1, False, 64, 0),
        (stem.TIME, 1, True, 17, 211),
        (stem.CHANNELS, 7, False, 17, 211),
        (stem.CHANNELS, 7, True, 64, 0),
    ],
)
def test_in_pieces_values_and_gradients_are_those_of_the_stem(axis, norms, bias, frames, surplus):
    """Clips of 64 frames are cut into four; those of 17, whose last samples give no frame, stay."""
    x, made = sound(audio.crop_samples(frames) + surplus), layers(bias, norms)
    assert stem.pieces_of(frames, 3) == {64: 4, 17: 1}[frames]
    dy = jnp.asarray(np.random.default_rng(1).normal(size=(3, frames, WIDTH)), jnp.float32)

    @jax.jit
    def both(made: list[stem.Layer]) -> list:
        pieces, back = jax.vjp(lambda made: stem.in_pieces(x, made, axis), made)
        plain, by_hand = jax.vjp(lambda made: stem.onward(x[..., None], made, axis, 0), made)
        return [pieces, *jax.tree.leaves(back(dy))], [plain, *jax.tree.leaves(by_hand(dy))]

    ours, theirs = both(made)
    assert ours[0].shape == dy.shape
    for a, b in zip(ours, theirs, strict=True):
        if not np.any(a):  # of a bias under a norm over time, where rounding is left of a sum
            np.testing.assert_allclose(b, 0, atol=1e-2)
        else:
            scale = max(np.abs(b).max(), 1)
            np.testing.assert_allclose(a / scale, b / scale, atol=5e-4)


@pytest.mark.parametrize(
    "frames, clips, pieces",
    [(256, 16, 2), (1496, 8, 4), (1496, 4, 8), (256, 64, 1), (1499, 8, 1), (256, 1, 16)],
)
def test_how_many_pieces(frames, clips, pieces):
    assert stem.pieces_of(frames, clips) == pieces


def test_moments_of_windows_by_hand():
    """Mean and deviation over time of what the convolution gives, in float64."""
    x, layer = sound(4000), layers(False, 1)[0]
    mean, inverse = first_norm.over_time(x, layer.kernel)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), 10, axis=1)[
        :, ::5
    ]
    y = windows @ np.asarray(layer.kernel[:, 0], np.float64)
    np.testing.assert_allclose(mean[:, 0], y.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(inverse[:, 0], (y.var(axis=1) + 1e-5) ** -0.5, rtol=1e-3)


def exchanges() -> list[str]:
    """Kinds of the exchanges of the stem's gradient, 16 clips in pieces over eight devices."""
    mesh = sharding.make_mesh(1)
    clips = NamedSharding(mesh, sharding.CLIPS)
    x = jax.ShapeDtypeStruct((16, audio.crop_samples(64)), jnp.float32, sharding=clips)

    def gradient(x: jax.Array, made: list[stem.Layer]) -> list[stem.Layer]:
        return jax.grad(lambda made: stem.in_pieces(x, made, stem.TIME).sum())(made)

    with jax.set_mesh(mesh):
        program = jax.jit(gradient).lower(x, layers(False, 1)).compile()
    return sorted({x.kind for x in hlo.collectives(program.as_text())})


def test_pieces_stay_on_their_device():
    assert tiny.on_eight_devices(exchanges) == ["all-reduce"]
