"""Adam and the learning-rate schedules of the recipes, as pure functions of the step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from musicssl.runtime import sharding

Schedule = Callable[[jax.Array], jax.Array]
_SUMMED = 16  # arrays whose squares a GPU sums in one kernel


def tri_stage(
    peak: float, steps: int, phases: tuple[float, float, float], scale: float
) -> Schedule:
    """Rise from scale * peak, hold, and decay exponentially back to it (fairseq tri_stage).

    The steps of the first two phases are rounded, and the decay takes the rest. This deviates from
    fairseq, which truncates all three and stays at the decay's end for the remaining steps, at most
    two. For the paper's 400,000 and 800,000 steps both give the same phases; for 400,001 the rates
    differ by 0.02 %.
    """
    warmup, hold = (round(steps * phase) for phase in phases[:2])
    decay = max(1, steps - warmup - hold)

    def rate(step: jax.Array) -> jax.Array:
        rising = scale + (1 - scale) * step / max(1, warmup)
        progress = jnp.clip((step - warmup - hold) / decay, 0, 1)
        return peak * jnp.where(step < warmup, rising, jnp.exp(math.log(scale) * progress))

    return rate


def polynomial(peak: float, steps: int, warmup: int) -> Schedule:
    """Rise linearly from 0, then fall linearly to 0 (fairseq polynomial_decay, power 1)."""

    def rate(step: jax.Array) -> jax.Array:
        falling = (steps - step) / max(1, steps - warmup)
        return peak * jnp.clip(jnp.minimum(step / max(1, warmup), falling), 0, 1)

    return rate


def cosine(peak: float, steps: int, warmup: int) -> Schedule:
    """Rise linearly from 0, then fall to 0 along half a cosine (fairseq cosine)."""

    def rate(step: jax.Array) -> jax.Array:
        remaining = jnp.clip((steps - step) / max(1, steps - warmup), 0, 1)
        falling = jnp.square(jnp.sin(0.5 * math.pi * remaining))  # (1 + cos) / 2, also near 0
        return peak * jnp.where(step < warmup, step / max(1, warmup), falling)

    return rate


def learning_rate(config: ml_collections.ConfigDict) -> Schedule:
    """Return the schedule of a configuration's `optim` section over its `steps`.

    Raises:
      ValueError: the schedule's name, phases or end cannot be used.
    """
    optim = config.optim
    if optim.schedule == "tri_stage":
        if len(optim.phases) != 3 or abs(sum(optim.phases) - 1) > 1e-6:
            raise ValueError(f"optim.phases is {optim.phases}: give three shares that sum to 1")
        if not 0 < optim.end_scale <= 1:
            raise ValueError(f"optim.end_scale is {optim.end_scale}: give a share of the peak")
        return tri_stage(optim.learning_rate, config.steps, optim.phases, optim.end_scale)
    if optim.schedule == "polynomial":
        return polynomial(optim.learning_rate, config.steps, optim.warmup_steps)
    if optim.schedule == "cosine":
        return cosine(optim.learning_rate, config.steps, optim.warmup_steps)
    raise ValueError(
        f"optim.schedule is {optim.schedule!r}: use 'tri_stage', 'polynomial' or 'cosine'"
    )


def adam(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Return Adam with decoupled weight decay on every parameter, as in all recipes.

    optax adds epsilon after the bias correction of the second moment, as PyTorch does, and as
    fairseq does if it finds Apex's FusedAdam (FusedAdamV2). This deviates from fairseq's own Adam
    and its FusedAdamV1, which add epsilon before, so that in update t it counts
    1 / sqrt(1 - beta2^t) times as much: 7.1 times in the first, 1.07 times in the 100th. Their
    updates are smaller: by 0.6 % in the first and 0.007 % in the 100th for a gradient of 1e-3, by
    5.7 % and 0.07 % for a gradient of 1e-4. Computed both ways from the moments of the music2vec
    demo (8 clips per batch, float32), the first update differs by 11 % of its norm, the 10th by 3 %
    and the 70th by 0.5 %. FusedAdamV1 also applies the bias correction to the weight decay, which
    then counts 1.4 times in the first update, 0.66 times in the 10th, and differs by less than 1 %
    from the 200th on. All of this is early in warm-up, where the learning rate is low.
    """
    optim = config.optim
    return optax.adamw(
        learning_rate(config),
        b1=optim.beta1,
        b2=optim.beta2,
        eps=optim.epsilon,
        weight_decay=optim.weight_decay,
    )


def norm(gradients: optax.Updates) -> jax.Array:
    """Return the norm of all gradients together.

    On a GPU, `optax.tree.norm` takes one or two kernels for each array. Here one kernel sums up to
    _SUMMED arrays of one shape.
    """
    if sharding.platform() != "gpu":
        return optax.tree.norm(gradients)
    by_shape: dict[tuple[int, ...], list[jax.Array]] = {}
    for x in jax.tree.leaves(gradients):
        by_shape.setdefault(x.shape, []).append(jnp.square(x))
    total = jnp.zeros(())
    for shape, squares in by_shape.items():
        for first in range(0, len(squares), _SUMMED):
            total += sum(_sums(squares[first : first + _SUMMED], len(shape)))
    return jnp.sqrt(total)


def _sums(arrays: list[jax.Array], axes: int) -> list[jax.Array]:
    """Sum each of several arrays of one shape over all its axes, in one kernel."""

    def add(one: tuple, other: tuple) -> tuple:
        return tuple(x + y for x, y in zip(one, other, strict=True))

    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
    return jax.lax.reduce(tuple(arrays), zeros, add, tuple(range(axes)))


def clip(gradients: optax.Updates, norm: jax.Array, limit: float) -> optax.Updates:
    """Scale gradients of the given global norm down to `limit`; 0 leaves them unchanged."""
    if not limit:
        return gradients
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, gradients)
