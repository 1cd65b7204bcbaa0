"""A norm over channels and GELU, as one GPU kernel each way.

In data2vec's stem, both follow every convolution, whose outputs are among the largest arrays of a
step. For the two, XLA's program for an H100 reads and writes such an array 13 times, forward and
backward. These kernels do so 5 times: the gradient computes the norm again from its input.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from musicssl.model.first_layer_gpu import normal
from musicssl.model.residual_norm_gpu import (
    ROWS,
    SUMMED,
    WARPS,
    Ref,
    columns_of,
    load,
    of_affine,
    of_rows,
    of_sums,
    standardised,
    standardised_gradient,
    store,
    store_sums,
)


@jax.custom_vjp
def normed_gelu(x: jax.Array, affine: jax.Array) -> jax.Array:
    """Normalise x over channels, scale and shift it, apply GELU: [b, t, c] -> [b, t, c].

    Args:
      affine: float32 [b, 2, c], the norm's scale and offset, once for each clip.
    """
    return _forward(x, affine)[0]


def _forward(x: jax.Array, affine: jax.Array) -> tuple[jax.Array, tuple]:
    b, t, c = x.shape
    out = pl.pallas_call(
        functools.partial(_forward_body, frames=t, width=c),
        name="normed_gelu_forward",
        grid=(b, pl.cdiv(t, ROWS)),
        in_specs=[of_rows(ROWS, c), of_affine(c)],
        out_specs=of_rows(ROWS, c),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS),
        metadata={"operations": "0"},  # no product: planning/hlo.py
    )(x, affine)
    return out, (x, affine)


def _backward(saved: tuple, dout: jax.Array) -> tuple:
    x, affine = saved
    b, t, c = x.shape
    programs, rows = pl.cdiv(t, ROWS * SUMMED), of_rows(ROWS * SUMMED, c)
    dx, sums = pl.pallas_call(
        functools.partial(_backward_body, frames=t, width=c),
        name="normed_gelu_backward",
        grid=(b, programs),
        in_specs=[rows, rows, of_affine(c)],
        out_specs=[rows, of_sums(c)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((b, programs, 2, c), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS),
        metadata={"operations": "0"},
    )(x, dout, affine)
    return dx, sums.sum(axis=1)


normed_gelu.defvjp(_forward, _backward)


def _forward_body(x: Ref, affine: Ref, out: Ref, *, frames: int, width: int) -> None:
    inside, by, plus = columns_of(affine, width)
    row = pl.program_id(1) * ROWS + jnp.arange(ROWS)
    mask = (row < frames)[:, None] & inside[None]
    z = standardised(load(x, mask), inside, width)[0] * by + plus
    z = z.astype(out.dtype).astype(jnp.float32)  # rounded as it is where norm and GELU are separate
    store(out, (z * normal(z)[0]).astype(out.dtype), mask)


def _backward_body(
    x: Ref, dout: Ref, affine: Ref, dx: Ref, sums: Ref, *, frames: int, width: int
) -> None:
    inside, by, plus = columns_of(affine, width)
    first = pl.program_id(1) * SUMMED

    def add(i: jax.Array, totals: tuple) -> tuple:
        row = (first + i) * ROWS + jnp.arange(ROWS)
        mask = (row < frames)[:, None] & inside[None]
        rows = pl.dslice(i * ROWS, ROWS)
        y, inverse = standardised(load(x, mask, rows), inside, width)
        z = (y * by + plus).astype(x.dtype).astype(jnp.float32)
        below, density = normal(z)
        dz = load(dout, mask, rows) * (below + z * density)
        store(dx, standardised_gradient(dz * by, y, inverse, width).astype(dx.dtype), mask, rows)
        return totals[0] + (dz * y).sum(axis=0), totals[1] + dz.sum(axis=0)

    store_sums(sums, add, inside)
