"""The mesh, the size rule, and what a compiled step sends between eight devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from musicssl.model.grouped_conv import grouped_conv
from musicssl.runtime import sharding
from musicssl.training import step
from tests.support import tiny

STEMS = {
    "data2vec": {"encoder.pos_conv_depth": 5, "encoder.stem_norm": "layer"},
    "hubert": {
        "encoder.pos_conv_depth": 0,
        "encoder.pos_conv_kernel": 128,
        "encoder.stem_norm": "group",
    },
}


def test_parameter_spec_shards_the_largest_axis_that_divides():
    assert sharding.parameter_spec((768, 3072), 4) == P(None, "fsdp")
    assert sharding.parameter_spec((3072, 768), 4) == P("fsdp")
    assert sharding.parameter_spec((3, 512, 512), 8) == P(None, "fsdp")
    assert sharding.parameter_spec((509, 768), 8) == P(None, "fsdp")
    assert sharding.parameter_spec((1031, 768), 8) == P(None, "fsdp")  # 1031 is prime


def test_small_and_indivisible_arrays_are_replicated():
    assert sharding.parameter_spec((768, 3072), 1) == P()
    assert sharding.parameter_spec((768,), 4) == P()
    assert sharding.parameter_spec((), 4) == P()
    assert sharding.parameter_spec((509, 509), 4) == P()
    edge = sharding.SMALLEST_SHARDED
    assert sharding.parameter_spec((edge,), 2) == P("fsdp")
    assert sharding.parameter_spec((edge - 2,), 2) == P()


def test_one_rule_for_parameters_teacher_and_moments():
    """music2vec over four devices: only vectors and the like are replicated."""
    mesh = AbstractMesh((2, 4), ("data", "fsdp"), (AxisType.Auto,) * 2)
    config = tiny.config({"encoder.width": 768, "encoder.ffn_width": 3072})
    shapes = step.state_shapes(config)
    specs = jax.tree.map(lambda x: x.spec, sharding.state_shardings(shapes, mesh))
    kernel = P(None, "fsdp")
    adam = specs.optimizer[0]
    for tree in (specs.params, specs.teacher, {"encoder": adam.mu["encoder"]}, adam.nu):
        dense = tree["encoder"]["layer_0"]["feed_forward"]["intermediate_dense"]
        assert dense == {"kernel": kernel, "bias": P()}
    replicated = [
        x.size
        for x, spec in zip(jax.tree.leaves(shapes), jax.tree.leaves(specs), strict=True)
        if spec == P()
    ]
    assert max(replicated) < sharding.SMALLEST_SHARDED
    assert sum(replicated) < 0.03 * sum(x.size for x in jax.tree.leaves(shapes))


def test_make_mesh_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 2, but there are 1 devices"):
        sharding.make_mesh(2, jax.devices()[:1])
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 0"):
        sharding.make_mesh(0)


def meshes() -> dict:
    """Shapes and axis types of meshes of eight devices."""
    made = {fsdp: sharding.make_mesh(fsdp) for fsdp in (1, 2, 8)}
    return {
        "shapes": [dict(mesh.shape) for mesh in made.values()],
        "types": sorted({str(kind) for mesh in made.values() for kind in mesh.axis_types}),
        "by_clip": by_clip_differences(made[2]),
    }


def by_clip_differences(mesh: jax.sharding.Mesh) -> list[float]:
    """How far value and gradients over eight devices are from those over one, largest first."""
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(16, 6, 4)).astype(np.float32)
    shared = rng.normal(size=(4, 4)).astype(np.float32)

    def loss(shared: jax.Array, clips: jax.Array) -> jax.Array:
        def inner(clips, shared):
            return jnp.tanh(clips @ shared)

        return jnp.square(sharding.by_clip(inner, clips, shared)).sum()

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    expected = both(shared, clips)
    with jax.set_mesh(mesh):
        measured = both(shared, jax.device_put(clips, NamedSharding(mesh, sharding.CLIPS)))
    return [
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(measured), jax.tree.leaves(expected), strict=True)
    ]


def test_meshes_of_eight_devices():
    seen = tiny.on_eight_devices(meshes)
    assert seen["shapes"] == [
        {"data": 8, "fsdp": 1},
        {"data": 4, "fsdp": 2},
        {"data": 1, "fsdp": 8},
    ]
    assert seen["types"] == ["AxisType.Auto"]
    assert len(seen["by_clip"]) == 3 and max(seen["by_clip"]) < 1e-4


def moved_by_a_step(stem: str) -> dict:
    """What a step moves on eight devices as (4, 2)."""
    sharding.SMALLEST_SHARDED = 512  # so that a tiny model's kernels are sharded too
    config = tiny.config(STEMS[stem])
    mesh = sharding.make_mesh(2)
    with jax.set_mesh(mesh):
        shapes = step.state_shapes(config)
        lowered = step.make_step(config, mesh).lower(shapes, {}, tiny.clips(config))
    return {
        "parameters": [x.shape for x in jax.tree.leaves(shapes)],
        "moved": tiny.moved(lowered.compile().as_text()),
    }


def moved_by_grouped_convs() -> dict:
    """What a grouped convolution of a batch over eight devices moves, left to XLA and guarded."""
    clips = jax.ShapeDtypeStruct((16, 37, 48), jnp.float32)
    weight = jax.ShapeDtypeStruct((19, 12, 48), jnp.float32)
    seen = {"parameters": [weight.shape]}

    def left_to_xla(function: Callable, *arrays: jax.Array) -> jax.Array:
        return function(*arrays)

    for name, apply in (("left to XLA", left_to_xla), ("guarded", sharding.by_clip)):

        def convolve(clips, weight, apply=apply):
            return apply(functools.partial(grouped_conv, groups=4), clips, weight)

        mesh = sharding.make_mesh(1)
        placed = NamedSharding(mesh, sharding.CLIPS)
        with jax.set_mesh(mesh):
            lowered = jax.jit(convolve, in_shardings=(placed, None)).lower(clips, weight)
        seen[name] = tiny.moved(lowered.compile().as_text())
    return seen


def activations(shapes: list[list[int]], parameters: list[list[int]]) -> list[list[int]]:
    """Those that are neither as large as a mask of the batch nor of the shape of a parameter."""
    config = tiny.config()
    mask = config.batch_size * config.data.crop_frames
    known = {tuple(sorted(shape)) for shape in parameters}
    return [x for x in shapes if np.prod(x) > mask and tuple(sorted(x)) not in known]


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_no_activation_leaves_its_device(stem):
    seen = tiny.on_eight_devices(moved_by_a_step, stem)
    assert len(seen["moved"]) > 20  # parameters, gathered for use
    assert activations(seen["moved"], seen["parameters"]) == []


def test_xla_would_gather_the_batch_of_a_grouped_convolution():
    """openxla/xla#47945, the reason for by_clip; and the check above would see it."""
    seen = tiny.on_eight_devices(moved_by_grouped_convs)
    assert activations(seen["left to XLA"], seen["parameters"])
    assert not seen["guarded"]
