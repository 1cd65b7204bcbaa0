"""Full-size models that take optimizer steps on a CPU, where compiling a step takes longest."""

import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from musicssl import audio
from musicssl.model.encoder import Encoder
from musicssl.objectives import data2vec, hubert, masking
from musicssl.runtime.workdir import flat
from musicssl.training import optim, step
from tests.support import compiling

# What enters a step by its masks, its learning rate and what its teacher says alone.
GIVEN = (
    *("variant", "steps", "mask.", "data2vec.top_layers"),
    *("teacher.feature", "teacher.ceps", "teacher.encoder"),
)
TOPS = (8, 12)  # blocks whose outputs are data2vec's targets
TARGETS = data2vec.targets


def leaves(config: ml_collections.ConfigDict) -> dict[str, object]:
    return flat(json.loads(config.to_json()))


def short(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same on one clip of 16 frames: the longest span is 15."""
    config.batch_size, config.data.crop_frames, config.mask.equal_counts = 1, 16, 0
    return config


def some_state(
    config: ml_collections.ConfigDict, updates: int, other: step.TrainState | None = None
) -> step.TrainState:
    """A state after so many updates; the true initial values take longer to draw.

    other: of a model that differs in some shapes: what fits is taken over, its updates too.
    """
    shapes = step.state_shapes(config)
    most = max(x.size for x in jax.tree.leaves(shapes))
    noise = 0.03 * np.random.default_rng(0).standard_normal(most, np.float32)

    def leaf(path: tuple, x: jax.ShapeDtypeStruct, known: jax.Array | None = None) -> jax.Array:
        if known is not None and known.shape == x.shape:
            return known
        name = jax.tree_util.keystr(path)
        if x.dtype != jnp.float32:
            return jnp.full(x.shape, updates, x.dtype)
        if "optimizer" in name:
            return jnp.zeros(x.shape)
        values = noise[: x.size].reshape(x.shape)
        return jnp.array(1 + values if "scale" in name else values)

    return jax.tree_util.tree_map_with_path(leaf, shapes, *([other] if other else []))


def masked_clip(config: ml_collections.ConfigDict, seed: int) -> masking.Batch:
    """A batch of noise and the masks of the configuration."""
    rng = np.random.default_rng(seed)
    shape = config.batch_size, audio.crop_samples(config.data.crop_frames)
    clip = rng.integers(-9_000, 9_000, shape, dtype=np.int16)
    sections = ml_collections.FrozenConfigDict({"mask": config.mask, "data": config.data})
    return prepared(sections, step.streams(config.seed, seed)["mask"], clip)


prepared = jax.jit(step.prepare, static_argnums=0)


def targets_of(
    top: jax.Array, encoder: Encoder, config: ml_collections.ConfigDict, *given: object
) -> jax.Array:
    """data2vec's targets of as many blocks as `top` says; the teacher runs once for both."""
    found = []
    for blocks in TOPS:
        own = config.copy_and_resolve_references()
        own.data2vec.top_layers = blocks
        found.append(TARGETS(encoder, own, *given))
    return jnp.where(top == TOPS[0], *found)


class Programs:
    """The compiled step of a configuration, with arguments for all that is GIVEN.

    Variants which differ in nothing else share a program.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch
        self.compiled: dict[str, Callable] = {}

    def step(
        self,
        config: ml_collections.ConfigDict,
        state: step.TrainState,
        batch: masking.Batch,
        rate: jax.Array,
        said: jax.Array,
    ) -> tuple[step.TrainState, dict[str, float]]:
        """One step; the state is consumed.

        said: by the teacher: HuBERT's labels, or how many blocks data2vec averages.
        """
        own = {name: x for name, x in leaves(config).items() if not name.startswith(GIVEN)}
        key = json.dumps(own)

        def update(
            state: step.TrainState, batch: masking.Batch, rate: jax.Array, said: jax.Array
        ) -> tuple:
            with self.monkeypatch.context() as patch:
                patch.setattr(step, "prepare", lambda *_: batch)
                patch.setattr(optim, "learning_rate", lambda _: lambda _: rate)
                patch.setattr(data2vec, "targets", functools.partial(targets_of, said))
                patch.setattr(hubert, "labels", lambda *_: {config.teacher.feature: said})
                return step.update(config, state, {}, None)

        given = state, batch, rate, said
        if key not in self.compiled:
            lowered = jax.jit(update, donate_argnums=0).lower(*given)
            self.compiled[key] = lowered.compile(compiling.FUSED)
        state, metrics = self.compiled[key](*given)
        return state, {name: float(x) for name, x in metrics.items()}
