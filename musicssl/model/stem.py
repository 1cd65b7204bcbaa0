"""The seven convolutions of the wav2vec 2.0 stem, as a function of arrays (arXiv:2006.11477).

On a TPU the speed of the stem is limited by how often its large arrays are read and written. Two
things save much of that without changing values: the first norm is computed from the audio
(`first_norm`), and clips are cut into pieces, since nothing else in the stem looks further than
a window of 400 samples. The compiler lays out pieces next to channels in tiles of 8, and works best
with _ROWS of them on a device: one strided convolution of 8 clips of 30 s takes 38 million cycles
forward and backward, and 21 million if they are cut into 32 pieces (libtpu 0.0.42's estimates for
v5e).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from musicssl.audio import STEM_HOP, crop_samples, frame_count
from musicssl.model import first_norm
from musicssl.model.first_norm import NORM_EPSILON
from musicssl.model.gelu import gelu
from musicssl.model.grouped_conv import in_order
from musicssl.runtime import sharding

KERNELS = (10, 3, 3, 3, 3, 2, 2)  # receptive field 400 samples
STRIDES = (5, 2, 2, 2, 2, 2, 2)  # hop 320 samples
TIME, CHANNELS = 1, 2  # axes that a norm standardises over
_ROWS = 32  # how many pieces a device should have
_SHORTEST = 16  # frames of a piece: neighbours share 80 samples


class Norm(NamedTuple):
    """The scale and the offset [c] that follow a standardisation."""

    scale: jax.Array
    offset: jax.Array


class StemLayer(NamedTuple):
    """One convolution: its kernel [k, c_in, c], and its bias [c] and norm if it has them."""

    kernel: jax.Array
    bias: jax.Array | None
    norm: Norm | None


def stem(
    audio: jax.Array, layers: list[StemLayer], axis: int, samples: jax.Array | None = None
) -> jax.Array:
    """Turn audio [b, n] in the compute type into features [b, t, c]; norms go over `axis`.

    Args:
      samples: the length of each clip, [b], if clips of several lengths are padded to one length.
        A clip's own frames then have the values that they have without padding; only a norm over
        time looks further than a frame's own samples.

    Raises:
      ValueError: the audio is too short for one frame.
    """
    frame_count(audio.shape[1])
    real = None
    if samples is not None and axis == TIME:
        first = (audio.shape[1] - KERNELS[0]) // STRIDES[0] + 1  # frames of the first layer
        real = jnp.arange(first) * STRIDES[0] + KERNELS[0] <= samples[:, None]  # [b, t]
    if sharding.platform() == "tpu":
        return in_pieces(audio, layers, axis, real)
    if sharding.platform() == "gpu":
        from musicssl.model import first_layer_gpu

        if first_layer_gpu.fits(layers[0].kernel, audio.dtype):
            return onward(first_on_gpu(audio, layers[0], axis, real), layers, axis, 1)
    return onward(audio[..., None], layers, axis, 0, real)


def onward(
    x: jax.Array,
    layers: list[StemLayer],
    axis: int,
    start: int,
    real: jax.Array | None = None,
) -> jax.Array:
    """Take [b, n, c_in] through the layers from number `start` on.

    Args:
      real: which frames the first layer's norm over time counts, bool [b, t]; None means all. No
        other layer of a stem has such a norm.
    """
    for i, layer in enumerate(layers[start:], start):
        with jax.named_scope(f"stem_{i}"):
            x = jax.lax.conv_general_dilated(
                x,
                in_order(layer.kernel.astype(x.dtype)),
                (STRIDES[i],),
                "VALID",
                dimension_numbers=("NWC", "WIO", "NWC"),
            )  # [b, (n - k) // stride + 1, c]
            x = x if layer.bias is None else x + layer.bias.astype(x.dtype)
            on_gpu = sharding.platform() == "gpu" and x.dtype == jnp.bfloat16
            if layer.norm is not None and axis == CHANNELS and on_gpu:
                x = _normed_gelu_on_gpu(x, layer.norm)
            else:
                x = gelu(x if layer.norm is None else _normed(x, layer.norm, axis, real))
    return x


def _normed_gelu_on_gpu(x: jax.Array, norm: Norm) -> jax.Array:
    """Compute gelu(_normed(x, norm, CHANNELS, None)) in a kernel."""
    from musicssl.model import norm_gelu_gpu

    clips, _, c = x.shape
    affine = jnp.broadcast_to(jnp.stack(norm), (clips, 2, c))
    return sharding.by_clip(lambda x: norm_gelu_gpu.normed_gelu(*x), (x, affine))


def _normed(x: jax.Array, norm: Norm, axis: int, real: jax.Array | None) -> jax.Array:
    """Standardise over one axis in one pass, in float32, then scale and shift."""
    y = x.astype(jnp.float32)
    where = None if real is None else real[..., None]
    mean = y.mean(axis=axis, keepdims=True, where=where)
    variance = jnp.square(y).mean(axis=axis, keepdims=True, where=where) - jnp.square(mean)
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0) + NORM_EPSILON) * norm.scale
    if axis == TIME:  # a factor and a summand per channel: two operations per element, not three
        return (y * inverse + (norm.offset - mean * inverse)).astype(x.dtype)
    return ((y - mean) * inverse + norm.offset).astype(x.dtype)


def in_pieces(
    audio: jax.Array, layers: list[StemLayer], axis: int, real: jax.Array | None = None
) -> jax.Array:
    """Compute `onward` from the start for a TPU: the first norm from the audio, clips in pieces."""
    clips, frames = audio.shape[0], frame_count(audio.shape[1])
    pieces = pieces_of(frames, sharding.clips_here(clips))
    rows = cut(audio, frames, pieces)  # [b * pieces, n']
    with jax.named_scope("stem_0"):
        if axis == TIME:
            x = _first_over_time(audio, rows, layers[0], real)
        else:
            x = _first_over_channels(rows, layers[0])
        norm = _first_norm(layers[0])
        x = (x.astype(jnp.float32) * norm.scale + norm.offset).astype(x.dtype)
        x = gelu(x)
    x = onward(x, layers, axis, 1)  # [b * pieces, t / pieces, c]
    return x.reshape(clips, frames, x.shape[-1])


def _first_norm(layer: StemLayer) -> Norm:
    """Return the norm of the first layer, which both kinds of stem have."""
    assert layer.norm is not None, "the stem's first layer has no norm"
    return layer.norm


def first_on_gpu(
    audio: jax.Array, layer: StemLayer, axis: int, real: jax.Array | None = None
) -> jax.Array:
    """Compute the first layer with its norm and GELU: [b, n] -> [b, t, c]."""
    from musicssl.model import first_layer_gpu

    clips, taps = audio.shape[0], layer.kernel.shape[0]
    windows = first_norm.windows(audio, taps).swapaxes(1, 2).astype(audio.dtype)  # [b, t, k]
    frames, norm = windows.shape[1], _first_norm(layer)
    with jax.named_scope("stem_0"):
        if axis == TIME:  # where a bias makes no difference
            kernel = layer.kernel.astype(audio.dtype)
            mean, inverse = first_norm.over_time(audio, kernel, real)  # [b, 1, c]
            scale = (inverse * norm.scale)[:, 0]  # [b, c]
            offset = norm.offset - mean[:, 0] * scale
            rows = [kernel[:, 0].astype(jnp.float32)]
            by_frame = jnp.ones((clips, frames))
        else:
            kernel = (layer.kernel - layer.kernel.mean(axis=-1, keepdims=True)).astype(audio.dtype)
            rows = [kernel[:, 0].astype(jnp.float32)]
            shift = None
            if layer.bias is not None:
                shift = layer.bias - layer.bias.mean()
                windows = jnp.concatenate([windows, jnp.ones_like(windows[..., :1])], axis=-1)
                rows.append(shift[None])
            by_frame = first_norm.over_channels(audio, kernel, shift)[..., 0]  # [b, t]
            scale, offset = (jnp.broadcast_to(x, (clips, len(x))) for x in norm)
        kernel = jnp.concatenate(rows)  # [k, c]
        kernel = jnp.pad(kernel, ((0, first_layer_gpu.TAPS - len(kernel)), (0, 0)))
        windows = jnp.pad(windows, ((0, 0), (0, 0), (0, first_layer_gpu.TAPS - windows.shape[-1])))
        kernels = jnp.broadcast_to(kernel, (clips, *kernel.shape))
        function = functools.partial(first_layer_gpu.layer, varies=axis != TIME)
        arrays = windows, kernels, by_frame, scale, offset
        return sharding.by_clip(lambda x: function(*x), arrays)


def pieces_of(frames: int, clips: int) -> int:
    """Return how many pieces to cut a clip into: the fewest that give _ROWS, or else the most."""
    possible = [n for n in range(1, frames + 1) if frames % n == 0 and frames // n >= _SHORTEST]
    return min((n for n in possible if n * clips >= _ROWS), default=max(possible, default=1))


def cut(audio: jax.Array, frames: int, pieces: int) -> jax.Array:
    """Cut [b, n] -> [b * pieces, n'], the samples that each piece's own frames see."""
    each = frames // pieces
    starts = range(0, frames * STEM_HOP, each * STEM_HOP)
    parts = [audio[:, i : i + crop_samples(each)] for i in starts]
    return jnp.stack(parts, axis=1).reshape(-1, crop_samples(each))


def _first_over_time(
    audio: jax.Array, rows: jax.Array, layer: StemLayer, real: jax.Array | None
) -> jax.Array:
    """Standardise each channel of a clip over time, where a bias makes no difference."""
    kernel = layer.kernel.astype(audio.dtype)
    each = len(rows) // len(audio)
    mean, inverse = (
        jnp.repeat(x, each, axis=1).reshape(len(rows), 1, -1)  # [b, 1, c] -> [b * pieces, 1, c]
        for x in first_norm.over_time(audio, kernel, real)
    )
    return first_norm.standardised(rows, kernel, -mean, inverse)


def _first_over_channels(rows: jax.Array, layer: StemLayer) -> jax.Array:
    """Standardise each frame over channels."""
    kernel = layer.kernel - layer.kernel.mean(axis=-1, keepdims=True)
    kernel = kernel.astype(rows.dtype)
    shift = jnp.zeros((1, 1, 1)) if layer.bias is None else layer.bias - layer.bias.mean()
    inverse = first_norm.over_channels(rows, kernel, None if layer.bias is None else shift)
    return first_norm.standardised(rows, kernel, shift.reshape(1, 1, -1), inverse)
