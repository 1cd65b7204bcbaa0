"""Many small probes trained at once: every layer, learning rate and seed of a task's grid.

The protocol is MARBLE's constrained track (arXiv:2306.10548, section 3.2 and appendix A): Adam on
batches of 64, learning rate halved when the validation score stalls, early stopping on it, the best
epoch kept. A sample is a single row, or a file with all of its windows: then batches differ in
their numbers of rows, as those of MARBLE's DataLoader do, and the loss is the mean over the rows.
The shapes of a program cannot differ, so such a batch is processed in pieces of one size whose
gradients are added. Validation and test outputs are averaged over the windows of an item before
they are scored. All models of a call advance together in one XLA program; a model that has stopped
keeps its best epoch and no longer decides when the program ends.

A layer's features are a source of one row set; the weighted sum is a source of several, mixed with
softmax weights that are trained too. What depends on the seed (initial values, order, dropout) is
the same for every layer and learning rate, so these are compared on the same random numbers.

Axis letters: g sources, s seeds, r learning rates, m mixed layers, n rows, b batch, p rows of a
piece, d width, h hidden units, c outputs, i items, k samples of several rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musicssl import environment
from musicssl.features.rows import Stored, take

Monitor = Callable[[jax.Array, jax.Array], jax.Array]

BLOCK = 4096  # rows evaluated together
_PIECE = 2  # rows that are trained on together, as a multiple of the samples in a batch
_KEEP = round(0.8 * 2**16)  # dropout 0.2, compared with 16 random bits
# torch.optim.lr_scheduler.ReduceLROnPlateau: better means better by this share
_THRESHOLD = 1e-4


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a probe is trained.

    loss: "bce" (labels [n, c] of 0 and 1), "ce" (labels [n], int) or "mse" (labels [n, c]).
    outputs: c.
    hidden: units of the hidden layer, 0 for a linear probe.
    batch: samples in an update. `Split.start` says what a sample is.
    epochs: at most.
    plateau, patience: epochs without a gain before the rate is halved, and before training stops.
    crop: 0, or how many neighbouring rows (frames of a clip) are drawn of each sample.
    """

    loss: str
    outputs: int
    hidden: int = 512
    batch: int = 64
    epochs: int = 100
    plateau: int = 3
    patience: int = 10
    crop: int = 0


class Split(NamedTuple):
    """Features and labels of a split.

    x: [g, m, n, d] of any float type, or Stored.
    y: labels of windows, [n] or [n, c].
    item: the item of each window, int32 [n].
    labels: of items, [i] or [i, c]; they are what outputs are scored against.
    start: the first row of each sample if samples have several rows, int32 [k]: a sample is a clip,
      of which a crop is drawn (`Protocol.crop`) or which is trained on whole. Empty where samples
      are single rows.
    """

    x: jax.Array | Stored
    y: jax.Array
    item: jax.Array
    labels: jax.Array
    start: jax.Array


class Fitted(NamedTuple):
    """The best epoch of each model.

    params: with the axes [g, s, r] first.
    score: of validation, [g, s, r].
    epoch: its number, [g, s, r].
    epochs: how many were run, by one program or as the sum over all models.
    """

    params: dict
    score: jax.Array | np.ndarray
    epoch: jax.Array | np.ndarray
    epochs: jax.Array | int


