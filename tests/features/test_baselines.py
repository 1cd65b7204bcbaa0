"""Features that nobody has trained, against librosa and by what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl import audio
from musicssl.features import baselines, extract
from musicssl.features.baselines import BASELINES
from tests.test_spectra import tones

RATE = 16_000


@pytest.mark.parametrize("name", BASELINES)
def test_there_is_a_row_for_each_frame_of_an_encoder(name: str) -> None:
    source = extract.open_source(name)
    apply = jax.jit(source.apply)
    for samples in (2 * RATE, 16_080, 400):
        x = np.random.default_rng(1).standard_normal((2, samples)).astype(np.float32) / 10
        (hidden,) = apply(source.params, x)
        assert hidden.shape == (2, audio.frame_count(samples), source.width)
        assert np.isfinite(hidden).all() and np.abs(hidden).max() < 30
        (silent,) = apply(source.params, np.zeros_like(x))
        assert np.isfinite(silent).all()


@pytest.mark.parametrize("name", BASELINES)
def test_a_padded_clip_has_the_features_that_it_has_alone(name: str) -> None:
    """Also where the last frame of 20 ms has one frame of 10 ms, and where there is but one."""
    source = extract.open_source(name)
    lengths = np.array([18_000, 16_080, 16_241, 250])
    x = np.random.default_rng(1).standard_normal((4, 18_000)).astype(np.float32) / 10
    x *= np.arange(18_000) < lengths[:, None]
    (together,) = jax.jit(source.apply)(source.params, x, lengths)
    for i, n in enumerate(lengths):
        (alone,) = source.apply(source.params, x[i : i + 1, : max(n, 400)])
        np.testing.assert_allclose(together[i, : alone.shape[1]], alone[0], 1e-5, 1e-5)


@pytest.mark.parametrize("samples", [2 * RATE, 16_080, 400])
def test_pairs_are_the_two_frames_of_each_20_ms(samples: int) -> None:
    x = jnp.asarray(tones()[:, :samples])
    for found, wanted in (
        (baselines.log_mel(x), (audio.log_mel(x, 80) + 8) / 5),
        (baselines.mfcc(x), audio.mfcc(x) / 10),
    ):
        apart = np.asarray(found)[0].reshape(-1, wanted.shape[2])
        np.testing.assert_allclose(apart[: wanted.shape[1]], wanted[0], atol=1e-5)
