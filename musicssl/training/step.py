"""The training step: one jitted, donated function from (state, audio) to (state, metrics).

Randomness is a function of (seed, step) alone: `fold_in(seed, step)`, then one stream per use. No
key is stored, and masks are drawn for the global batch, so neither the number of devices nor a
restart changes them.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from musicssl import audio, environment
from musicssl.model.encoder import make_encoder
from musicssl.objectives import data2vec, data2vec2, hubert
from musicssl.objectives.masking import Batch, draw
from musicssl.objectives.objective import Objective
from musicssl.runtime import sharding
from musicssl.training import optim

OBJECTIVES: dict[str, Objective] = {
    "data2vec": data2vec,
    "data2vec2": data2vec2,
    "hubert": hubert,
}
STREAMS = ("init", "mask", "dropout", "layerdrop")


class TrainState(NamedTuple):
    """All that a step changes. `step` counts batches, `updates` those that changed parameters."""

    step: jax.Array
    updates: jax.Array
    params: dict
    teacher: dict
    optimizer: optax.OptState


def objective(config: ml_collections.ConfigDict) -> Objective:
    """Return the objective that config.method names.

    Raises:
      ValueError: there is no objective of that name.
    """
    if config.method not in OBJECTIVES:
        raise ValueError(f"method is {config.method!r}: use one of {sorted(OBJECTIVES)}")
    return OBJECTIVES[config.method]


def streams(seed: int, step: jax.Array | int) -> dict[str, jax.Array]:
    """Return one key for each use of randomness in a step."""
    key = jax.random.fold_in(environment.key(seed), step)
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(STREAMS)}


def init_state(config: ml_collections.ConfigDict) -> TrainState:
    """Return the state before the first step; call it under jit, since it shards nothing."""
    samples = audio.crop_samples(1)
    keys = streams(config.seed, 0)
    params, teacher = objective(config).init(keys["init"], make_encoder(config), config, samples)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, zero, params, teacher, optim.adam(config).init(params))


def state_shapes(config: ml_collections.ConfigDict) -> TrainState:
    """Return the shapes of `init_state`'s arrays, traced once for each configuration."""
    return _state_shapes(config.to_json())


@functools.cache
def _state_shapes(config_json: str) -> TrainState:
    config = ml_collections.ConfigDict(json.loads(config_json))
    return jax.eval_shape(lambda: init_state(config))


def sharded_init(config: ml_collections.ConfigDict, mesh: Mesh) -> TrainState:
    """Return the initial state, created in its shards."""
    with jax.set_mesh(mesh):
        shardings = sharding.state_shardings(state_shapes(config), mesh)
        return jax.jit(lambda: init_state(config), out_shardings=shardings)()


def with_encoder_weights(
    config: ml_collections.ConfigDict, mesh: Mesh, state: TrainState, weights: dict
) -> TrainState:
    """Replace the encoder's weights in a new state, and build its teacher from them.

    Args:
      weights: NumPy arrays in the tree of state.params["encoder"].
    """
    shardings = sharding.state_shardings(state, mesh)

    def place(x: np.ndarray, where: NamedSharding) -> jax.Array:  # a copy: the state is donated
        return jax.make_array_from_callback(x.shape, where, lambda index: np.array(x[index]))

    teacher = objective(config).first_teacher({"encoder": weights})
    placed = jax.tree.map(place, weights, shardings.params["encoder"])
    return state._replace(
        params=state.params | {"encoder": placed},
        teacher=jax.tree.map(place, teacher, shardings.teacher),
    )


