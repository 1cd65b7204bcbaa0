"""Initial values that make the stem a bank of band-pass filters, instead of random values.

A random stem hardly distinguishes pitches, and learning to do so takes tens of thousands of
updates, for which a short run has no time. The stem can be an exact filter bank. Since gelu(x) -
gelu(-x) = x, a pair of channels with opposite kernels carries a signal unchanged through a GELU, so
that six layers of pairs compute linear functions of up to 240 samples, and the seventh computes
filters of 400 samples (25 ms) at each frame. Each filter is a cosine under a Hann window, at three
phases a third of a turn apart; their sum after the last GELU follows the magnitude of its band.

The first layer passes single samples on. They are equally loud, so that its group norm scales them
alike and makes the loudness of clips equal. Between two layers, a filter is cut into overlapping
pieces, one for each tap of the layer above, and a layer computes a basis of all the pieces that are
needed. If there are more of them than pairs of channels, it computes the greatest components; a
narrow stem is therefore restricted to low bands (`_highest`).

Only initial values change: the architecture is that of wav2vec 2.0, and training starts from here.
This is not part of the published recipes.
"""

import functools

import numpy as np

from musicssl.audio import SAMPLE_RATE, STEM_WINDOW
from musicssl.model.stem import KERNELS, STRIDES

_LOWEST = 60.0  # Hz, of the first band
_PHASES = 3
_LOUDNESS = 0.03  # scale of an output: a loud tone at 500 Hz gives about 3
_RISE = 0.6  # exponent by which higher bands, which are softer in music, are amplified
_ROUNDING = 1e-9  # share of a basis's greatest component; smaller ones are rounding errors


@functools.cache
def kernels(width: int) -> tuple[np.ndarray, ...]:
    """Return the kernels [k, c_in, width] of the seven layers.

    Channels that no filter needs start at zero.

    Raises:
      ValueError: there are not enough channels for the samples of the first layer.
    """
    if width < 2 * KERNELS[0]:
        raise ValueError(
            f"encoder.stem_width is {width}, too narrow for a stem that starts as a filter bank: "
            f"use {2 * KERNELS[0]} or more, or --config.encoder.stem_start=random"
        )

    # How many samples a frame of each layer covers, and how far apart frames are.
    windows, hops = [KERNELS[0]], [STRIDES[0]]
    for taps, stride in zip(KERNELS[1:], STRIDES[1:], strict=True):
        windows.append(windows[-1] + (taps - 1) * hops[-1])
        hops.append(hops[-1] * stride)

    # From the last layer down: what a layer computes, as functions of the samples of the one below.
    wanted = _filters(width)  # [n, 400]
    importance = np.ones(len(wanted))
    made = []
    for layer in range(len(KERNELS) - 1, 0, -1):
        window, hop = windows[layer - 1], hops[layer - 1]
        shares = _shares(KERNELS[layer], window, hop)  # [k, window]
        at = np.arange(KERNELS[layer])[:, None] * hop + np.arange(window)  # [k, window]
        pieces = wanted[:, at] * shares  # [n, k, window]
        if layer == 1:
            basis, importance = np.eye(window), np.ones(window)
        else:
            basis, importance = _basis(pieces * importance[:, None, None], width // 2)
        products = np.einsum("nkw,dw->kdn", pieces, basis)  # [k, d, n]
        made.append(_in_pairs(products, width, last=layer == len(KERNELS) - 1))
        wanted = basis

    first = _in_pairs(np.eye(KERNELS[0])[:, None], width, last=False, paired_input=False)
    return first, *reversed(made)


def centres(width: int) -> np.ndarray:
    """Return the centres of the bands in Hz, equally far apart in mel: [width // 3]."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (_LOWEST, _highest(width)))
    return 700 * (10 ** (np.linspace(low, high, width // _PHASES) / 2595) - 1)


def _highest(width: int) -> float:
    """Return the centre of the last band in Hz.

    With up to 23 Hz per channel, a stem of 64 or 128 channels loses less than 3 % of the energy of
    the filters' pieces.
    """
    return min(7000.0, 23.0 * width)


def _filters(width: int) -> np.ndarray:
    """Return the filters, one phase after another: [3 * bands, 400]."""
    hertz = centres(width)
    seconds = (np.arange(STEM_WINDOW) - (STEM_WINDOW - 1) / 2) / SAMPLE_RATE
    turns = hertz[None, :, None] * seconds + np.arange(_PHASES)[:, None, None] / _PHASES
    window = np.hanning(STEM_WINDOW + 2)[1:-1]
    loudness = _LOUDNESS * (hertz / 500) ** _RISE
    filters = loudness[:, None] * window * np.cos(2 * np.pi * turns)  # [3, bands, 400]
    return filters.reshape(-1, STEM_WINDOW)


def _shares(taps: int, window: int, hop: int) -> np.ndarray:
    """Return each tap's share of the samples that it covers; shares sum to 1: [k, window]."""
    sample, overlap = np.arange(window) + 0.5, window - hop
    shares = np.ones((taps, window))
    shares[1:] = np.minimum(shares[1:], sample / overlap)
    shares[:-1] = np.minimum(shares[:-1], (window - sample) / overlap)
    total = np.zeros(window + (taps - 1) * hop)
    for tap in range(taps):
        total[tap * hop : tap * hop + window] += shares[tap]
    return np.stack([s / total[i * hop : i * hop + window] for i, s in enumerate(shares)])


def _basis(pieces: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis of the pieces, and how much of the pieces each row carries."""
    _, sizes, rows = np.linalg.svd(pieces.reshape(-1, pieces.shape[-1]), full_matrices=False)
    kept = min(most, int((sizes > _ROUNDING * sizes[0]).sum()))
    return rows[:kept], sizes[:kept] / sizes[0]


def _in_pairs(
    products: np.ndarray, width: int, last: bool, paired_input: bool = True
) -> np.ndarray:
    """Return the kernel [k, c_in, width] of a layer whose signals are products [k, d, n].

    A signal has two neighbouring channels, the second the negative of the first. In the last layer,
    which is not read in pairs, it has one channel.
    """
    if paired_input:
        products = np.stack([products, -products], 2).reshape(len(products), -1, products.shape[2])
    if not last:
        products = np.stack([products, -products], 3).reshape(*products.shape[:2], -1)
    channels = width if paired_input else 1
    kernel = np.zeros((len(products), channels, width), np.float32)
    kernel[:, : products.shape[1], : products.shape[2]] = products
    return kernel
