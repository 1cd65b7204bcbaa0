"""Features that nobody has trained, against librosa and by what they promise."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from musicssl import audio
from musicssl.features import baselines, extract
from musicssl.features.baselines import BASELINES

RATE = 16_000
LOWEST = librosa.note_to_hz("C1")


def tones() -> np.ndarray:
    """Two seconds of three tones and some noise: float32 [1, n]."""
    t = np.arange(2 * RATE) / RATE
    hiss = np.random.default_rng(0).standard_normal(len(t)) * 1e-3
    waves = [
        a * np.sin(2 * np.pi * f * t) for a, f in ((0.3, 261.63), (0.1, 1864.66), (0.2, 65.41))
    ]
    return (sum(waves) + hiss).astype(np.float32)[None]


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


def test_the_constant_q_transform_is_librosas() -> None:
    """In the frames whose filters are inside the audio: at the edges librosa pads otherwise."""
    x = tones()
    found = np.asarray(jax.jit(baselines.amplitudes)(x))[0]
    # librosa's frames are centred on multiples of the hop, an encoder's on the middle of its window
    shifted = x[0, audio.STEM_WINDOW // 2 :]
    transform = librosa.cqt(shifted, sr=RATE, hop_length=audio.STEM_HOP, fmin=LOWEST, n_bins=84)
    hertz = librosa.cqt_frequencies(84, fmin=LOWEST)
    lengths, _ = librosa.filters.wavelet_lengths(freqs=hertz, sr=RATE)
    wanted = (np.abs(transform) / np.sqrt(lengths)[:, None]).T[: len(found)]
    inside = slice(20, 80)
    assert np.abs(found - wanted)[inside].max() < 0.01 * wanted.max()
    for amplitude, note in ((0.3, "C4"), (0.1, "A#6"), (0.2, "C2")):
        bin_ = librosa.note_to_midi(note) - librosa.note_to_midi("C1")
        np.testing.assert_allclose(found[inside, bin_], amplitude / 2, rtol=0.02)


def test_chroma_is_librosas_fold_of_the_same_transform() -> None:
    x = tones()
    found = np.asarray(jax.jit(baselines.chroma)(x))[0]
    transform = np.asarray(jax.jit(baselines.amplitudes)(x))[0].T
    wanted = librosa.feature.chroma_cqt(
        C=transform, sr=RATE, fmin=LOWEST, bins_per_octave=12, norm=np.inf
    )
    np.testing.assert_allclose(found, wanted.T, atol=1e-4)
    assert (found[20:80].argmax(1) == 0).all()  # C, in two octaves
