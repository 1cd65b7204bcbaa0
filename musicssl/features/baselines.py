"""Untrained features at an encoder's frames, which an encoder should surpass.

They are a log-mel spectrogram, MFCC, a constant-Q spectrogram and its chroma. Each is a function of
float audio [b, n] at 16 kHz to [b, t, d] of about unit scale, where t = audio.frame_count(n).
If clips of several lengths are padded to one length with zeros, `samples` [b] holds their lengths,
and the frames of each clip are the same as without padding.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from musicssl import audio, spectra


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
    """Return `spectra.cqt`, which assumes that zeros follow a clip, as they do here."""
    return spectra.cqt(x)


def chroma(x: jax.Array, samples: jax.Array | None = None) -> jax.Array:
    """Return `spectra.chroma`, which assumes that zeros follow a clip, as they do here."""
    return spectra.chroma(x)


def _pairs(features: jax.Array, x: jax.Array) -> jax.Array:
    """Put features at 100 Hz [b, 2 t or 2 t - 1, f] side by side: [b, t, 2 f]."""
    frames = audio.frame_count(x.shape[1])
    features = jnp.pad(features, ((0, 0), (0, 1), (0, 0)), mode="edge")[:, : 2 * frames]
    return features.reshape(len(x), frames, -1)


BASELINES = {
    "logmel": Baseline("log-mel", 160, log_mel),
    "mfcc": Baseline("MFCC", 78, mfcc),
    "cqt": Baseline("CQT", 84, cqt),
    "chroma": Baseline("chroma", 12, chroma),
}
