"""Features that nobody has trained, at an encoder's frames: what an encoder is to be better than.

A log-mel spectrogram, MFCC, a constant-Q spectrogram and its chroma. Each is a function of float
audio [b, n] at 16 kHz to [b, t, d], t = audio.frame_count(n), about unit scale.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicssl import audio

LOWEST_HERTZ = 440 * 2 ** (-45 / 12)  # C1
OCTAVES, BINS = 7, 12  # of the constant-Q transform, up to B7
FLOOR = 1e-5  # amplitude: -100 dBFS, under any hiss


class Baseline(NamedTuple):
    """A feature: its name in reports, its width d, and the function."""

    title: str
    width: int
    apply: Callable[[jax.Array], jax.Array]


def log_mel(x: jax.Array) -> jax.Array:
    """80 log-mel bands, the two frames of each 20 ms side by side."""
    return (_pairs(audio.log_mel(x, 80), x) + 8) / 5


def mfcc(x: jax.Array) -> jax.Array:
    """13 MFCC with first and second differences, the two frames of each 20 ms side by side."""
    return _pairs(audio.mfcc(x), x) / 10


def cqt(x: jax.Array) -> jax.Array:
    """Log amplitudes of 84 semitones, C1 to B7."""
    return jnp.log10(amplitudes(x) + FLOOR) + 3


def chroma(x: jax.Array) -> jax.Array:
    """Amplitudes of the 12 pitch classes over all octaves, the greatest of a frame being 1."""
    folded = amplitudes(x).reshape(*x.shape[:1], -1, OCTAVES, BINS).sum(2)  # [b, t, 84] to 12
    return folded / jnp.maximum(folded.max(-1, keepdims=True), FLOOR)


def _pairs(features: jax.Array, x: jax.Array) -> jax.Array:
    """Features at 100 Hz [b, 2 t or 2 t - 1, f] as [b, t, 2 f]."""
    frames = audio.frame_count(x.shape[1])
    features = jnp.pad(features, ((0, 0), (0, 1), (0, 0)), mode="edge")[:, : 2 * frames]
    return features.reshape(len(x), frames, -1)


def amplitudes(x: jax.Array) -> jax.Array:
    """The constant-Q transform's magnitudes, [b, n] to [b, t, 84].

    As librosa.cqt's with its defaults, without the root of the filter's length by which that scales
    each bin: a sine of amplitude a at a bin's frequency has a / 2. Each octave is one product of
    the audio's hops with Hann-windowed complex exponentials, centred on the encoder's frames.
    """
    frames = audio.frame_count(x.shape[1])
    octaves = []
    for octave in range(OCTAVES):
        filters = _filters(octave)  # [hops * 320, 24]
        hops = len(filters) // audio.STEM_HOP
        before = len(filters) // 2 - audio.STEM_WINDOW // 2
        padded = (frames + hops - 1) * audio.STEM_HOP  # samples
        samples = min(x.shape[1], padded - before)
        signal = jnp.pad(x[:, :samples], ((0, 0), (before, padded - before - samples)))
        signal = signal.reshape(len(x), -1, audio.STEM_HOP)  # [b, t + hops - 1, 320]
        shifted = [signal[:, i : i + frames] for i in range(hops)]
        window = jnp.concatenate(shifted, -1)  # [b, t, hops * 320]
        real, imaginary = jnp.split(jnp.matmul(window, filters, precision=audio.EXACT), 2, -1)
        octaves.append(jnp.hypot(real, imaginary))  # [b, t, 12]
    return jnp.concatenate(octaves, -1)


@functools.cache
def _filters(octave: int) -> np.ndarray:
    """Filters of an octave's bins, real parts and then imaginary ones: [whole hops, 2 * 12].

    Of the lengths of librosa.filters.wavelet_lengths, each of unit sum of magnitudes.
    """
    ratio = 2 ** (2 / BINS)
    quality = (ratio + 1) / (ratio - 1)
    hertz = LOWEST_HERTZ * 2 ** (octave + np.arange(BINS) / BINS)
    longest = quality * audio.SAMPLE_RATE / hertz[0]
    size = max(int(np.ceil(longest / audio.STEM_HOP)), 2) * audio.STEM_HOP
    t = (np.arange(size) - size / 2)[:, None] / audio.SAMPLE_RATE  # [size, 1]
    place = t * hertz / quality  # -1/2 to 1/2 inside each filter
    window = np.where(np.abs(place) < 0.5, 0.5 + 0.5 * np.cos(2 * np.pi * place), 0)
    window /= window.sum(0)
    waves = [np.cos(2 * np.pi * t * hertz), -np.sin(2 * np.pi * t * hertz)]
    return np.concatenate([window * wave for wave in waves], 1).astype(np.float32)


BASELINES = {
    "logmel": Baseline("log-mel", 160, log_mel),
    "mfcc": Baseline("MFCC", 78, mfcc),
    "cqt": Baseline("CQT", OCTAVES * BINS, cqt),
    "chroma": Baseline("chroma", BINS, chroma),
}