def split_of(
    x: np.ndarray | Stored,
    y: np.ndarray,
    item: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> Split:
    """Return a checked Split of features [g, m, n, d]; without `item`, every window is an item.

    Raises:
      ValueError: sizes differ.
    """
    item = np.arange(len(y)) if item is None else item
    labels = y if labels is None else labels
    if not (x.shape[2] == len(y) == len(item)) or len(y) == 0:
        raise ValueError(f"{x.shape[2]} feature rows, {len(y)} labels, {len(item)} items")
    if len(item) and int(item.max()) >= len(labels):
        raise ValueError(f"windows of item {item.max()}, but {len(labels)} item labels")
    start = np.zeros(0) if start is None else start
    item, start = item.astype(np.int32), start.astype(np.int32)
    x = x if isinstance(x, Stored) else jax.device_put(x)  # jnp.asarray holds it three times
    return Split(x, *(jnp.asarray(array) for array in (y, item, labels, start)))


def initial(key: jax.Array, width: int, mixed: int, protocol: Protocol) -> dict:
    """Draw a probe's initial values: PyTorch's for Linear, normal ones for mixing weights."""

    def linear(key: jax.Array, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
        bound = rows**-0.5
        draw = jax.random.uniform(key, (rows + 1, columns), minval=-bound, maxval=bound)
        return draw[:-1], draw[-1]

    first, second, third = jax.random.split(key, 3)
    params = {"mix": jax.random.normal(third, (mixed,))}
    if protocol.hidden:
        params["w1"], params["b1"] = linear(first, width, protocol.hidden)
        params["w2"], params["b2"] = linear(second, protocol.hidden, protocol.outputs)
    else:
        params["w2"], params["b2"] = linear(second, width, protocol.outputs)
    return params


def apply(params: dict, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """Map features [m, b, d] to outputs [b, c].

    Args:
      keep: the dropout mask divided by the share that is kept, [b, h].
    """
    # [m, b, d] -> [b, d]
    z = x[0] if len(x) == 1 else jnp.tensordot(jax.nn.softmax(params["mix"]), x, 1)
    if "w1" in params:
        z = jax.nn.relu(z @ params["w1"] + params["b1"])  # [b, d] -> [b, h]
        if keep is not None:
            z = z * keep
    return z @ params["w2"] + params["b2"]  # [b, c]


def _losses(kind: str, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Return the loss of each row [b], the mean over its outputs where there are several."""
    if kind == "ce":
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], 1)[:, 0]
    if kind == "mse":
        return jnp.square(outputs - y).mean(-1)
    if kind == "bce":
        return (jax.nn.softplus(outputs) - outputs * y).mean(-1)
    raise ValueError(f"loss is {kind!r}: use 'bce', 'ce' or 'mse'")


_Moments = tuple[dict, dict]  # Adam's, of gradients and of their squares


def _moments(moments: _Moments, grads: dict) -> _Moments:
    """Return Adam's moments of all models after an update, with PyTorch's defaults.

    Adam is written out, on arrays of all models, because XLA then computes each array in one pass
    over memory and in its own place.
    """
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], grads)
    return first, second


def _moved(params: dict, moments: _Moments, rates: jax.Array, count: jax.Array) -> dict:
    """Return the parameters after Adam's update of the number `count`, from 1, by its moments."""
    scales = rates / (1 - 0.9**count)  # [g, s, r]
    bias = 1 / (1 - 0.999**count)

    def move(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        scale = scales.reshape(scales.shape + (1,) * (p.ndim - scales.ndim))
        return p - scale * m / (jnp.sqrt(v * bias) + 1e-8)

    return jax.tree.map(move, params, *moments)


_Axes = tuple[
    int | None, ...
]  # of arguments: 0 for one that has the axis, None for one that has not


def _over_models(function: Callable, by_source: _Axes, by_seed: _Axes, by_rate: _Axes) -> Callable:
    """Map a function of one model over learning rates, seeds and sources."""
    return _mapped(_mapped(_mapped(function, by_rate), by_seed), by_source)


def _mapped(function: Callable, axes: _Axes) -> Callable:
    """Apply vmap, but remove an axis of length one: XLA's CPU products are slower with it."""

    def call(*arguments):
        mapped = [x for x, axis in zip(arguments, axes, strict=True) if axis == 0]
        if len(jax.tree.leaves(mapped)[0]) > 1:
            return jax.vmap(function, axes)(*arguments)

        single = []
        for x, axis in zip(arguments, axes, strict=True):
            single.append(x if axis is None else jax.tree.map(lambda leaf: leaf[0], x))
        return jax.tree.map(lambda leaf: leaf[None], function(*single))

    return call


class _Order(NamedTuple):
    """What an epoch is trained on, in batches.

    rows: the rows of each batch, [steps, b]; its samples instead if it has all of their rows.
    weights: of the same shape; 0 for what only fills up a batch.
    """

    rows: jax.Array
    weights: jax.Array


def _order(key: jax.Array, split: Split, protocol: Protocol) -> _Order:
    """Draw the order of an epoch.

    The last batch is filled up with samples of weight 0. With `crop`, the rows of a sample are
    neighbours, from a random place of its clip.
    """
    chosen, draw = jax.random.split(key)
    samples = len(split.start) or len(split.y)
    steps = -(-samples // protocol.batch)
    order = jax.random.permutation(chosen, samples)
    order = jnp.resize(order, (steps, protocol.batch))
    weight = (jnp.arange(steps * protocol.batch) < samples).reshape(order.shape).astype(jnp.float32)
    if not protocol.crop:
        return _Order(order, weight)

    # A clip ends where the next begins. Rows of a crop that are beyond its end have weight 0.
    ends = jnp.append(split.start[1:], len(split.y))
    room = jnp.maximum(ends - split.start - protocol.crop, 0)
    shift = jnp.floor(jax.random.uniform(draw, (samples,)) * (room + 1)).astype(jnp.int32)
    rows = (split.start + shift)[order][..., None] + jnp.arange(protocol.crop)
    inside = rows < ends[order][..., None]
    rows = jnp.minimum(rows, len(split.y) - 1).reshape(steps, -1)
    return _Order(rows, (weight[..., None] * inside).reshape(steps, -1))


def _sizes(split: Split, samples: jax.Array, weights: jax.Array) -> jax.Array:
    """Count the rows of samples, 0 for those that only fill up a batch."""
    rows = jnp.append(split.start[1:], len(split.y)) - split.start  # [k]
    return rows[samples] * weights.astype(jnp.int32)


def _rows_at(
    split: Split, samples: jax.Array, sizes: jax.Array, place: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return rows and weights at places [p] of a batch, where samples [b] stand row after row."""
    ends = jnp.cumsum(sizes)
    sample = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(samples) - 1)  # [p]
    rows = split.start[samples[sample]] + place - (ends - sizes)[sample]
    inside = place < ends[-1]
    return jnp.where(inside, rows, 0), inside.astype(jnp.float32)


def _epoch(
    protocol: Protocol,
    train: Split,
    keys: jax.Array,
    params: dict,
    moments: _Moments,
    rates: jax.Array,
    epoch: jax.Array,
) -> tuple[dict, _Moments]:
    """Train every model on all training samples once."""
    # Draw the order of the samples, by seed.
    epoch_keys = jax.vmap(lambda key: jax.random.fold_in(key, epoch))(keys)
    order = jax.vmap(lambda key: _order(key, train, protocol))(epoch_keys)  # [s, steps, b]
    steps = order.rows.shape[1]

    # The gradient of one model, and then of all: those of a seed see the same rows and dropout.
    def objective(params, x, y, weight, total, keep):
        row_losses = _losses(protocol.loss, apply(params, x, keep), y)
        return (weight * row_losses).sum() / total

    gradient = _over_models(
        jax.grad(objective),
        (0, 0, None, None, None, None),
        (0, 0, 0, 0, 0, 0),
        (0, None, None, None, None, None),
    )

    def of_rows(params, rows, weights, total, dropout_keys):
        """Return the gradient of rows [s, b] of a batch whose weights have the sum `total` [s]."""
        x = take(train.x, rows).astype(jnp.float32)  # [g, m, s, b, d]
        x = jnp.moveaxis(x, 2, 1)  # [g, s, m, b, d]
        keep = None
        if protocol.hidden:
            shape = (rows.shape[1], protocol.hidden)
            bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(dropout_keys)
            keep = jnp.where(bits < _KEEP, 2**16 / _KEEP, 0.0)  # [s, b, h]
        return gradient(params, x, train.y[rows], weights, total, keep)

    def of_samples(params, samples, weights, dropout_keys):
        """Return the gradient of samples [s, b] with all of their rows, piece by piece."""
        sizes = _sizes(train, samples, weights)
        total = sizes.sum(1)  # [s]
        length = _PIECE * protocol.batch

        def add(number, sums):
            place = number * length + jnp.arange(length)
            rows, inside = jax.vmap(_rows_at, (None, 0, 0, None))(train, samples, sizes, place)
            piece_keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, number)
            return jax.tree.map(jnp.add, sums, of_rows(params, rows, inside, total, piece_keys))

        pieces = -(-total.max() // length)
        return jax.lax.fori_loop(0, pieces, add, jax.tree.map(jnp.zeros_like, params))

    # An update moves the parameters as the next begins. If it moved them at once, XLA would compute
    # new parameters and new moments from the old moments, and copy all three before that: on a CPU
    # they then no longer fit in the cache.
    def step(carry, index):
        params, moments = carry
        count = (epoch * steps + index).astype(jnp.float32)
        params = _moved(params, moments, jnp.where(index > 0, rates, 0), jnp.maximum(count, 1))
        chosen, weights = order.rows[:, index], order.weights[:, index]  # [s, b]
        dropout_keys = jax.vmap(jax.random.fold_in, (0, None))(epoch_keys, index)
        if len(train.start) and not protocol.crop:
            grads = of_samples(params, chosen, weights, dropout_keys)
        else:
            grads = of_rows(params, chosen, weights, weights.sum(1), dropout_keys)
        return (params, _moments(moments, grads)), None

    params, moments = jax.lax.scan(step, (params, moments), jnp.arange(steps))[0]
    return _moved(params, moments, rates, ((epoch + 1) * steps).astype(jnp.float32)), moments


def item_outputs(params: dict, split: Split) -> jax.Array:
    """Return outputs of every model, averaged over each item's windows: [g, s, r, i, c]."""
    rows, items = len(split.y), len(split.labels)
    blocks = -(-rows // BLOCK)
    size = -(-rows // blocks)
    model = _over_models(apply, (0, 0), (0, None), (0, None))
    count = jax.ops.segment_sum(jnp.ones(rows), split.item, items)

    def block(total, index):
        # the last block begins early, and what it repeats has weight 0
        begin = jnp.minimum(index * size, rows - size)
        chosen = begin + jnp.arange(size)
        fresh = (chosen >= index * size).astype(jnp.float32)
        x = take(split.x, chosen).astype(jnp.float32)
        outputs = model(params, x) * fresh[:, None]  # [g, s, r, size, c]
        outputs = jnp.moveaxis(outputs, -2, 0)  # [size, g, s, r, c]
        return total.at[split.item[chosen]].add(outputs), None

    axes = params["b2"].shape  # [g, s, r, c]
    total, _ = jax.lax.scan(block, jnp.zeros((items, *axes)), jnp.arange(blocks))
    mean = total / jnp.maximum(count, 1).reshape(-1, 1, 1, 1, 1)
    return jnp.moveaxis(mean, 0, -2)


@functools.partial(jax.jit, static_argnames=("protocol", "monitor"))
def fit(
    protocol: Protocol,
    monitor: Monitor,
    train: Split,
    validation: Split,
    rates: jax.Array,
    seeds: jax.Array,
) -> Fitted:
    """Train a probe for each source, seed and learning rate.

    Args:
      monitor: from item labels and item outputs to a scalar, higher is better (`metrics`).
      rates: learning rates [r].
      seeds: [s].
    """
    sources, mixed, _, width = train.x.shape
    shape = (sources, len(seeds), len(rates))
    keys = jax.vmap(environment.key)(seeds)
    start = jax.vmap(lambda key: initial(key, width, mixed, protocol))(keys)  # [s, ...]
    params = jax.tree.map(
        lambda p: jnp.broadcast_to(p[None, :, None], (sources, len(p), len(rates), *p.shape[1:])),
        start,
    )
    zeros = jax.tree.map(jnp.zeros_like, params)

    # An epoch: train, score on validation, keep what is better than before, halve, or stop.
    score = jax.vmap(jax.vmap(jax.vmap(lambda outputs: monitor(validation.labels, outputs))))

    def select(where, new, old):
        def pick(x, y):
            return jnp.where(where.reshape(shape + (1,) * (x.ndim - 3)), x, y)

        return jax.tree.map(pick, new, old)

    def body(state):
        epoch, params, moments, rates, best, best_score, best_epoch, plateau, active = state
        params, moments = _epoch(protocol, train, keys, params, moments, rates, epoch)
        now = score(item_outputs(params, validation))  # [g, s, r]
        now = jnp.where(jnp.isnan(now), -jnp.inf, now)
        gain = active & (now > best_score)
        best = select(gain, params, best)
        rates, plateau = _halve(protocol, rates, plateau, now)
        best_score = jnp.where(gain, now, best_score)
        best_epoch = jnp.where(gain, epoch, best_epoch)
        active = active & (epoch - best_epoch < protocol.patience)
        return epoch + 1, params, moments, rates, best, best_score, best_epoch, plateau, active

    # Go on while any model is active.
    state = (
        jnp.int32(0),
        params,
        (zeros, zeros),
        jnp.broadcast_to(rates, shape),
        params,
        jnp.full(shape, -jnp.inf),
        jnp.zeros(shape, jnp.int32),
        (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)),
        jnp.ones(shape, bool),
    )
    state = jax.lax.while_loop(
        lambda state: (state[0] < protocol.epochs) & state[-1].any(), body, state
    )
    return Fitted(state[4], state[5], state[6], state[0])


def _halve(protocol: Protocol, rates: jax.Array, plateau: tuple, score: jax.Array) -> tuple:
    """Halve learning rates as PyTorch's ReduceLROnPlateau(mode="max", factor=0.5) does.

    Args:
      rates, score: of every model.
      plateau: the best score of every model, and the epochs since it.
    """
    best, waited = plateau
    better = score > best * (1 + _THRESHOLD)
    waited = jnp.where(better, 0, waited + 1)
    halve = waited > protocol.plateau
    rates = jnp.where(halve, rates * 0.5, rates)
    return rates, (jnp.where(better, score, best), jnp.where(halve, 0, waited))


predict = jax.jit(item_outputs)
