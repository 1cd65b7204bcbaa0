"""Dropout with random bits that cost next to nothing on any backend.

The bits are a 32-bit hash of an element's place in the global array and of the step's key, whereas
jax.random uses a block cipher, threefry. By the TPU compiler's estimate, threefry takes a third of
a whole feed-forward layer's cycles for one dropout, and this hash adds none. The bits of a place
depend neither on the devices that the array is sharded over nor on the rest of its shape.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musicssl.runtime import sharding

GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: neighbouring places differ in many bits
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B  # lowbias32, github.com/skeeto/hash-prospector


class Dropout(nn.Module):
    """Zero a share `rate` of the elements, and scale the others so that the mean stays the same.

    Its bits come from the "dropout" stream and the module's path.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or not self.rate:
            return x
        kept = keep(self.make_rng("dropout"), x.shape, self.rate)
        return jnp.where(kept, x / (1 - self.rate), 0)


def keep(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Return an array of `shape` that is True for the share 1 - rate of its elements.

    Raises:
      ValueError: the rate is not from 0 to below 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a dropout rate is {rate}: use a number from 0 to below 1")
    return bits(key, shape) >= jnp.uint32(rate * 2**32)


def bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw 32 random bits for each element: uint32 of `shape`, whose last two axes hold < 2**32."""
    outer, inner = shape[:-2], shape[-2:]
    salt, second = (x.reshape(*outer, *[1] * len(inner)) for x in salts(key, outer))
    return mixed(_places(inner) * jnp.uint32(GOLDEN) ^ salt, second)


def salts(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Draw the two words that `bits` uses for each index of an array's outer axes, `shape`."""
    seeds = jax.random.bits(key, (2,))
    if sharding.platform() == "gpu":  # or each of the two would be a kernel of its own
        seeds = jax.lax.optimization_barrier(seeds)
    number = _places(shape)
    return mixed(number * jnp.uint32(GOLDEN) ^ seeds[0], seeds[1]), seeds[0] ^ number


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Return each element's number in row-major order."""
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def mixed(x: jax.Array, salt: jax.Array) -> jax.Array:
    """Apply lowbias32, a permutation of the 32-bit words, with a salt between its two products.

    Signed words give the same bits.
    """
    first, second = (np.uint32(n).view(x.dtype) for n in (_FIRST, _SECOND))
    x ^= _shifted(x, 16)
    x *= first
    x ^= salt
    x ^= _shifted(x, 15)
    x *= second
    return x ^ _shifted(x, 16)


def _shifted(x: jax.Array, places: int) -> jax.Array:
    return jax.lax.shift_right_logical(x, jnp.full_like(x, places))
