"""Validates during training, each time on the same crops with the same masks.

The crops, the masks and, for data2vec 2.0, the noise are functions of the seed alone, so that only
what was learnt in between changes the figures. There is no dropout, no parameter changes, and the
training step is the same program with and without validation.

The figures are the objective's own ("validation/...") and those of the representation
("health/..."): how far apart the frames of the stem's output and of every layer lie. If the stem
gives all frames the same output, its deviation or rank is near the minimum, and so is that of every
layer above it. If only the last layers are affected, the blocks or the head collapse, not the stem.

Axis letters: b batch, n samples, t frames, c channels, r frames of all clips.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musicssl import environment
from musicssl.audio import frame_count
from musicssl.model.encoder import make_encoder
from musicssl.objectives import targets
from musicssl.objectives.masking import Batch, draw
from musicssl.runtime import sharding
from musicssl.training import step as step_lib

_STREAM = 2**31 - 1  # in place of a step's number, so that no step has these keys
_NOT_VALIDATED = ("ema_decay",)  # an objective logs it for its schedule


class Spread(NamedTuple):
    """Frames of one layer: their number, mean [c], and sum of centred products [c, c]."""

    count: Any
    mean: Any
    products: Any


Look = Callable[[step_lib.TrainState, dict], dict[str, float]]


def read(batches: Iterable[jax.Array], config: ml_collections.ConfigDict) -> list[jax.Array]:
    """Return as many whole batches as it takes to hold validate.clips crops."""
    count = -(-config.validate.clips // config.batch_size)
    return list(itertools.islice(batches, count))


def check(config: ml_collections.ConfigDict) -> None:
    """Refuse unusable settings of validation.

    Raises:
      ValueError: the message names the leaf and its allowed values.
    """
    settings = config.validate
    if settings.every < 0:
        raise ValueError(f"validate.every is {settings.every}: use a number of steps or 0")
    if settings.clips < 1:
        raise ValueError(f"validate.clips is {settings.clips}: use 1 or more")
    known = scores(config)
    if settings.score not in known:
        raise ValueError(f"validate.score is {settings.score!r}: use one of {', '.join(known)}")


def scores(config: ml_collections.ConfigDict) -> list[str]:
    """Return the names that validate.score may have in a run of this configuration."""
    if config.method != "hubert":
        return ["loss"]
    names, predicted = ["loss", "cross_entropy", "masked_accuracy"], targets.of(config)
    if len(predicted) > 1:
        names.pop()
        names += [f"masked_accuracy/{target.name}" for target in predicted]
    return names


def make(config: ml_collections.ConfigDict, mesh: Mesh, batches: Sequence[jax.Array]) -> Look:
    """Return a function that validates: from (state, frozen) to scalars by name.

    Args:
      batches: those of the split, int16 [b, n] each, on the mesh, with b as in training.
    """
    config = _without_dropout(config)
    states = sharding.state_shardings(step_lib.state_shapes(config), mesh)
    clips, everywhere = NamedSharding(mesh, sharding.CLIPS), NamedSharding(mesh, P())
    total = float(sum(_masked(config, number, batch) for number, batch in enumerate(batches)))

    @functools.partial(
        jax.jit,
        in_shardings=(states.params, states.teacher, None, clips, None),
        out_shardings=everywhere,
    )
    def look_at(params: dict, teacher: dict, frozen: dict, audio: jax.Array, number: jax.Array):
        keys = _keys(config, number)
        batch = step_lib.prepare(config, keys["mask"], audio)
        batch = batch._replace(
            masked=jnp.float32(total), clips=batch.clips * len(batches)
        )  # so that the results of the batches add up
        return _of_batch(config, sharding.whole(params), teacher | frozen, batch, keys)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def health(sums: dict, updates: jax.Array) -> dict:
        return step_lib.objective(config).health(config, sums, jnp.float32(total), updates)

    def look(state: step_lib.TrainState, frozen: dict) -> dict[str, float]:
        loss, sums = 0.0, None
        spreads: dict[str, Spread] = {}
        for number, batch in enumerate(batches):
            with jax.set_mesh(mesh):
                given = look_at(state.params, state.teacher, frozen, batch, jnp.int32(number))
            share, own, layers = jax.device_get(given)
            loss += float(share)
            sums = own if sums is None else jax.tree.map(np.add, sums, own)
            for name, spread in layers.items():
                spreads[name] = _joined(spreads.get(name), spread)
        logged = jax.device_get(health(sums, state.updates))
        scalars = {"validation/loss": loss}
        for name, value in logged.items():
            if name not in _NOT_VALIDATED:
                scalars[f"validation/{name}"] = float(value)
        for name, spread in spreads.items():
            deviation, rank = measures(spread)
            scalars |= {f"health/{name}_std": deviation, f"health/{name}_rank": rank}
        return scalars

    return look


def _without_dropout(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a configuration without dropout."""
    quiet = config.copy_and_resolve_references()
    for name in ("dropout", "attention_dropout", "activation_dropout", "input_dropout"):
        quiet.encoder[name] = 0.0
    quiet.encoder.layerdrop = 0.0
    if "decoder" in quiet:
        quiet.decoder.dropout = 0.0
    return quiet


