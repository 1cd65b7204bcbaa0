"""Reading compiled programs: against programs whose contents are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from musicssl.planning import hlo
from musicssl.runtime import sharding
from tests.support import tiny

# Lines as libtpu 0.0.42 prints them, shortened: a loop of four, a fusion that holds a gather, a
# Pallas kernel, and a send to another slice.
TPU = """\
HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0.1: bf16[64,256]) -> bf16[256,256] {
  %param_0.1 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.4 = bf16[256,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.1), channel_id=8
}

%body.1 (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %multiply.9 = f32[8]{0:T(128)} multiply(%p.1, %p.1), \
metadata={op_name="jit(step)/layer_0/attention/dot"}, backend_config={"estimated_cycles":"100"}
}

%cond.2 (p.2: (s32[], f32[8])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(3)
  ROOT %lt.7 = pred[]{:T(512)} compare(%p.2, %constant.7), direction=LT
}

%body.2 (p.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.8 = f32[8]{0:T(128)} add(%p.3, %p.3), metadata={op_name="jit(step)/layer_1/add"}, \
backend_config={"estimated_cycles":"10"}
}

ENTRY %main.1 (a.1: f32[8]) -> (f32[8]) {
  %a.1 = f32[8]{0} parameter(0), metadata={op_name="a"}
  %fusion.1 = bf16[256,256]{1,0:T(8,128)(2,1)} fusion(%a.1), kind=kOutput, \
calls=%fused_computation.1, metadata={op_name="jit(step)/feed_forward/dot"}, \
backend_config={"estimated_cycles":"50"}
  %fusion.2 = bf16[256,256]{1,0} fusion(%a.1), calls=%fused_computation.1
  %while.1 = (s32[], f32[8]{0}) while(%tuple.1), condition=%cond.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"4"}}
  %while.2 = (s32[], f32[8]{0}) while(%tuple.1), condition=%cond.2, body=%body.2
  %custom-call.1 = bf16[8]{0} custom-call(%a.1), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/layer_0/attention/kernel"}, \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"640","transcendentals":"9"}}}
  %custom-call.3 = bf16[8]{0} custom-call(%a.1), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/head/kernel"}
  %custom-call.2 = s32[8]{0} custom-call(%a.1), custom_call_target="GatherScatterIndicesBitpacked"
  ROOT %all-reduce.1 = (f32[]{:T(128)}, f32[512]{0:T(256)S(1)}) all-reduce(%a.1, %a.1), \
channel_id=9, metadata={op_name="jit(step)/grads"}
}
"""


def test_cycles_by_part_with_loops_as_often_as_they_run():
    by_part = hlo.cycles(TPU, lambda scope: "ffn" if "feed_forward" in scope else "rest")
    assert by_part == {"rest": 430, "ffn": 50}


def test_kernels_and_the_operations_that_they_name():
    assert hlo.kernels(TPU) == [
        ("jit(step)/layer_0/attention/kernel", 640),
        ("jit(step)/head/kernel", None),
    ]


def test_collectives_once_each_also_inside_fusions():
    gather, reduce = hlo.collectives(TPU)
    assert (gather.kind, gather.shapes, gather.bytes) == ("all-gather", [(256, 256)], 2 * 256**2)
    assert (reduce.kind, reduce.shapes, reduce.bytes) == ("all-reduce", [(), (512,)], 4 * 513)
    assert reduce.scope == "jit(step)/grads"


@pytest.mark.parametrize(
    "result, bytes",
    [
        ("pred[3,5]{1,0}", 15),
        ("(u8[4], s64[])", 12),
        ("f8e4m3fn[16]", 16),
        ("bf16[2,3]{1,0:T(8)}", 12),
    ],
)
def test_size_of_a_result(result, bytes):
    assert hlo.size(result) == bytes


def exchanges_of_eight_devices() -> list:
    """A product that needs all of one of its operands, and three times a sum over the batch."""
    mesh = sharding.make_mesh(8)
    rows, columns = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P(None, "fsdp"))

    def work(x: jax.Array, w: jax.Array) -> jax.Array:
        def body(total: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(y * total).sum(), None

        y = x @ w
        return jax.lax.scan(body, jnp.float32(1), None, length=3)[0]

    x, w = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = jax.jit(work, in_shardings=(rows, columns)).lower(x, w).compile().as_text()
    return [[c.kind, c.bytes, c.times] for c in hlo.collectives(program)]


def test_a_program_of_eight_devices():
    seen = tiny.on_eight_devices(exchanges_of_eight_devices)
    assert sorted(seen) == [["all-gather", 4 * 16 * 64, 1], ["all-reduce", 4, 3]]
