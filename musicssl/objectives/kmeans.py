"""K-means over a stream of feature batches: the codebook whose nearest rows are HuBERT's labels.

The best of several k-means++ seedings on a random sample of the stream (see seeding.py) is polished
on that sample and then goes through full Lloyd passes over the stream. Memory does not grow with
the corpus, batches may be sharded over a mesh, and every pass is a function of (seed, pass), so
that a fit stopped between two passes goes on as if it had not been.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from musicssl.objectives import seeding
from musicssl.objectives.seeding import EXACT, Features
from musicssl.runtime import sharding

_SAMPLE_BATCH = 8192  # frames: bounds [frames, clusters] distances while the sample is polished
_BLOCK = 256  # frames that a CPU assigns at a time
_SPLIT = 0.1  # an empty cluster starts this many standard deviations from the one it splits


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to fit a codebook; a section of the config.

    Attributes:
      clusters: the rows of the codebook.
      seed: of the sample, the seedings and the splits of empty clusters.
      sample: the frames kept from the first pass to seed from; 65,536 will do, or 100 for each
        cluster if that is more.
      restarts: how many seedings are tried on the sample; the best is kept.
      polish: how many Lloyd passes over the sample improve it.
      passes: the most Lloyd passes over the stream.
      tolerance: stop when a pass lowers the inertia by this share of the last or less.
    """

    clusters: int
    seed: int
    sample: int
    restarts: int
    polish: int
    passes: int
    tolerance: float

    def __post_init__(self) -> None:
        for name in ("clusters", "sample", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of k-means is {getattr(self, name)}: set 1 or more")
        if self.sample < self.clusters:
            raise ValueError(
                f"a sample of {self.sample} frames cannot seed {self.clusters} clusters: "
                "raise sample, to 100 a cluster or more"
            )


class State(NamedTuple):
    """A fit between two passes over the stream: only arrays and numbers, small enough to save.

    `inertia` [passes] is the mean squared distance of a frame to its nearest row, per Lloyd
    pass, and `counts` [k] is how many frames each row had in the last pass. Both are for the rows
    with which the pass began; `codebook` [k, f] already has the means with which it ended.
    """

    codebook: np.ndarray
    counts: np.ndarray
    inertia: np.ndarray
    finished: bool

    @property
    def passes(self) -> int:
        """Lloyd passes made over the stream."""
        return len(self.inertia)

    @property
    def usage(self) -> float:
        """The share of the codebook's rows that are nearest to any frame."""
        return usage(self.counts)

    @property
    def perplexity(self) -> float:
        """The exponential of the labels' entropy: k where all rows are used equally."""
        return perplexity(self.counts)

    @property
    def quantizer(self) -> dict[str, np.ndarray]:
        """The arrays that turn features into labels, by name."""
        return {"codebook": self.codebook}


def usage(counts: np.ndarray) -> float:
    """Return the share of codes that occur, given how often each does [k]."""
    return float(np.mean(counts > 0))


def perplexity(counts: np.ndarray) -> float:
    """Return the exponential of the codes' entropy, given how often each occurs [k]."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-np.sum(share * np.log(share))))


def assign(codebook: Features, features: Features) -> jax.Array:
    """Return the nearest row of `codebook` [k, f] for each of `features` [..., f]: int32 [...]."""
    if sharding.platform() == "cpu":
        return sharding.by_clip(_assign_in_blocks, jnp.asarray(features), jnp.asarray(codebook))
    return jnp.argmin(_distances(codebook, features), axis=-1).astype(jnp.int32)


def _distances(codebook: Features, features: Features) -> jax.Array:
    """Return the squared distances [..., k], without a term that is the same for all k."""
    products = jnp.matmul(features.astype(jnp.float32), codebook.T, precision=EXACT)
    return jnp.square(codebook).sum(-1) - 2 * products


def _assign_in_blocks(features: jax.Array, codebook: jax.Array) -> jax.Array:
    """Compute `assign` for _BLOCK frames at a time, whose distances a CPU's cache holds.

    For all frames at once, memory would limit the speed (tests/benchmarks/README.md).
    """
    frames = features.reshape(-1, features.shape[-1])  # [..., f] -> [n, f]
    whole = len(frames) // _BLOCK * _BLOCK

    def nearest(block: jax.Array) -> jax.Array:
        return _argmin_on_cpu(_distances(codebook, block)).astype(jnp.int32)

    blocks = frames[:whole].reshape(-1, _BLOCK, frames.shape[1])
    labels = [jax.lax.map(nearest, blocks).reshape(-1)]
    if whole < len(frames):
        labels.append(nearest(frames[whole:]))
    return jnp.concatenate(labels).reshape(features.shape[:-1])


def _argmin_on_cpu(values: jax.Array) -> jax.Array:
    """Return the index of a least value of [..., k], in two steps: [...].

    XLA's argmin compares one value at a time on CPU and takes three times as long as the product
    that made the values; its minimum uses vector instructions. So k becomes a grid of about
    sqrt(k) by sqrt(k): the minimum down each column, the best column, the best row in that.
    """
    rows = math.isqrt(values.shape[-1])
    missing = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % rows)]
    grid = jnp.pad(values, missing, constant_values=jnp.inf)
    grid = grid.reshape(*values.shape[:-1], rows, -1)  # [..., k] -> [..., rows, columns]
    column = jnp.argmin(grid.min(-2), -1)  # [...]
    row = jnp.argmin(jnp.take_along_axis(grid, column[..., None, None], -1)[..., 0], -1)
    return row * grid.shape[-1] + column


class Fit:
    """A codebook's fit, which is given the features of a stream batch by batch, pass by pass.

    Attributes:
      state: None before the first pass, which draws the sample to seed from, has ended.
    """

    def __init__(self, settings: Settings, state: State | None = None) -> None:
        """Begin a fit, or go on from a state.

        Raises:
          ValueError: the state is for a codebook of another size.
        """
        if state is not None and len(state.codebook) != settings.clusters:
            raise ValueError(
                f"the state to go on from has {len(state.codebook)} clusters and the settings ask "
                f"for {settings.clusters}: restore the setting, or delete the state to begin again"
            )
        self.settings, self.state = settings, state
        self._begin()

    def _begin(self) -> None:
        self._sample = seeding.Sample(self.settings.seed, self.settings.sample)
        self._totals = None if self.state is None else _nothing(self.state)

    @property
    def finished(self) -> bool:
        """Return whether no further pass is needed."""
        return self.state is not None and self.state.finished

    def add(self, features: Features) -> None:
        """Take a batch of the pass: [..., f].

        Raises:
          ValueError: the batch's width is not the codebook's.
        """
        if self.state is None:
            self._sample.add(features)
        else:
            self._totals = _add(self._totals, self.state, features)

    def end_pass(self) -> None:
        """Make the next state from the pass.

        Raises:
          ValueError: there are fewer frames than clusters, or features that are not finite.
        """
        if self.state is None:
            self.state = _seed_codebook(self._sample.frames(), self.settings)
        else:
            self.state = _moved(self.state, self._totals, self.settings)
        self._begin()


def fit(
    next_pass: Callable[[int], Iterable[Features]],
    settings: Settings,
    state: State | None = None,
    on_pass: Callable[[State], None] | None = None,
) -> State:
    """Fit a codebook to the feature batches of a stream.

    Args:
      next_pass: returns the batches, each [..., f], of one pass over the stream. It is called with
        0 for the pass that draws the sample, then with 1, 2, ... for the Lloyd passes. It must
        return the same batches whenever it is called with the same number.
      settings: see `Settings`.
      state: the last state that `on_pass` was given, to go on from there.
      on_pass: called after seeding and after each Lloyd pass, to save and report.

    Returns:
      The last state, finished.

    Raises:
      ValueError: there are fewer frames than clusters, features are not finite or change their
        width, or the state is for a codebook of another size.
    """
    begun = Fit(settings, state)
    while not begun.finished:
        number = 0 if begun.state is None else begun.state.passes + 1
        for features in next_pass(number):
            begun.add(features)
        begun.end_pass()
        assert begun.state is not None
        if on_pass:
            on_pass(begun.state)
    assert begun.state is not None
    return begun.state


def _seed_codebook(sample: np.ndarray, settings: Settings) -> State:
    """Seed a codebook on a random sample of the stream and polish the best of several there.

    The `counts` of the returned state are the sample's.
    """
    if len(sample) < settings.clusters:
        raise ValueError(
            f"the data set has {len(sample)} frames, fewer than the {settings.clusters} clusters "
            "asked for: give more audio, or ask for fewer clusters"
        )
    if not np.isfinite(sample).all():
        raise ValueError("features to cluster hold NaN or infinity: check the audio")

    # The best of several seedings, then Lloyd passes over the sample.
    def seeded(restart: int) -> tuple[float, np.ndarray]:
        codebook, inertia = seeding.plus_plus(settings.seed, restart, sample, settings.clusters)
        return float(inertia), np.asarray(codebook)

    restarts = tqdm(range(settings.restarts), "seeding", unit=" restarts", delay=5)
    _, codebook = min(map(seeded, restarts), key=lambda pair: pair[0])

    state = State(codebook, np.zeros(len(codebook), np.int64), np.zeros(0), finished=False)
    for _ in tqdm(range(settings.polish), "polishing the seeds", unit=" passes", delay=5):
        totals = _nothing(state)
        for i in range(0, len(sample), _SAMPLE_BATCH):
            totals = _add(totals, state, sample[i : i + _SAMPLE_BATCH])
        state = _moved(state, totals, settings)
    return state._replace(inertia=np.zeros(0), finished=settings.passes < 1)


def _nothing(state: State) -> tuple[Any, Any]:
    """Return a Lloyd pass's sums [k, f + 1] and counts [k] before its first batch."""
    clusters, width = state.codebook.shape
    return np.zeros((clusters, width + 1), np.float32), np.zeros(clusters, np.int32)


def _add(totals: Any, state: State, features: Features) -> tuple[Any, Any]:
    """Add a batch to a Lloyd pass's sums and counts, which are jax's from the first batch on."""
    width = state.codebook.shape[1]
    if features.shape[-1] != width:
        raise ValueError(
            f"features of {features.shape[-1]} values do not fit a codebook of {width}: "
            "go on with the features the fit began with, or delete its state"
        )
    return _accumulate(totals, state.codebook, features)


def _moved(state: State, totals: Any, settings: Settings) -> State:
    """End a Lloyd pass: every row moves to the mean of the frames that it was nearest to."""
    sums, counts = np.asarray(totals[0]), np.asarray(totals[1])
    frames = counts.sum(dtype=np.int64)
    inertia = sums[:, -1].sum(dtype=np.float64) / max(frames, 1)
    if frames == 0 or not np.isfinite(inertia):
        raise ValueError(
            f"a pass of k-means over {frames} frames has inertia {inertia}: "
            "check the audio and the features for empty input, NaN or infinity"
        )

    moved = state.codebook + sums[:, :-1] / np.maximum(counts, 1)[:, None]
    history = np.append(state.inertia, inertia)
    rng = np.random.default_rng([settings.seed, len(history)])
    finished = len(history) >= settings.passes or _settled(history, settings.tolerance)
    codebook = _split_for_empty(moved.astype(np.float32), counts, sums[:, -1], rng)
    return State(codebook, counts.astype(np.int64), history, bool(finished))


def _settled(inertia: np.ndarray, tolerance: float) -> bool:
    """Tell whether the last pass lowered the inertia by the tolerated share or less."""
    return len(inertia) > 1 and bool(inertia[-2] - inertia[-1] <= tolerance * inertia[-2])


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate(
    totals: tuple[jax.Array, jax.Array], codebook: Features, features: Features
) -> tuple[jax.Array, jax.Array]:
    """Add a batch to the sums [k, f + 1] of offsets and squared distances, and to the counts [k].

    Sums are of offsets from the row, not of features: they stay near zero, so that float32 is
    enough for any number of frames. A product with a one-hot matrix adds in the same order every
    time, which scattered additions on a GPU do not.
    """
    features = features.reshape(-1, features.shape[-1]).astype(jnp.float32)  # [..., f] -> [n, f]
    labels = assign(codebook, features)  # [n]
    offsets = features - codebook[labels]
    ones = jnp.ones_like(labels, jnp.float32)
    columns = jnp.column_stack([offsets, jnp.square(offsets).sum(-1), ones])  # [n, f + 2]
    members = labels == jnp.arange(len(codebook))[:, None]  # [k, n]
    batch = jnp.matmul(members.astype(jnp.float32), columns, precision=EXACT)  # [k, f + 2]
    sums, counts = totals
    return seeding.replicated((sums + batch[:, :-1], counts + batch[:, -1].astype(jnp.int32)))


def _split_for_empty(
    codebook: np.ndarray, counts: np.ndarray, spread: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Move each row without frames next to a row of much inertia, to share that row's frames.

    The split of Linde, Buzo and Gray (1980): the two rows start a small random offset apart.
    """
    empty = np.flatnonzero(counts == 0)
    donors = np.argsort(-spread, kind="stable")[: len(empty)]
    donors = donors[(spread[donors] > 0) & (counts[donors] > 1)]
    empty = empty[: len(donors)]
    width = codebook.shape[1]
    deviation = np.sqrt(spread[donors] / counts[donors] / width)  # [m]
    offset = _SPLIT * deviation[:, None] * rng.standard_normal((len(donors), width))
    split = codebook.copy()
    split[empty] = codebook[donors] + offset
    split[donors] -= offset
    return split
