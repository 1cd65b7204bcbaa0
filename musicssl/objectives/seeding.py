"""Seeds k-means: a random sample of a stream, and greedy k-means++ on that sample.

Both depend on a random seed alone: neither the number of devices nor that of hosts changes the
resulting codebook, beyond rounding.
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from musicssl import environment

EXACT = jax.lax.Precision.HIGHEST

Features = jax.Array | np.ndarray
_Arrays = TypeVar("_Arrays")  # an array, or a tree of them


class Sample:
    """A sample of a stream's frames, all equally likely.

    Every frame gets a random priority; the highest are kept.
    """

    def __init__(self, seed: int, size: int) -> None:
        self._seed, self._size = seed, size
        self._batches, self._seen = 0, 0
        self._kept: tuple[Features, Features] | None = None

    def add(self, features: Features) -> None:
        """Add the stream's next batch: [..., f]."""
        self._seen += int(np.prod(features.shape[:-1]))
        if self._kept is None:
            rows = np.zeros((self._size, features.shape[-1]), np.float32)
            self._kept = np.full(self._size, -1, np.float32), rows
        self._kept = _keep_highest(self._kept, self._seed, self._batches, features)
        self._batches += 1

    def frames(self) -> np.ndarray:
        """Return the frames that were drawn: [size, f], or all if there are fewer.

        Raises:
          ValueError: the stream had none.
        """
        if self._kept is None:
            raise ValueError("the first pass of k-means gave no features: check the data set")
        return np.asarray(self._kept[1])[: self._seen]


@functools.partial(jax.jit, donate_argnums=0)
def _keep_highest(
    kept: tuple[Features, Features], seed: int, index: int, features: Features
) -> tuple[jax.Array, jax.Array]:
    """Return the priorities and frames that rank highest among those kept and a batch's."""
    features = features.reshape(-1, features.shape[-1]).astype(jnp.float32)  # [..., f] -> [n, f]
    key = jax.random.fold_in(environment.key(seed), index)
    priorities = jnp.concatenate([kept[0], jax.random.uniform(key, features.shape[:1])])
    highest, order = jax.lax.top_k(priorities, len(kept[0]))
    return replicated((highest, jnp.concatenate([kept[1], features])[order]))


@functools.partial(jax.jit, static_argnames="clusters")
def plus_plus(
    seed: int, restart: int, sample: Features, clusters: int
) -> tuple[jax.Array, jax.Array]:
    """Seed a codebook [k, f] from `sample` [n, f] by greedy k-means++; return it and its inertia.

    Each row is the best of 2 + log k frames drawn with probability proportional to the squared
    distance to the rows so far (Arthur and Vassilvitskii 2007; the greedy variant of their
    section 5, with as many draws as scikit-learn makes).
    """
    trials = 2 + int(np.log(clusters))
    key = jax.random.fold_in(environment.key(seed), restart)
    squares = jnp.square(sample).sum(-1)  # [n]
    # Transposed once, which halves the time: XLA would do it again for each row.
    columns = jax.lax.optimization_barrier(sample.T)  # [f, n]

    first = sample[jax.random.randint(key, (), 0, len(sample))]
    codebook = jnp.zeros((clusters, sample.shape[-1])).at[0].set(first)

    def distances(rows: jax.Array) -> jax.Array:  # [r, f] -> [r, n]
        products = jnp.matmul(rows, columns, precision=EXACT)
        return jnp.maximum(jnp.square(rows).sum(-1)[:, None] - 2 * products + squares, 0)

    def add_row(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codebook, nearest = carry
        cumulative = jnp.cumsum(nearest)
        draws = jax.random.uniform(jax.random.fold_in(key, i), (trials,)) * cumulative[-1]
        rows = sample[jnp.searchsorted(cumulative, draws).clip(0, len(sample) - 1)]  # [r, f]
        after = jnp.minimum(nearest, distances(rows))  # [r, n]
        best = jnp.argmin(after.sum(-1))
        return codebook.at[i].set(rows[best]), after[best]

    start = (codebook, distances(first[None])[0])
    codebook, nearest = jax.lax.fori_loop(1, clusters, add_row, start)
    return replicated((codebook, nearest.sum()))


def replicated(arrays: _Arrays) -> _Arrays:
    """Under a mesh, ask for full copies on every device, so that every host can read them."""
    if jax.sharding.get_abstract_mesh().empty:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, PartitionSpec())
