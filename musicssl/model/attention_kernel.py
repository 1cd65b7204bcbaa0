"""Attention over long clips as two TPU kernels, whose weights never leave the chip's own memory.

A block of rows of the weights, over all frames, fits on the chip even for clips of a minute. So the
softmax is computed by the plain formula, and the gradient computes it again from queries and keys
instead of reading it, as in FlashAttention (arXiv:2205.14135). Dropout's bits are those of
`dropout.bits`. A kernel sees 128 channels at once, which are two heads of 64. The products of one
head go over all 128, with the channels of the other set to zero, since a TPU takes as long for 64.
The sum that a row of weights is divided by, and dropout's factor, are applied to the row's 128
channels afterwards.

The kernels have not run on a TPU yet: tests compare them with `attention.attend` in Pallas's
interpreter, and compile them for v5e.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from musicssl.model import dropout

Ref = Any  # what a kernel is given: a reference to a block of memory, for which Pallas has no type

LANES = 128  # channels that a TPU has side by side
_LARGEST_ROWS = 256
_LARGEST_BLOCK = 2**18  # weights, 1 MiB in float32
PRODUCTS = {"forward": 2, "backward": 5}


def fits(t: int, heads: int, d: int) -> bool:
    """Return whether `attend` is made for this many frames and heads of d channels."""
    return LANES % d == 0 and heads * d % LANES == 0 and rows_of(t) is not None


def rows_of(t: int) -> int | None:
    """Return the rows of a block: the most that divide t and fit."""
    most = min(_LARGEST_ROWS, _LARGEST_BLOCK // t)
    return max((n for n in range(8, most + 1, 8) if t % n == 0), default=None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, salts: jax.Array, rate: float, interpret: bool
) -> jax.Array:
    """Attend [b, t, h, d] each -> [b, t, h, d], with a share `rate` of the weights dropped.

    Args:
      salts: uint32 [b, h, 2], `dropout.salts` of each clip and head.
      interpret: run by Pallas's interpreter, where there is no TPU.
    """
    return _forward(q, k, v, salts, rate, interpret)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, salts: jax.Array, rate: float, interpret: bool
) -> tuple[jax.Array, tuple]:
    body = functools.partial(_forward_body, d=q.shape[3], rate=rate)
    (y,) = _call("forward", body, (q, k, v), salts, q.shape[2:], interpret)
    return y, (q, k, v, salts, y)


def _backward(rate: float, interpret: bool, saved: tuple, dy: jax.Array) -> tuple:
    q, k, v, salts, y = saved
    body = functools.partial(_backward_body, d=q.shape[3], rate=rate)
    return *_call("backward", body, (q, k, v, y, dy), salts, q.shape[2:], interpret), None


attend.defvjp(_forward, _backward)


def _call(
    name: str,
    body: Callable[..., None],
    arrays: tuple,
    salts: jax.Array,
    heads: tuple[int, ...],
    interpret: bool,
) -> list[jax.Array]:
    """Run a body for each clip, 128 channels and block of rows, in that order.

    Queries and their gradients are passed in blocks of rows, keys and values whole. Forward returns
    the output in blocks of rows. Backward returns the gradient of queries in blocks of rows, and
    those of keys and values whole, whose sums are kept in float32 until the last block.
    """
    b, t = arrays[0].shape[:2]
    h, d = heads
    rows = rows_of(t)
    by_rows = pl.BlockSpec((1, rows, LANES), lambda i, j, r: (i, r, j))
    whole = pl.BlockSpec((1, t, LANES), lambda i, j, r: (i, 0, j))

    # what comes out, and what it costs, for the scheduler
    back = name == "backward"
    like = jax.ShapeDtypeStruct((b, t, h * d), arrays[0].dtype)
    flops = PRODUCTS[name] * 2 * b * h * t * t * d
    q_bytes = arrays[0].size * arrays[0].dtype.itemsize
    results = pl.pallas_call(
        body,
        name=f"attention_{name}",
        grid=(b, h * d // LANES, t // rows),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            *(by_rows, whole, whole, by_rows, by_rows)[: len(arrays)],
        ],
        out_specs=[by_rows, whole, whole] if back else [by_rows],
        out_shape=[like] * (3 if back else 1),
        scratch_shapes=[pltpu.VMEM((t, LANES), jnp.float32)] * (2 if back else 0),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops, transcendentals=b * h * t * t, bytes_accessed=(len(arrays) + 1) * q_bytes
        ),
        interpret=interpret,
    )(salts.astype(jnp.int32), *(x.reshape(b, t, h * d) for x in arrays))
    return [x.reshape(b, t, h, d) for x in results]


def _forward_body(salts: Ref, q: Ref, k: Ref, v: Ref, y: Ref, *, d: int, rate: float) -> None:
    """Compute one block of rows of the output."""
    total = jnp.zeros(q.shape[1:], jnp.float32)
    for head in range(LANES // d):
        powers, sums = _exponentials(_of_head(q[0], head, d), k[0], d)  # [r, t], [r, 1]
        dropped = jnp.where(_kept(salts, head, d, powers.shape, rate), powers, 0)
        part = _product(dropped.astype(v.dtype), v[0])
        total += _of_head(part, head, d) / (sums * (1 - rate))
    y[0] = total.astype(y.dtype)


def _backward_body(
    salts: Ref,
    q: Ref,
    k: Ref,
    v: Ref,
    y: Ref,
    dy: Ref,
    dq: Ref,
    dk: Ref,
    dv: Ref,
    dk_sum: Ref,
    dv_sum: Ref,
    *,
    d: int,
    rate: float,
) -> None:
    """Compute a block of rows of the queries' gradient, and its part of the keys' and values'."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    total, rows = jnp.zeros(q.shape[1:], jnp.float32), []
    for head in range(LANES // d):
        queries, dys = _of_head(q[0], head, d), _of_head(dy[0], head, d)
        powers, sums = _exponentials(queries, k[0], d)  # [r, t], [r, 1]
        factor = 1 / (sums * (1 - rate))
        keep = _kept(salts, head, d, powers.shape, rate)
        dropped = jnp.where(keep, powers, 0).astype(q.dtype)
        dw = jnp.where(keep, _product(dys, v[0], (1, 1)), 0)  # [r, t]
        # sum over t of weights * dw, which is the output's product with its gradient
        mean = (dys.astype(jnp.float32) * y[0].astype(jnp.float32)).sum(axis=1, keepdims=True)
        ds = (powers * (dw - mean * (1 - rate))).astype(q.dtype)
        by_root = factor / math.sqrt(d)
        total += _of_head(_product(ds, k[0]), head, d) * by_root
        rows.append((dropped, _scaled(dys, factor), ds, _scaled(queries, by_root)))
    dq[0] = total.astype(dq.dtype)
    # the rows of all heads at once, which fill the 128 that a TPU sums over better
    dropped, dys, ds, queries = (jnp.concatenate(x) for x in zip(*rows, strict=True))
    dv_sum[...] += _product(dropped, dys, (0, 0))
    dk_sum[...] += _product(ds, queries, (0, 0))

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        dk[0] = dk_sum[...].astype(dk.dtype)
        dv[0] = dv_sum[...].astype(dv.dtype)


def _of_head(x: jax.Array, head: int, d: int) -> jax.Array:
    """Return [r, 128] with the channels of the other heads set to zero."""
    place = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), d)
    return jnp.where(place == head, x, jnp.zeros_like(x))


