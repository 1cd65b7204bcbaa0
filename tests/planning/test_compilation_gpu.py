"""Plans for GPUs that are not there; collected where jax[cuda13] is installed (see conftest.py)."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from musicssl.model import attention_gpu, first_layer_gpu, grouped_conv, residual_norm_gpu
from musicssl.planning import compilation, costs, hlo, topology
from musicssl.runtime import sharding
from tests.support import tiny

B, T, H, D = 2, 64, 2, 64


@pytest.fixture(scope="module", autouse=True)
def prepared():
    topology.prepare(["h100:1"])


@pytest.mark.parametrize(
    "spec, devices, each, gib",
    [
        ("h100:1", 1, 1, 59.33),
        ("h100:2x8", 16, 8, 59.33),
        ("h200:8", 8, 8, 105.75),
        ("a100:8", 8, 8, 59.44),
        ("b200:8", 8, 8, 133.77),
    ],
)
def test_topologies(spec, devices, each, gib):
    place = topology.topology(spec)
    assert (len(place.devices), place.per_host, place.slices) == (devices, each, 1)
    assert topology.memory_limit(place) / 2**30 == pytest.approx(gib, abs=0.01)
    assert {x.device_kind for x in place.devices} == {place.chip.name}
    mesh = sharding.make_mesh(each, place.devices)
    assert mesh.shape == {"data": devices // each, "fsdp": each}


def launches(function, *shapes: jax.ShapeDtypeStruct) -> list[hlo.Launch]:
    """The kernels of a function on one H100."""
    (device,) = topology.topology("h100:1").devices
    here = SingleDeviceSharding(device)
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in shapes]
    with jax.set_mesh(sharding.make_mesh(1, [device])):
        lowered = jax.jit(function, out_shardings=here).lower(*placed)
        program = lowered.compile({"xla_gpu_enable_triton_gemm": False})
    return hlo.launches(program.as_text())


def test_a_product_and_a_convolution_with_their_gradients():
    x = jax.ShapeDtypeStruct((4, 128, 64), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((64, 96), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 96, 32), jnp.bfloat16)

    def work(x: jax.Array, w: jax.Array, kernel: jax.Array) -> jax.Array:
        convolved = jax.lax.conv_general_dilated(
            jnp.sin(x @ w), kernel, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.square(convolved.astype(jnp.float32)).sum()

    seen = launches(jax.grad(work, argnums=(0, 1, 2)), x, w, kernel)
    product, convolution = 2 * 4 * 128 * 64 * 96, 2 * 4 * 63 * 32 * 3 * 96
    assert sorted(x.operations for x in seen if x.operations) == [convolution] * 3 + [product] * 3
    first = next(x for x in seen if x.operations == product)
    assert first.bytes == 2 * (4 * 128 * 64 + 64 * 96 + 4 * 128 * 96)


def test_kernels_of_our_own_move_their_arrays_and_do_what_they_state():
    qkv = jax.ShapeDtypeStruct((B, T, 3, H, D), jnp.bfloat16)
    salts = jax.ShapeDtypeStruct((B, H, 2), jnp.uint32)

    def attend(qkv: jax.Array, salts: jax.Array) -> jax.Array:
        return attention_gpu.attend(qkv, salts, 0.1).astype(jnp.float32).sum()

    seen = launches(jax.grad(attend), qkv, salts)
    product, row = 2 * B * H * T * T * D, 4 * B * H * T
    kernels = [x for x in seen if x.operations]
    assert [x.operations for x in kernels] == [2 * product, 3 * product, 4 * product]
    array, bits = 2 * B * T * H * D, 4 * B * H * 2
    moved = [4 * array + row, 6 * array + 2 * row, 6 * array + 2 * row]
    assert [x.bytes for x in kernels] == [n + bits for n in moved]

    t, c = 256, 128
    windows = jax.ShapeDtypeStruct((B, t, first_layer_gpu.TAPS), jnp.bfloat16)
    taps = jax.ShapeDtypeStruct((B, first_layer_gpu.TAPS, c), jnp.bfloat16)
    rows, per_clip = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((B, t), (B, c)))

    def first(windows: jax.Array, taps: jax.Array, *norms: jax.Array) -> jax.Array:
        return first_layer_gpu.layer(windows, taps, *norms, False).astype(jnp.float32).sum()

    seen = launches(jax.grad(first, argnums=1), windows, taps, rows, per_clip, per_clip)
    product = 2 * B * t * first_layer_gpu.TAPS * c
    assert sum(x.operations for x in seen) in (2 * product, 3 * product)  # forward may fall away

    x, by = (
        jax.ShapeDtypeStruct((B, t, c), jnp.bfloat16),
        jax.ShapeDtypeStruct((B, 2, c), jnp.float32),
    )

    def normed(x: jax.Array, y: jax.Array, affine: jax.Array, salts: jax.Array):
        out = residual_norm_gpu.normed_sum(x, y, affine, salts, 0.1)
        return out.astype(jnp.float32).sum()

    words = jax.ShapeDtypeStruct((B, 2), jnp.uint32)
    seen = launches(jax.grad(normed, argnums=(0, 1)), x, x, by, words)
    assert all(x.operations == 0 for x in seen) and max(x.bytes for x in seen) >= 4 * 2 * B * t * c


def test_a_step_on_two_machines():
    """Kernels for every part that computes; gradients and parameters alone between the GPUs."""
    leaves = {"encoder.width": 128, "encoder.heads": 2, "encoder.ffn_width": 512}
    leaves |= {"mesh.fsdp": 2, "encoder.pos_conv_depth": 1, "precision": "bfloat16"}
    plan = compilation.plan(tiny.config(leaves), topology.topology("h100:2x2"), "2")
    parts = {"optimizer", "EMA", "teacher", "attention", "ffn", "positional", "head", "stem 0"}
    assert parts <= plan["work"].keys()
    assert plan["uncounted_kernels"] == 0 and plan["cycles"] == {}
    # Of the model's products nothing is left out, and next to nothing is done twice. Windows of
    # folded frames reach over more taps than the kernel has; of those the weights are zero.
    taps, flops = tiny.config(leaves).encoder.pos_conv_kernel, plan["flops"].copy()
    flops["positional"] *= grouped_conv._taps(taps) * grouped_conv._FOLD / taps
    done = sum(x["operations"] for x in plan["work"].values())
    assert 0.97 < done / sum(flops.values()) < 1.25
    kinds = {x["kind"] for x in plan["collectives"]}
    assert "all-gather" in kinds and kinds <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert not any(x["activations"] for x in plan["collectives"])
    seconds = plan["seconds"]
    assert seconds["estimate"] == pytest.approx(
        seconds["least"] + seconds["launch"] + seconds["exchange"]
    )
    memory = plan["memory"]
    assert memory["fits"] and memory["limit"] < memory["device"] and memory["temp"] > 1e5


def test_state_in_shards_that_do_not_divide_the_machine():
    config = tiny.config({"mesh.fsdp": 3})
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 3, but there are 8 devices"):
        compilation.plan(config, topology.topology("h100:8"), "1")
    with pytest.raises(ValueError, match="batch_size is 16, not a multiple of 3 devices"):
        compilation.plan(tiny.config(), topology.topology("h100:3"), "")


def test_wanted_bytes_are_those_of_the_arrays():
    (device,) = topology.topology("h100:1").devices
    here = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=here)
    program = jax.jit(lambda x: x + 1, out_shardings=here).lower(x).compile()
    assert costs.wanted_bytes(program.memory_analysis()) == 2 * 2**22
