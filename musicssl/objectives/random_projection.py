"""A quantiser without k-means: a random projection, and the nearest of random directions.

BEST-RQ (arXiv:2202.01855, section 3.1): the columns of a feature are standardised to mean 0 and
deviation 1, a projection with Xavier's scale reduces them to a few dimensions, and the code is the
codebook row, of standard normal values, whose direction is nearest. Neither projection nor codebook
is ever trained. OMAR-RQ's targets are several codebooks over several features (arXiv:2507.03482).

The paper calls the standardisation critical: without it, few codes are used. Here mean and
deviation are those of the run's own input, measured in the pass in which k-means draws its sample,
so that a frame has the same code in every crop. A second pass counts how often each code occurs.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicssl.objectives import kmeans, seeding
from musicssl.objectives.seeding import EXACT, Features

_CONSTANT = 1e-5  # a column of smaller deviation carries no information and is not scaled


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to draw a quantiser.

    Attributes:
      name: the target's, so that the targets of a run differ.
      clusters: the rows of the codebook.
      seed: of the projection and the codebook.
      dimensions: the number to which the projection reduces the feature's columns.
    """

    name: str
    clusters: int
    seed: int
    dimensions: int


class State(NamedTuple):
    """A quantiser: only arrays and numbers, small enough to save.

    `mean` [f] and `deviation` [f] are the feature's, `projection` is [f, p] and `codebook` [k, p],
    with rows of length 1; `counts` [k] are the frames of each row, 0 until they are counted.
    """

    mean: np.ndarray
    deviation: np.ndarray
    projection: np.ndarray
    codebook: np.ndarray
    counts: np.ndarray
    finished: bool

    @property
    def passes(self) -> int:
        """How many passes were made over the stream after the one that measured it."""
        return int(self.finished)

    @property
    def quantizer(self) -> dict[str, np.ndarray]:
        """The arrays that `assign` needs, by name."""
        return {name: getattr(self, name) for name in ARRAYS}


ARRAYS = ("mean", "deviation", "projection", "codebook")


def draw(settings: Settings, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a projection [width, p] and a codebook [k, p], functions of seed and name alone."""
    rng = np.random.default_rng([settings.seed, *settings.name.encode()])
    scale = np.sqrt(2 / (width + settings.dimensions))  # Xavier's, of normal values
    projection = scale * rng.standard_normal((width, settings.dimensions))
    rows = rng.standard_normal((settings.clusters, settings.dimensions))
    codebook = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return projection.astype(np.float32), codebook.astype(np.float32)


def assign(quantizer: dict[str, Any], features: Features) -> jax.Array:
    """Return the code of each of `features` [..., f]: int32 [...].

    Args:
      quantizer: as `State.quantizer`.
    """
    standard = (features.astype(jnp.float32) - quantizer["mean"]) / quantizer["deviation"]
    projected = jnp.matmul(standard, quantizer["projection"], precision=EXACT)  # [..., p]
    # The paper scales these to length 1 as well, which does not change which row is nearest, since
    # all rows have the same length.
    return kmeans.assign(quantizer["codebook"], projected)


class Fit:
    """The passes that make a quantiser: the first measures the stream, the second counts codes.

    Attributes:
      state: None before the first pass has ended.
    """

    def __init__(self, settings: Settings, state: State | None = None) -> None:
        self.settings, self.state = settings, state
        self._moments: list[tuple[int, tuple[jax.Array, jax.Array]]] = []
        self._counts: Any = None

    @property
    def finished(self) -> bool:
        """Return whether no further pass is needed."""
        return self.state is not None and self.state.finished

    def add(self, features: Features) -> None:
        """Process a batch of the pass: [..., f]."""
        if self.state is None:
            self._moments.append((int(np.prod(features.shape[:-1])), _moments(features)))
        else:
            if self._counts is None:
                self._counts = np.zeros(self.settings.clusters, np.int32)
            self._counts = _count(self._counts, self.state.quantizer, features)

    def end_pass(self) -> None:
        """Make the next state from the pass.

        Raises:
          ValueError: there were no frames, or features that are not finite.
        """
        if self.state is None:
            mean, deviation = _together(self._moments)
            projection, codebook = draw(self.settings, len(mean))
            counts = np.zeros(self.settings.clusters, np.int64)
            self.state = State(mean, deviation, projection, codebook, counts, finished=False)
            self._moments = []
        else:
            counts = np.asarray(self._counts).astype(np.int64)
            self.state = self.state._replace(counts=counts, finished=True)


def _together(
    moments: list[tuple[int, tuple[jax.Array, jax.Array]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation [f] of all batches from those of each (Chan et al. 1979)."""
    if not moments:
        raise ValueError("the first pass over the data gave no features: check the data set")
    frames = np.array([count for count, _ in moments], np.float64)[:, None]  # [batches, 1]
    means, squares = (
        np.stack([np.asarray(pair[i], np.float64) for _, pair in moments]) for i in range(2)
    )  # [batches, f]
    mean = (frames * means).sum(0) / frames.sum()
    spread = (squares + frames * np.square(means - mean)).sum(0) / frames.sum()
    if not np.isfinite(spread).all():
        raise ValueError("features to quantise hold NaN or infinity: check the audio")
    deviation = np.sqrt(spread)
    deviation = np.where(deviation < _CONSTANT, 1.0, deviation)
    return mean.astype(np.float32), deviation.astype(np.float32)


@jax.jit
def _moments(features: Features) -> tuple[jax.Array, jax.Array]:
    """Return the mean [f] of a batch [..., f] and its sum of squared differences from that [f]."""
    features = features.reshape(-1, features.shape[-1]).astype(jnp.float32)  # [..., f] -> [n, f]
    mean = features.mean(0)
    return seeding.replicated((mean, jnp.square(features - mean).sum(0)))


@jax.jit
def _count(counts: Features, quantizer: dict[str, Any], features: Features) -> jax.Array:
    """Add a batch's codes to the counts [k]."""
    labels = assign(quantizer, features).reshape(-1)
    members = labels == jnp.arange(len(counts))[:, None]  # [k, n]
    return seeding.replicated(jnp.asarray(counts) + members.sum(1))
