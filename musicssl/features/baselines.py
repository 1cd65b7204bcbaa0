"""Features that nobody has trained, at an encoder's frames: what an encoder should surpass.

They are a log-mel spectrogram, MFCC, a constant-Q spectrogram and its chroma. Each is a function of
float audio [b, n] at 16 kHz to [b, t, d] of about unit scale, where t = audio.frame_count(n).
Where clips of several lengths are padded to one with zeros, `samples` [b] tells the lengths, and
the frames of each clip are those of the clip alone.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicssl import audio

_LOWEST_HERTZ = 440 * 2 ** (-45 / 12)  # C1
_OCTAVES, _BINS = 7, 12  # of the constant-Q transform, up to B7
_FLOOR = 1e-5  # amplitude: -100 dBFS, under any hiss


class Baseline(NamedTuple):
    """A feature: its name in reports, its width d, and the function."""

    title: str
    width: int
    apply: Callable[[jax.Array, jax.Array | None], jax.Array]


def log_mel(x: jax.Array, samples: jax.Array | None = None) -> jax.Array:
    """Return 80 log-mel bands, two frames of 10 ms side by side."""
    return (_pairs(audio.log_mel(x, 80, samples), x) + 8) / 5


def mfcc(x: jax.Array, samples: jax.Array | None = None) -> jax.Array:
    """Return 13 MFCC with first and second differences, two frames of 10 ms side by side."""
    return _pairs(audio.mfcc(x, samples=samples), x) / 10


def cqt(x: jax.Array, samples: jax.Array | None = None) -> jax.Array:
    """Return log amplitudes of 84 semitones, C1 to B7."""
    return jnp.log10(amplitudes(x) + _FLOOR) + 3


def chroma(x: jax.Array, samples: jax.Array | None = None) -> jax.Array:
    """Return amplitudes of 12 pitch classes over all octaves, 1 for the greatest of a frame."""
    folded = amplitudes(x).reshape(*x.shape[:1], -1, _OCTAVES, _BINS).sum(2)  # [b, t, 84] to 12
    return folded / jnp.maximum(folded.max(-1, keepdims=True), _FLOOR)


def _pairs(features: jax.Array, x: jax.Array) -> jax.Array:
    """Put features at 100 Hz [b, 2 t or 2 t - 1, f] side by side: [b, t, 2 f]."""
    frames = audio.frame_count(x.shape[1])
    features = jnp.pad(features, ((0, 0), (0, 1), (0, 0)), mode="edge")[:, : 2 * frames]
    return features.reshape(len(x), frames, -1)


def amplitudes(x: jax.Array) -> jax.Array:
    """Return the magnitudes of a constant-Q transform, [b, n] to [b, t, 84].

    They are those of librosa.cqt with its defaults, but for the root of the filter's length by
    which that scales each bin: here a sine of amplitude a at a bin's frequency gives a / 2. Each
    octave is one product of the audio's hops with Hann-windowed complex exponentials, centred on
    the encoder's frames, with zeros before the audio and after it.
    """
    frames = audio.frame_count(x.shape[1])
    octaves = []
    for octave in range(_OCTAVES):
        filters = _filters(octave)  # [hops * 320, 24]
        hops = len(filters) // audio.STEM_HOP

        # Pad the audio so that a filter is centred on each frame, and cut it into hops.
        before = len(filters) // 2 - audio.STEM_WINDOW // 2
        padded = (frames + hops - 1) * audio.STEM_HOP  # samples
        samples = min(x.shape[1], padded - before)
        signal = jnp.pad(x[:, :samples], ((0, 0), (before, padded - before - samples)))
        signal = signal.reshape(len(x), -1, audio.STEM_HOP)  # [b, t + hops - 1, 320]

        # Multiply the hops of each frame by the filters.
        shifted = [signal[:, i : i + frames] for i in range(hops)]
        window = jnp.concatenate(shifted, -1)  # [b, t, hops * 320]
        real, imaginary = jnp.split(jnp.matmul(window, filters, precision=audio.EXACT), 2, -1)
        octaves.append(jnp.hypot(real, imaginary))  # [b, t, 12]
    return jnp.concatenate(octaves, -1)


@functools.cache
def _filters(octave: int) -> np.ndarray:
    """Return the filters of an octave's bins, real and then imaginary parts: [whole hops, 2 * 12].

    They have the lengths of librosa.filters.wavelet_lengths, and magnitudes that sum to 1.
    """
    ratio = 2 ** (2 / _BINS)
    quality = (ratio + 1) / (ratio - 1)
    hertz = _LOWEST_HERTZ * 2 ** (octave + np.arange(_BINS) / _BINS)
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
    "cqt": Baseline("CQT", _OCTAVES * _BINS, cqt),
    "chroma": Baseline("chroma", _BINS, chroma),
}
