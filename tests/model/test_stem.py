"""The stem as a TPU computes it, beside the stem as it is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from musicssl import audio
from musicssl.model import stem
from musicssl.planning import hlo
from musicssl.runtime import sharding
from tests.support import tiny
from tests.support.stems import WIDTH, layers, sound


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
    def both(made: list[stem.StemLayer]) -> list:
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


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("axis, norms", [(stem.TIME, 1), (stem.CHANNELS, 7)])
def test_a_padded_clip_has_the_features_that_it_has_alone(axis, norms, platform, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    made, lengths = layers(False, norms), np.array([5_137, 9_001, 9_001])
    x = sound(9_001) * (np.arange(9_001) < lengths[:, None])
    together = jax.jit(lambda x: stem.stem(x, made, axis, lengths))(x)
    for clips, n in ((slice(0, 1), 5_137), (slice(1, 3), 9_001)):
        alone = jax.jit(lambda x: stem.onward(x[..., None], made, axis, 0))(x[clips, :n])
        scale = max(float(np.abs(alone).max()), 1.0)
        ours = together[clips, : alone.shape[1]]
        np.testing.assert_allclose(ours / scale, alone / scale, atol=5e-4)


@pytest.mark.parametrize(
    "frames, clips, pieces",
    [(256, 16, 2), (1496, 8, 4), (1496, 4, 8), (256, 64, 1), (1499, 8, 1), (256, 1, 16)],
)
def test_how_many_pieces(frames, clips, pieces):
    assert stem.pieces_of(frames, clips) == pieces


def exchanges() -> list[str]:
    """Kinds of the exchanges of the stem's gradient, 16 clips in pieces over eight devices."""
    mesh = sharding.make_mesh(1)
    clips = NamedSharding(mesh, sharding.CLIPS)
    x = jax.ShapeDtypeStruct((16, audio.crop_samples(64)), jnp.float32, sharding=clips)

    def gradient(x: jax.Array, made: list[stem.StemLayer]) -> list[stem.StemLayer]:
        return jax.grad(lambda made: stem.in_pieces(x, made, stem.TIME).sum())(made)

    with jax.set_mesh(mesh):
        program = jax.jit(gradient).lower(x, layers(False, 1)).compile()
    return sorted({x.kind for x in hlo.collectives(program.as_text())})


def test_pieces_stay_on_their_device():
    assert tiny.on_eight_devices(exchanges) == ["all-reduce"]
