"""Spectral features at the encoder's frames, for targets and baselines.

Each is a function from float audio [b, n] at 16 kHz to float32 [b, t, f], where t is
`audio.frame_count(n)`. Frame i is computed from the 400 samples of the encoder's frame i; the
differences of MFCCs and the constant-Q transform, whose windows are longer, are centred on them.
All are matrix products and convolutions, so that they run inside the jitted training step on any
device, each device on its own clips.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicssl import audio

NAMES = ("mfcc", "partials", "mel", "cqt", "chroma", "onset")
BANDS = 80  # of the mel spectrum
QUIET = -12.0  # log energy below which a band carries no information
_AROUND = 9  # bands that `partials` averages, centred on each band
_TIMBRE = 0.03  # weight of the MFCCs relative to the bands, so that both parts vary equally
_REGIONS = 8  # groups of neighbouring bands that `onset` distinguishes
_LOWEST_HERTZ = 440 * 2 ** (-45 / 12)  # C1
_OCTAVES, _BINS = 7, 12  # of the constant-Q transform, up to B7
_FLOOR = 1e-5  # amplitude: -100 dBFS, under any hiss

_Plain = str | int | float


class Feature(NamedTuple):
    """A feature: its width f, its function, and its definition in plain values."""

    width: int
    apply: Callable[[jax.Array], jax.Array]
    definition: dict[str, _Plain]


def feature(name: str, ceps: int) -> Feature:
    """Return a feature of NAMES.

    Args:
      ceps: the number of cepstral coefficients, for features that contain MFCCs.
    """
    match name:
        case "mfcc":
            return Feature(3 * ceps, lambda x: _at_50hz(audio.mfcc(x, ceps), x), _mfcc(name, ceps))
        case "partials":
            constants = {"bands": BANDS, "around": _AROUND, "quiet": QUIET, "timbre": _TIMBRE}
            definition = _mfcc(name, ceps) | constants
            return Feature(BANDS + 3 * ceps, lambda x: _at_50hz(partials(x, ceps), x), definition)
        case "mel":
            return Feature(BANDS, mel, {"feature": name, "bands": BANDS, "quiet": QUIET})
        case "cqt":
            return Feature(_OCTAVES * _BINS, cqt, _constant_q(name))
        case "chroma":
            return Feature(_BINS, chroma, _constant_q(name))
        case "onset":
            flux = {"bands": BANDS, "quiet": QUIET, "regions": _REGIONS}
            return Feature(_REGIONS, onset, {"feature": name, **flux})
    raise ValueError(f"no spectral feature {name!r}: use one of {NAMES}")


def _mfcc(name: str, ceps: int) -> dict[str, _Plain]:
    return {"feature": name, "ceps": ceps, "differences": 2}


def _constant_q(name: str) -> dict[str, _Plain]:
    of_transform = {"lowest_hertz": _LOWEST_HERTZ, "octaves": _OCTAVES, "bins": _BINS}
    return {"feature": name, **of_transform, "floor": _FLOOR}


def _at_50hz(features: jax.Array, x: jax.Array) -> jax.Array:
    return audio.targets_at_50hz(features, audio.frame_count(x.shape[1]))


@functools.partial(jax.jit, static_argnames="ceps")
def partials(x: jax.Array, ceps: int = 13) -> jax.Array:
    """Compute the partials of pitches, which MFCCs smooth away, with a small share of MFCCs.

    MFCCs describe timbre and hardly any pitch, so MERT's teacher adds pitch (arXiv:2306.00107,
    section 3.2). Here pitch is described by 80 log mel bands, each minus the mean of the nine
    around it.

    Args:
      x, ceps: as `audio` and `ceps` of `audio.mfcc`.

    Returns:
      [b, t, 80 + 3 * ceps] float32 at 100 Hz.
    """
    bands = jnp.maximum(audio.log_mel(x, BANDS), QUIET)
    beside = _AROUND // 2
    padded = jnp.pad(bands, ((0, 0), (0, 0), (beside, beside)), mode="edge")  # [b, t, 88]
    around = sum(padded[..., i : i + BANDS] for i in range(_AROUND)) / _AROUND  # [b, t, 80]
    return jnp.concatenate([bands - around, _TIMBRE * audio.mfcc(x, ceps)], -1)


def mel(x: jax.Array) -> jax.Array:
    """Return 80 log mel bands, raised to QUIET if they are below it: [b, n] to [b, t, 80]."""
    return jnp.maximum(audio.log_mel(x, BANDS, hop=audio.STEM_HOP), QUIET)


def onset(x: jax.Array) -> jax.Array:
    """Return how much louder each of eight regions of the spectrum is than in the previous frame.

    This is the spectral flux of `mel` in nats: its rise from frame to frame, or 0 if it falls,
    averaged over ten neighbouring bands (librosa.onset.onset_strength_multi with lag 1). It is 0 in
    the first frame of a crop.

    Returns:
      [b, t, 8] for audio [b, n].
    """
    bands = mel(x)
    rise = jnp.maximum(jnp.diff(bands, axis=1, prepend=bands[:, :1]), 0)
    return rise.reshape(*rise.shape[:2], _REGIONS, -1).mean(-1)  # [b, t, 80] -> [b, t, 8]


def cqt(x: jax.Array) -> jax.Array:
    """Return log amplitudes of 84 semitones, C1 to B7: [b, n] to [b, t, 84]."""
    return jnp.log10(amplitudes(x) + _FLOOR) + 3


def chroma(x: jax.Array) -> jax.Array:
    """Return amplitudes of 12 pitch classes over all octaves, scaled to a maximum of 1 a frame."""
    folded = amplitudes(x).reshape(*x.shape[:1], -1, _OCTAVES, _BINS).sum(2)  # [b, t, 84] to 12
    return folded / jnp.maximum(folded.max(-1, keepdims=True), _FLOOR)


def amplitudes(x: jax.Array) -> jax.Array:
    """Return the magnitudes of a constant-Q transform, [b, n] to [b, t, 84].

    They are those of librosa.cqt with its defaults, except that librosa scales each bin by the root
    of the filter's length: here a sine of amplitude a at a bin's frequency gives a / 2. Each octave
    is one convolution of the audio's hops with Hann-windowed complex exponentials, centred on the
    encoder's frames. Beyond the edges of a crop the filters see silence: up to a quarter of a
    second at C1, and half as much for each octave up.
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
        waves = jax.lax.conv_general_dilated(
            signal,
            jnp.asarray(filters.reshape(hops, audio.STEM_HOP, -1)),
            window_strides=(1,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=audio.EXACT,
        )
        octaves.append(jnp.hypot(*jnp.split(waves, 2, -1)))  # [b, t, 12]
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


def filter_taps() -> int:
    """Return how many products one frame of `amplitudes` takes."""
    return sum(_filters(octave).size for octave in range(_OCTAVES))