def _keys(config: ml_collections.ConfigDict, number: jax.Array | int) -> dict[str, jax.Array]:
    """Return the random keys of a validation batch, which no training step uses."""
    key = jax.random.fold_in(jax.random.fold_in(environment.key(config.seed), _STREAM), number)
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(step_lib.STREAMS)}


def _masked(config: ml_collections.ConfigDict, number: int, audio: jax.Array) -> int:
    """Count the masked frames of a validation batch."""
    frames = frame_count(audio.shape[1])

    def count(key: jax.Array) -> jax.Array:
        return draw(key, len(audio), frames, **config.mask).mask.sum()

    return int(jax.jit(count)(_keys(config, number)["mask"]))


def _of_batch(
    config: ml_collections.ConfigDict, params: dict, teacher: dict, batch: Batch, keys: dict
) -> tuple[jax.Array, dict, dict[str, Spread]]:
    """Return a batch's share of the loss, sums for `health`, and the spread of every layer."""
    method, encoder = step_lib.objective(config), make_encoder(config)
    teacher = sharding.whole(teacher)
    rngs = {name: keys[name] for name in ("dropout", "layerdrop")}
    loss, sums = method.loss(encoder, config, params, teacher, batch, rngs)

    # Every layer of the unmasked clips.
    student = {"params": params["encoder"]}
    apply: Callable[..., Any] = encoder.apply
    features = apply(student, batch.encoder_input, method="stem")
    projected = apply(student, features, method="project")
    hidden = apply(student, projected, method="contextualize").hidden
    spreads = {"stem": _spread(features)}
    spreads |= {f"layer_{number}": _spread(x) for number, x in enumerate(hidden)}
    return loss, sums, spreads


def _spread(x: jax.Array) -> Spread:
    """Return the spread of the frames of [b, t, c], in float32."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)  # [r, c]
    mean = rows.mean(0)
    centred = rows - mean
    return Spread(jnp.float32(len(rows)), mean, jnp.matmul(centred.T, centred, precision="highest"))


def _joined(one: Spread | None, other: Spread) -> Spread:
    """Return the spread of two sets of frames together, in float64 (Chan et al., 1979)."""
    count, mean, products = (np.asarray(x, np.float64) for x in other)
    if one is None:
        return Spread(count, mean, products)
    both, apart = one.count + count, mean - one.mean
    together = np.outer(apart, apart) * one.count * count / both
    return Spread(both, one.mean + apart * count / both, one.products + products + together)


def measures(spread: Spread) -> tuple[float, float]:
    """Return the deviation of frames, averaged over channels, and their effective rank.

    The effective rank is the exponential of the entropy of the singular values of the centred
    frames (Roy and Vetterli, EUSIPCO 2007): 1 if all frames lie on a line, and the number of
    channels if they fill every direction equally. It is 0 if all frames are the same.
    """
    covariance = np.asarray(spread.products, np.float64) / spread.count
    deviation = float(np.sqrt(np.maximum(np.diag(covariance), 0)).mean())
    if not np.isfinite(covariance).all():
        return deviation, float("nan")
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0))
    if not singular.sum() > 0:
        return deviation, 0.0
    share = singular / singular.sum()
    share = share[share > 0]
    return deviation, float(np.exp(-(share * np.log(share)).sum()))
