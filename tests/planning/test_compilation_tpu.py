"""Plans for TPUs that are not there; collected where libtpu is installed (see conftest.py)."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from musicssl.planning import compilation, costs, topology
from musicssl.planning.compilation import BatchAttempt
from musicssl.runtime import sharding
from tests.support import tiny

GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def prepared():
    topology.prepare(["v5e:4x4"])


@pytest.mark.parametrize(
    "spec, devices, hosts, slices, gib",
    [
        ("v5e:16x16", 256, 64, 1, 15.75),
        ("v5e:4x4@2", 32, 8, 2, 15.75),
        ("v4:8x8x8", 512, 128, 1, 30.75),
        ("v5p:8x8x8", 512, 128, 1, 95.74),
        ("v6e:4x4", 16, 4, 1, 31.25),
    ],
)
def test_topologies(spec, devices, hosts, slices, gib):
    place = topology.topology(spec)
    assert len(place.devices) == devices and place.slices == slices
    assert place.per_host == devices // hosts
    if slices == 1:
        assert topology.memory_limit(place) == int(gib * GIB)
    for fsdp in (1, 8, 16):
        mesh = sharding.make_mesh(fsdp, place.devices)
        assert mesh.shape == {"data": devices // fsdp, "fsdp": fsdp}
        for row in mesh.devices:
            assert len({getattr(x, "slice_index", 0) for x in row}) == 1
    with pytest.raises(ValueError, match="divisor"):
        sharding.make_mesh(devices // slices * 2, place.devices)


def test_a_shape_that_does_not_exist():
    with pytest.raises(ValueError, match=r"--topology=v5e:3x5: .*not divisible"):
        topology.topology("v5e:3x5")


def test_the_verdict_is_right_on_both_sides_of_the_boundary():
    """A product whose operand and result of 3 x 2**26 bytes a clip are all that it holds."""
    place = topology.topology("v5e:4x4")
    here = SingleDeviceSharding(place.devices[0])

    def attempt(clips: int) -> BatchAttempt:
        x = jax.ShapeDtypeStruct((clips, 2**12, 2**12), jnp.float32, sharding=here)
        lowered = jax.jit(lambda x: (x, x + 1, x * 2), out_shardings=here).lower(x)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return BatchAttempt(clips, topology.refused_bytes(str(error))[0], None)
        return BatchAttempt(clips, costs.wanted_bytes(compiled.memory_analysis()), compiled)

    limit = topology.memory_limit(place)
    tried = compilation.largest_batch(attempt, 1, limit, 0)
    accepted = max(x.clips for x in tried if x.compiled)
    assert min(x.clips for x in tried if not x.compiled) == accepted + 1
    by_hand = limit / 2**26
    assert by_hand / 5 < accepted < by_hand
    assert attempt(accepted).compiled and not attempt(accepted + 1).compiled


def test_a_step_on_sixteen_chips():
    """Cycles for every part that computes, nothing but parameters and gradients on the links."""
    leaves = {"encoder.width": 128, "encoder.heads": 2, "encoder.ffn_width": 512}
    config = tiny.config(leaves | {"mesh.fsdp": 2, "encoder.pos_conv_depth": 1})
    plan = compilation.plan(config, topology.topology("v5e:4x4"), "1")
    parts = {"optimizer", "EMA", "teacher", "attention", "ffn", "positional", "head", "stem 0"}
    assert parts <= plan["cycles"].keys()
    assert sum(plan["cycles"].values()) > 1e5
    assert plan["memory"]["fits"] and plan["memory"]["limit"] == int(15.75 * GIB)
    assert {x["kind"] for x in plan["collectives"]} >= {"all-gather", "all-reduce"}
    assert not any(x["activations"] for x in plan["collectives"])
    assert plan["seconds"]["estimate"] > plan["seconds"]["roofline"] > 0
