"""The stem's first convolution, its norm and its GELU as one GPU kernel each way.

Its output is the largest array of a step, and its input, the audio, one of the smallest. So the
kernel writes the output and keeps nothing else: the gradient recomputes the convolution from the
audio. The statistics come from the audio too, by way of `first_norm`. For 8 clips of 30 s, this
layer moves 1.9 GB per step, instead of 11 GB with XLA's own program for an H100.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

Ref = Any  # what a kernel is given: a reference to a block of memory, for which Pallas has no type

TAPS = 16  # rows of a kernel, the fewest that a GPU's matrix units take: ten taps, and zeros
FRAMES, CHANNELS = 32, 128  # of a block
BLOCKS = 64  # of frames, in a program of the gradient
_WARPS = 4


def fits(kernel: jax.Array, dtype: jnp.dtype) -> bool:
    """Return whether `layer` is made for kernels [k, 1, c] and activations of this type."""
    return dtype == jnp.bfloat16 and kernel.shape[0] < TAPS and kernel.shape[2] % CHANNELS == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def layer(
    windows: jax.Array,
    kernels: jax.Array,
    by_frame: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    varies: bool,
) -> jax.Array:
    """Return GELU(windows @ kernel * by_frame * scale + offset): [b, t, c] in the windows' type.

    Args:
      windows: [b, t, TAPS], the samples of each frame; their gradient is never needed.
      kernels: [b, TAPS, c], one for each clip.
      by_frame: float32 [b, t]. scale, offset: float32 [b, c].
      varies: whether by_frame has a gradient.
    """
    b, t, _ = windows.shape
    c = kernels.shape[2]
    return pl.pallas_call(
        functools.partial(_forward_body, frames=t),
        name="first_layer_forward",
        grid=(b, pl.cdiv(t, FRAMES), c // CHANNELS),
        in_specs=[
            pl.BlockSpec((None, FRAMES, TAPS), lambda i, n, j: (i, n, 0)),
            pl.BlockSpec((None, TAPS, CHANNELS), lambda i, n, j: (i, 0, j)),
            pl.BlockSpec((None, FRAMES), lambda i, n, j: (i, n)),
            pl.BlockSpec((None, CHANNELS), lambda i, n, j: (i, j)),
            pl.BlockSpec((None, CHANNELS), lambda i, n, j: (i, j)),
        ],
        out_specs=pl.BlockSpec((None, FRAMES, CHANNELS), lambda i, n, j: (i, n, j)),
        out_shape=jax.ShapeDtypeStruct((b, t, c), windows.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS),
        metadata={"operations": str(2 * b * t * TAPS * c)},  # for planning/hlo.py
    )(windows, kernels.astype(windows.dtype), by_frame, scale, offset)


def _forward(
    windows: jax.Array,
    kernels: jax.Array,
    by_frame: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    varies: bool,
) -> tuple:
    y = layer(windows, kernels, by_frame, scale, offset, varies)
    return y, (windows, kernels, by_frame, scale, offset)


def _backward(varies: bool, saved: tuple, dy: jax.Array) -> tuple:
    windows, kernels, by_frame, scale, offset = saved
    b, t, c = dy.shape
    rows = FRAMES * BLOCKS
    programs = pl.cdiv(t, rows)
    products, sums, d_frames = pl.pallas_call(
        functools.partial(_backward_body, frames=t, varies=varies),
        name="first_layer_backward",
        grid=(b, programs, c // CHANNELS),
        in_specs=[
            pl.BlockSpec((None, rows, TAPS), lambda i, n, j: (i, n, 0)),
            pl.BlockSpec((None, TAPS, CHANNELS), lambda i, n, j: (i, 0, j)),
            pl.BlockSpec((None, rows), lambda i, n, j: (i, n)),
            pl.BlockSpec((None, CHANNELS), lambda i, n, j: (i, j)),
            pl.BlockSpec((None, CHANNELS), lambda i, n, j: (i, j)),
            pl.BlockSpec((None, rows, CHANNELS), lambda i, n, j: (i, n, j)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, TAPS, CHANNELS), lambda i, n, j: (i, n, 0, j)),
            pl.BlockSpec((None, None, CHANNELS), lambda i, n, j: (i, n, j)),
            pl.BlockSpec((None, None, rows), lambda i, n, j: (i, j, n)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((b, programs, TAPS, c), jnp.float32),
            jax.ShapeDtypeStruct((b, programs, c), jnp.float32),
            jax.ShapeDtypeStruct((b, c // CHANNELS, t), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS),
        metadata={"operations": str(4 * b * t * TAPS * c)},
    )(windows, kernels.astype(windows.dtype), by_frame, scale, offset, dy)

    # add up the programs' sums
    products = products.sum(axis=1)  # [b, TAPS, c], windows times what reaches the convolution
    d_scale = (products * kernels).sum(axis=1)
    d_kernels = products * scale[:, None]
    d_by_frame = d_frames.sum(axis=1) if varies else None
    return None, d_kernels.astype(kernels.dtype), d_by_frame, d_scale, sums.sum(axis=1)


layer.defvjp(_forward, _backward)


def _forward_body(
    windows: Ref, kernel: Ref, by_frame: Ref, scale: Ref, offset: Ref, y: Ref, *, frames: int
) -> None:
    inside = pl.program_id(1) * FRAMES + jnp.arange(FRAMES) < frames
    w = plgpu.load(windows, mask=inside[:, None], other=0.0)
    factor = plgpu.load(by_frame, mask=inside, other=0.0)[:, None]
    z = _product(w, kernel[...]) * factor * scale[...][None] + offset[...][None]
    below, _ = normal(z)
    plgpu.store(y, (z * below).astype(y.dtype), mask=inside[:, None])


def _backward_body(
    windows: Ref,
    kernel: Ref,
    by_frame: Ref,
    scale: Ref,
    offset: Ref,
    dy: Ref,
    products: Ref,
    sums: Ref,
    d_frames: Ref,
    *,
    frames: int,
    varies: bool,
) -> None:
    first = pl.program_id(1) * FRAMES * BLOCKS
    taps, by, plus = kernel[...], scale[...][None], offset[...][None]

    def add(i: jax.Array, totals: tuple) -> tuple:
        rows = pl.dslice(i * FRAMES, FRAMES)
        inside = first + i * FRAMES + jnp.arange(FRAMES) < frames
        w = plgpu.load(windows.at[rows, :], mask=inside[:, None], other=0.0)
        factor = plgpu.load(by_frame.at[rows], mask=inside, other=0.0)[:, None]
        given = plgpu.load(dy.at[rows, :], mask=inside[:, None], other=0.0)
        convolved = _product(w, taps)
        z = convolved * factor * by + plus
        below, density = normal(z)
        dz = given.astype(jnp.float32) * (below + z * density)
        if varies:
            d_row = (dz * convolved * by).sum(axis=1)
            plgpu.store(d_frames.at[rows], d_row, mask=inside)
        reached = (dz * factor).astype(w.dtype)
        return totals[0] + _product(w.T, reached), totals[1] + dz.sum(axis=0)

    zeros = jnp.zeros((TAPS, CHANNELS), jnp.float32), jnp.zeros(CHANNELS, jnp.float32)
    products[...], sums[...] = jax.lax.fori_loop(0, BLOCKS, add, zeros)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)


def normal(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the normal distribution function and its density.

    Kernels have no erf. This is formula 7.1.26 of Abramowitz and Stegun, with an error of at most
    1.5e-7; its exponential is also that of the density.
    """
    power = jnp.exp(-0.5 * z * z)
    u = 1 / (1 + 0.3275911 * math.sqrt(0.5) * jnp.abs(z))
    tail = 0.5 * power * u * _polynomial(u)
    return jnp.where(z < 0, tail, 1 - tail), power / math.sqrt(2 * math.pi)


def _polynomial(u: jax.Array) -> jax.Array:
    total = jnp.full_like(u, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = total * u + coefficient
    return total
