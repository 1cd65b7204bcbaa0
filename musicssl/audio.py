"""Frame counts, waveform scaling, and Kaldi's log mel filter bank and MFCC.

The rule that relates samples to encoder frames is defined only here. The filter bank is written as
matrix products, so that it runs inside the jitted training step on any device and partitions over
a batch-sharded mesh without communication (XLA gathers a sharded batch before `rfft` on CPU,
openxla/xla#48845).
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# The seven VALID convolutions of the wav2vec 2.0 stem together read windows of 400 samples (25 ms
# at 16 kHz) every 320 samples (20 ms): arXiv:2006.11477, section 4.2.
STEM_WINDOW = 400
STEM_HOP = 320
# Frames of `log_mel` and `mfcc`: Kaldi's 25 ms windows every 10 ms, and a 512-point transform.
SAMPLE_RATE = 16_000
WINDOW = 400
_HOP = 160
FFT = 512
EXACT = jax.lax.Precision.HIGHEST
Samples = TypeVar("Samples", jax.Array, np.ndarray)


def frame_count(samples: int) -> int:
    """Return how many encoder frames `samples` audio samples give.

    Raises:
      ValueError: `samples` is less than one window.
    """
    if samples < STEM_WINDOW:
        raise ValueError(
            f"audio of {samples} samples holds no encoder frame: "
            f"give {STEM_WINDOW} samples or more (25 ms at 16 kHz)"
        )
    return (samples - STEM_WINDOW) // STEM_HOP + 1


def frame_counts(samples: Samples) -> Samples:
    """Return `frame_count` of each clip's samples [b], but at least one frame."""
    return ((samples - STEM_WINDOW) // STEM_HOP + 1).clip(1)


def crop_samples(frames: int) -> int:
    """Return the smallest number of audio samples that gives exactly `frames` encoder frames.

    Raises:
      ValueError: `frames` is not positive.
    """
    if frames < 1:
        raise ValueError(f"a crop of {frames} frames is empty: use 1 frame or more")
    return STEM_HOP * frames + STEM_WINDOW - STEM_HOP


def to_float(audio: jax.Array) -> jax.Array:
    """Scale int16 samples [b, n] to float32 in [-1, 1)."""
    if audio.dtype != jnp.int16:
        raise ValueError(f"audio is {audio.dtype}: give int16 samples")
    return audio.astype(jnp.float32) / 32768


def normalize(audio: jax.Array) -> jax.Array:
    """Give each clip of `audio` [b, n] zero mean and unit variance, in float32.

    This equals transformers' Wav2Vec2FeatureExtractor with do_normalize, which prepares the input
    of an exported encoder: a silent clip stays zero. It deviates from fairseq, whose layer_norm
    adds 1e-5 to the variance instead of 1e-7. In fairseq clips come out quieter: by 0.05 % if their
    root mean square is -20 dB of full scale, 0.2 % at -26 dB, 4.6 % at -40 dB and 29 % at -50 dB.
    """
    audio = audio.astype(jnp.float32)
    centred = audio - audio.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-7)


@functools.partial(jax.jit, static_argnames="ceps")
def mfcc(audio: jax.Array, ceps: int = 13, samples: jax.Array | None = None) -> jax.Array:
    """Compute Kaldi's MFCC with first and second differences at 100 Hz.

    Equal to torchaudio.compliance.kaldi.mfcc(use_energy=False) followed by two
    torchaudio.functional.compute_deltas, which fairseq's dump_mfcc_feature.py gives to k-means.

    Args:
      audio: [b, n] float samples in [-1, 1), not normalised, at 16 kHz.
      ceps: cepstral coefficients: 13 for 39 features, 20 for 60; at most the 23 mel bins.
      samples: as in `log_mel`.

    Returns:
      [b, t, 3 * ceps] float32: coefficients, differences, differences of differences, where
      t = (n - 400) // 160 + 1. The differences of the outer four frames of a crop treat its edge
      frame as repeated, as they would at the edges of a file.
    """
    matrix = _cepstral_transform(ceps)
    mel = log_mel(audio, samples=samples)  # [b, t, 23]
    static = jnp.matmul(mel, matrix, precision=EXACT)  # [b, t, ceps]
    first = _last_repeated(_differences(static), samples)
    second = _last_repeated(_differences(first), samples)
    return jnp.concatenate([static, first, second], -1)  # [b, t, 3 * ceps]


@functools.partial(jax.jit, static_argnames=("bins", "hop"))
def log_mel(
    audio: jax.Array, bins: int = 23, samples: jax.Array | None = None, hop: int = _HOP
) -> jax.Array:
    """Compute Kaldi's log mel filter bank of `audio` [b, n]: [b, t, bins] float32.

    Kaldi's defaults without dither: mean removed from each 25 ms window, pre-emphasis 0.97, Povey
    window, power spectrum of 512 points, triangles from 20 Hz to 8 kHz, floor at float32 epsilon.

    Args:
      samples: the length of each clip, [b], if clips of several lengths are padded to one length: a
        clip then has the frames that it has without padding, and its last frame is repeated.
      hop: samples from one window to the next: 160, Kaldi's hop, gives 100 Hz, and STEM_HOP gives
        the windows of the encoder's frames.

    Raises:
      ValueError: the audio is shorter than one window.
    """
    frames = _windows(audio.astype(jnp.float32), hop)  # [b, n] -> [b, t, 400]
    frames = frames - frames.mean(-1, keepdims=True)
    spectrum = jnp.matmul(frames, _fourier_basis(), precision=EXACT)  # [b, t, 2 * 255]
    real, imaginary = jnp.split(spectrum, 2, axis=-1)  # [b, t, 255] each
    power = jnp.square(real) + jnp.square(imaginary)
    mel = jnp.matmul(power, _mel_triangles(bins), precision=EXACT)  # [b, t, bins]
    return _last_repeated(jnp.log(jnp.maximum(mel, jnp.finfo(jnp.float32).eps)), samples, hop)