def _product(x: jax.Array, y: jax.Array, over: tuple[int, int] = (1, 0)) -> jax.Array:
    """Multiply two matrices, with sums in float32 over the given axis of each."""
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


def _exponentials(q: jax.Array, k: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """Return the undivided softmax [r, t] of rows and the sums [r, 1] to divide by, in float32."""
    scores = _product(q, k, (1, 1))
    unit = math.log2(math.e) / math.sqrt(d)
    powers = jnp.exp2(scores * unit - scores.max(axis=1, keepdims=True) * unit)
    return powers, powers.sum(axis=1, keepdims=True)


def _scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply rows [r, c] by factors [r, 1] in float32."""
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def _kept(salts: Ref, head: int, d: int, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Return `dropout.keep` for these rows; a TPU compares and multiplies signed words."""
    rows, t = shape
    clip, number = pl.program_id(0), pl.program_id(1) * (LANES // d) + head
    salt, second = salts[clip, number, 0], salts[clip, number, 1]
    row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) + pl.program_id(2) * rows
    column = jax.lax.broadcasted_iota(jnp.int32, (1, t), 1) * _signed(dropout.GOLDEN)
    place = row * _signed(t * dropout.GOLDEN % 2**32) + column
    bits = dropout.mixed(place ^ salt, second)
    least = _signed(int(rate * 2**32) ^ 2**31)  # the order of unsigned words, among signed ones
    return (bits ^ _signed(2**31)) >= least


def _signed(word: int) -> int:
    """Return the int32 of the same bits, as a Python number."""
    return word - 2**32 if word >= 2**31 else word