def make_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Return the jitted step: (state, frozen, audio int16 [b, n]) -> (state, metrics).

    `frozen` is the part of the teacher that training does not change ({} for data2vec). The state
    is donated. Metrics are float32 scalars on the device.
    """
    states = sharding.state_shardings(state_shapes(config), mesh)
    clips = NamedSharding(mesh, sharding.CLIPS)
    everywhere = NamedSharding(mesh, P())

    # The compiled program contains these arguments' names, and planning/costs.py looks for them.
    def step(state: TrainState, frozen: dict, audio: jax.Array) -> tuple[TrainState, dict]:
        return update(config, state, frozen, audio)

    return jax.jit(
        step,
        in_shardings=(states, None, clips),
        out_shardings=(states, everywhere),
        donate_argnums=0,
    )


def update(
    config: ml_collections.ConfigDict, state: TrainState, frozen: dict, clips: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Make one optimizer update; if it is not finite, only the step changes.

    Args:
      frozen: the part of the teacher that training does not change.
      clips: the batch's audio, int16 [b, n].
    """
    method = objective(config)
    keys = streams(config.seed, state.step + 1)

    # The loss and its gradients.
    with jax.named_scope("input"):
        batch = prepare(config, keys["mask"], clips)
    teacher = state.teacher | frozen
    loss, sums, gradients = accumulate(config, state.params, teacher, batch, keys)
    norm = optim.norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def where_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda yes, no: jnp.where(finite, yes, no), new, old)

    # Update the student, then the teacher from the student.
    with jax.named_scope("optimizer"):
        gradients = optim.clip(gradients, norm, config.optim.clip_norm)
        changes, optimizer = optim.adam(config).update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, changes)
        updated = state.updates + 1, params, optimizer
        kept = where_finite(updated, (state.updates, state.params, state.optimizer))
    with jax.named_scope("ema"):
        new_teacher = method.after_update(config, params, state.teacher, state.updates + 1)
        new_teacher = where_finite(new_teacher, state.teacher)

    # The new state and this step's metrics.
    updates, params, optimizer = kept
    new = TrainState(state.step + 1, updates, params, new_teacher, optimizer)
    metrics = {
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": optim.learning_rate(config)(state.updates),
        "masked_fraction": batch.masked / batch.mask.mask.size,
        "nonfinite": 1.0 - finite,
        **method.health(config, sums, batch.masked, state.updates),
    }
    return new, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}


def prepare(config: ml_collections.ConfigDict, key: jax.Array, clips: jax.Array) -> Batch:
    """Turn int16 audio [b, n] into the encoder's input, and draw its masks."""
    waveform = audio.to_float(clips)
    count, samples = clips.shape
    mask = draw(key, count, audio.frame_count(samples), **config.mask)
    encoder_input = audio.normalize(waveform) if config.data.normalize else waveform
    masked = mask.mask.sum().astype(jnp.float32)
    return Batch(encoder_input, waveform, mask, masked, count)


def accumulate(
    config: ml_collections.ConfigDict, params: dict, teacher: dict, batch: Batch, keys: dict
) -> tuple[jax.Array, dict, dict]:
    """Compute loss, health sums and gradients of the global batch in config.accumulate parts.

    Every part's loss is divided by the number of masked frames of the whole batch, so the sum is
    what the whole batch would give at once. Each device keeps its own clips: part i takes rows i,
    i + parts, ...
    """
    method, encoder = objective(config), make_encoder(config)
    parts = config.accumulate
    teacher = sharding.whole(teacher)
    params, scatter = jax.vjp(sharding.whole, params)

    def loss(params: dict, part: Batch, rngs: dict) -> tuple[jax.Array, dict]:
        return method.loss(encoder, config, params, teacher, part, rngs)

    gradient = jax.value_and_grad(loss, has_aux=True)
    rngs = {name: keys[name] for name in ("dropout", "layerdrop")}
    if parts == 1:
        (value, sums), gradients = gradient(params, batch, rngs)
        return value, sums, *scatter(gradients)

    # The rows of each part, one part after another along a new first axis.
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    rows = jax.tree.map(split, (batch.encoder_input, batch.waveform, batch.mask))

    def of_part(i: jax.Array, part_rows: tuple) -> tuple[jax.Array, dict, dict]:
        encoder_input, waveform, mask = part_rows
        part = batch._replace(encoder_input=encoder_input, waveform=waveform, mask=mask)
        dropout = jax.random.fold_in(keys["dropout"], i)
        (value, sums), gradients = gradient(params, part, rngs | {"dropout": dropout})
        return value, sums, gradients

    def add(total: tuple, numbered_rows: tuple) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, of_part(*numbered_rows)), None

    # A scan that adds up the parts' results, from zeros of their shapes.
    first_rows = jax.tree.map(lambda x: x[0], rows)
    shapes = jax.eval_shape(of_part, jnp.int32(0), first_rows)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (value, sums, gradients), _ = jax.lax.scan(add, zeros, (jnp.arange(parts), rows))
    return value, sums, *scatter(gradients)