def targets_at_50hz(features: jax.Array, frames: int) -> jax.Array:
    """Take the 100 Hz features [b, t, f] that belong to the encoder's frames: [b, frames, f].

    Encoder frame i and feature 2 * i are windows over the same 400 samples. The samples of a given
    number of frames give 2 * frames - 1 or 2 * frames features, so the last frame has one too.
    fairseq (hubert.py, forward_targets) uses the same index, but drops the last frame if there are
    2 * frames - 1 features.

    Raises:
      ValueError: the features do not belong to that many frames.
    """
    given = features.shape[-2]
    if given not in (2 * frames - 1, 2 * frames):
        raise ValueError(
            f"{given} features at 100 Hz do not fit {frames} encoder frames: "
            f"compute both from the same audio ({2 * frames - 1} or {2 * frames} features)"
        )
    return features[..., : 2 * frames - 1 : 2, :]  # [b, t, f] -> [b, frames, f]


def _windows(audio: jax.Array, hop: int) -> jax.Array:
    """Cut [b, n] into windows [b, t, 400] by slices only, which need no gather."""
    batch, samples = audio.shape
    if samples < WINDOW:
        raise ValueError(f"audio of {samples} samples is shorter than one window of {WINDOW}")
    count = (samples - WINDOW) // hop + 1
    # Window i consists of whole hops from hop i on, and the beginning of one more.
    spanned = -(-WINDOW // hop)
    used = (count + spanned - 1) * hop
    audio = jnp.pad(audio, ((0, 0), (0, max(used - samples, 0))))[:, :used]
    hops = audio.reshape(batch, -1, hop)  # [b, n] -> [b, t + spanned - 1, hop]
    parts = [hops[:, i : i + count, : WINDOW - i * hop] for i in range(spanned)]
    return jnp.concatenate(parts, -1)  # [b, t, 400]


def _last_repeated(features: jax.Array, samples: jax.Array | None, hop: int = _HOP) -> jax.Array:
    """Repeat the last frame within each clip's `samples` [b] to the end of [b, t, f]."""
    if samples is None:
        return features
    last = jnp.maximum(samples - WINDOW, 0) // hop  # [b]
    taken = jnp.minimum(jnp.arange(features.shape[1]), last[:, None])  # [b, t]
    return jnp.take_along_axis(features, taken[..., None], axis=1)


def _differences(features: jax.Array) -> jax.Array:
    """Estimate the slope of [b, t, f] over five frames, edges repeated (compute_deltas)."""
    count = features.shape[1]
    padded = jnp.pad(features, ((0, 0), (2, 2), (0, 0)), mode="edge")  # [b, t + 4, f]
    shifted = [padded[:, i : i + count] for i in range(5)]
    return (2 * (shifted[4] - shifted[0]) + shifted[3] - shifted[1]) / 10


@functools.cache
def _fourier_basis() -> np.ndarray:
    """Return pre-emphasis, window and Fourier transform in one real matrix [400, 2 * 255].

    Columns are the real parts of bins 1 to 255 and then the imaginary parts: no mel triangle
    touches bin 0, and Kaldi leaves bin 256 out.
    """
    emphasis = np.eye(WINDOW) - 0.97 * np.eye(WINDOW, k=1)
    emphasis[0, 0] -= 0.97  # the first sample is its own predecessor
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85
    angles = 2 * np.pi / FFT * np.outer(np.arange(WINDOW), np.arange(1, FFT // 2))
    waves = np.concatenate([np.cos(angles), -np.sin(angles)], 1)  # [400, 510]
    return (emphasis @ (window[:, None] * waves)).astype(np.float32)


@functools.cache
def _mel_triangles(bins: int) -> np.ndarray:
    """Return Kaldi's mel filters [255, bins]: triangles in mel, for spectrum bins 1 to 255."""
    mel = _hertz_to_mel(np.arange(1, FFT // 2) * SAMPLE_RATE / FFT)[:, None]  # [255, 1]
    corners = np.linspace(_hertz_to_mel(20.0), _hertz_to_mel(SAMPLE_RATE / 2), bins + 2)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    filters = np.maximum(np.minimum(rising, falling), 0)
    if not filters.any(0).all():
        raise ValueError(f"bins is {bins}: some mel filters hold no spectrum bin, so use fewer")
    return filters.astype(np.float32)


def _hertz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(frequency) / 700)


@functools.cache
def _cepstral_transform(ceps: int) -> np.ndarray:
    """Return the orthonormal DCT-II of 23 mel bins with lifter 22 applied: [23, ceps]."""
    bins = 23
    if not 1 <= ceps <= bins:
        raise ValueError(f"ceps is {ceps}: choose 1 to {bins}, the number of mel bins")
    order = np.arange(ceps)
    cosines = np.cos(np.pi / bins * np.outer(np.arange(bins) + 0.5, order))
    scale = np.where(order == 0, np.sqrt(1 / bins), np.sqrt(2 / bins))
    lifter = 1 + 11 * np.sin(np.pi * order / 22)
    return (cosines * scale * lifter).astype(np.float32)
