"""Dot-product attention that keeps one rounded copy of its weights for the gradient.

By default, the gradient keeps the softmax in float32 and sums over it again. Here it keeps the
weights in the compute type, draws dropout's bits a second time, and takes the softmax's row sums
from the output, as in FlashAttention (arXiv:2205.14135, appendix B.2). One layer of 4 clips of 1496
frames then needs a third of the memory, and 6.6 million cycles instead of 9.6 (libtpu 0.0.42's
estimate, v5e). Clips of a few seconds gain nothing from this: 16 clips of 256 frames take 0.55
million cycles instead of 0.45.
"""

import functools
import math

import jax
import jax.numpy as jnp

from musicssl.model.dropout import keep, salts
from musicssl.runtime import sharding

_KERNEL = 256  # frames: clips of this length or more have their own kernel on a TPU
_PADDED = "padded clips have no dropout: train on clips of one length"
LONG = 512  # frames: from this length, `attend_long` takes fewer cycles than `attend`


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key: jax.Array | None,
    dropout: float,
    frames: jax.Array | None = None,
) -> jax.Array:
    """Attend with q, k and v [b, t, h, d] -> [b, t, h, d]; if there is a key, weights are dropped.

    Args:
      frames: how many frames each clip has, [b], if padding follows that nothing may attend to.

    Raises:
      ValueError: clips are padded and weights are to be dropped: no form here does both.
    """
    if key is not None and frames is not None:
        raise ValueError(_PADDED)
    if key is None:
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=frames)
    if sharding.platform() == "tpu" and q.shape[1] >= _KERNEL:
        from musicssl.model import attention_kernel  # Pallas takes half a second to import

        if attention_kernel.fits(*q.shape[1:]):
            words = jnp.stack(salts(key, (q.shape[0], q.shape[2])), axis=-1)  # [b, h, 2]
            attend_rows = functools.partial(attention_kernel.attend, rate=dropout, interpret=False)
            return sharding.by_clip(lambda x: attend_rows(*x), (q, k, v, words))
    if q.shape[1] < LONG:
        return attend(q, k, v, key, dropout)
    return attend_long(q, k, v, key, dropout)


def attention_on_gpu(
    qkv: jax.Array, key: jax.Array | None, dropout: float, frames: jax.Array | None = None
) -> jax.Array:
    """Compute `attention` from queries, keys and values in one array [b, t, 3, h, d].

    Without dropout, cuDNN's fused kernel does so; with it, our own, whose masks are a function of
    the key.
    """
    from musicssl.model import attention_gpu

    q, k, v = (qkv[:, :, i] for i in range(3))
    if not attention_gpu.fits(qkv):
        return attention(q, k, v, key, dropout, frames)
    if key is None:
        fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        clips = {"query": q, "key": k, "value": v, "key_value_seq_lengths": frames}
        return sharding.by_clip(lambda x: fused(**x), clips)
    if frames is not None:
        raise ValueError(_PADDED)
    words = jnp.stack(salts(key, (qkv.shape[0], qkv.shape[3])), axis=-1)  # [b, h, 2]
    attend_rows = functools.partial(attention_gpu.attend, rate=dropout)
    return sharding.by_clip(lambda x: attend_rows(*x), (qkv, words))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, key: jax.Array, dropout: float) -> jax.Array:
    """Attend by the plain formula, with a softmax in float32."""
    dropped = drop(_softmax(q, k), key, dropout)
    return jnp.einsum("bhqk,bkhd->bqhd", dropped, v)


def _softmax(q: jax.Array, k: jax.Array) -> jax.Array:
    """Return the weights [b, h, q, k] in the compute type."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores / math.sqrt(q.shape[-1])).astype(q.dtype)


def drop(weights: jax.Array, key: jax.Array, dropout: float) -> jax.Array:
    return jnp.where(keep(key, weights.shape, dropout), weights / (1 - dropout), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_long(
    q: jax.Array, k: jax.Array, v: jax.Array, key: jax.Array, dropout: float
) -> jax.Array:
    """Compute `attend`, with a gradient that keeps less in memory."""
    return attend(q, k, v, key, dropout)


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, key: jax.Array, dropout: float
) -> tuple[jax.Array, tuple]:
    weights = _softmax(q, k)
    y = jnp.einsum("bhqk,bkhd->bqhd", drop(weights, key, dropout), v)
    return y, (q, k, v, key, weights, y)


def backward(dropout: float, saved: tuple, dy: jax.Array) -> tuple:
    q, k, v, key, weights, y = saved
    dv = jnp.einsum("bhqk,bqhd->bkhd", drop(weights, key, dropout), dy)
    dw = jnp.einsum("bqhd,bkhd->bhqk", dy, v, preferred_element_type=jnp.float32)
    dw = drop(dw, key, dropout)
    # sum over k of weights * dw, which is the output's product with its gradient
    rows = jnp.einsum("bqhd,bqhd->bhq", dy, y, preferred_element_type=jnp.float32)[..., None]
    ds = (weights * (dw - rows) / math.sqrt(q.shape[-1])).astype(q.dtype)
    dq = jnp.einsum("bhqk,bkhd->bqhd", ds, k)
    dk = jnp.einsum("bhqk,bqhd->bkhd", ds, q)
    return dq, dk, dv, None


attend_long.defvjp(forward, backward)
