"""Tests of the stem's initial values that make it a bank of band-pass filters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from configs import musichubert
from musicssl.model import filterbank
from musicssl.model.encoder import make_encoder
from musicssl.model.stem import STRIDES


def stem_output(width: int, audio: np.ndarray) -> np.ndarray:
    """Return what a stem of initial values makes of audio [b, n]: [b, t, width]."""
    config = musichubert.get_config("demo_pitch").unlock()
    config.encoder.update({"stem_width": width, "stem_start": "filterbank"})
    encoder = make_encoder(config)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 400)))
    return np.asarray(encoder.apply(params, jnp.asarray(audio), method="stem"))


def test_a_wide_stem_is_the_gelu_of_windowed_cosines():
    """The layers, without the first one's norm, against the filters by their definition."""
    audio = np.random.default_rng(0).normal(size=1100)
    x = audio[:, None]  # [n, c]
    for kernel, stride in zip(filterbank.kernels(512), STRIDES, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(x, len(kernel), axis=0)[::stride]
        x = gelu(np.tensordot(windows, kernel.astype(float), ((2, 1), (0, 1))))

    hertz = filterbank.centres(512)
    seconds = (np.arange(400) - 199.5) / 16_000
    samples = np.lib.stride_tricks.sliding_window_view(audio, 400)[::320]
    for phase in range(3):
        turns = hertz[:, None] * seconds + phase / 3
        window = np.hanning(402)[1:-1] * np.cos(2 * np.pi * turns)
        expected = gelu(samples @ (0.03 * (hertz[:, None] / 500) ** 0.6 * window).T)  # [t, bands]
        band = slice(phase * len(hertz), (phase + 1) * len(hertz))
        np.testing.assert_allclose(x[:, band], expected, atol=1e-5)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 128])
def test_a_narrow_stem_hears_where_a_tone_is(width):
    hertz = filterbank.centres(width)
    for band in (3, len(hertz) // 2, len(hertz) - 3):
        tone = np.sin(2 * np.pi * hertz[band] * np.arange(4000) / 16_000)
        output = stem_output(width, tone[None].astype(np.float32))[0]
        magnitude = output[:, : 3 * len(hertz)].reshape(len(output), 3, -1).sum(1).mean(0)
        assert abs(magnitude.argmax() - band) <= 1


def test_what_cannot_be_a_filter_bank_is_refused():
    with pytest.raises(ValueError, match=r"encoder\.stem_width is 16"):
        filterbank.kernels(16)
    config = musichubert.get_config("demo_pitch").unlock()
    config.encoder.update({"stem_start": "filterbank", "stem_norm": "layer"})
    with pytest.raises(ValueError, match=r"encoder\.stem_norm=group"):
        make_encoder(config).init(jax.random.key(0), jnp.zeros((1, 400)))
    config.encoder.stem_start = "gabor"
    with pytest.raises(ValueError, match="'random' or 'filterbank'"):
        make_encoder(config).init(jax.random.key(0), jnp.zeros((1, 400)))
