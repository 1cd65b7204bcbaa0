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


# Lines as jax 0.11's compiler for an H100 prints them, shortened: two products of cuBLAS, a
# convolution of cuDNN with its gradients, its attention, two Pallas kernels, a fusion that reads a
# slice, one with a product in it, a loop of three, and a sum over devices.
GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%fused_slice (param_0.1: f32[100,8], param_1.1: f32[8]) -> f32[2,8] {
  %param_0.1 = f32[100,8]{1,0} parameter(0)
  %bitcast.7 = f32[100,8]{1,0} bitcast(%param_0.1)
  %slice.1 = f32[2,8]{1,0} slice(%bitcast.7), slice={[0:2], [0:8]}
  %param_1.1 = f32[8]{0} parameter(1)
  %broadcast.1 = f32[2,8]{1,0} broadcast(%param_1.1), dimensions={1}
  ROOT %add.1 = f32[2,8]{1,0} add(%slice.1, %broadcast.1)
}

%gemm_fusion_dot (parameter_0: bf16[64,32], parameter_1: bf16[32,16]) -> bf16[64,16] {
  %parameter_0 = bf16[64,32]{1,0} parameter(0)
  %parameter_1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}

%body.1 (p.1: (s32[], f32[10])) -> (s32[], f32[10]) {
  %p.1 = (s32[], f32[10]{0}) parameter(0)
  %get-tuple-element.1 = f32[10]{0} get-tuple-element(%p.1), index=1
  %copy.1 = f32[10]{0} copy(%get-tuple-element.1)
  ROOT %tuple.1 = (s32[], f32[10]{0}) tuple(%get-tuple-element.1, %copy.1)
}

ENTRY %main.1 (a.1: bf16[4,64,32], b.1: bf16[32,16]) -> f32[] {
  %a.1 = bf16[4,64,32]{2,1,0} parameter(0), metadata={op_name="state.params"}
  %b.1 = bf16[32,16]{1,0} parameter(1)
  %custom-call.1 = (bf16[4,64,16]{2,1,0}, s8[4194304]{0}) custom-call(%a.1, %b.1), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/head/dot"}, \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["0"]}}}
  %conv.1 = (bf16[4,31,512]{2,1,0}, u8[0]{0}) custom-call(%x.1, %k.1), window={size=3 stride=2}, \
dim_labels=b0f_o0i->b0f, custom_call_target="__cudnn$convForward"
  %x.1 = bf16[4,63,256]{2,1,0} copy(%x.0)
  %x.0 = bf16[4,63,256]{2,1,0} iota(), iota_dimension=0
  %k.1 = bf16[512,3,256]{2,1,0} iota(), iota_dimension=0
  %g.1 = bf16[4,31,512]{2,1,0} iota(), iota_dimension=0
  %conv.2 = (bf16[512,3,256]{2,1,0}, u8[0]{0}) custom-call(%x.1, %g.1), window={size=3 stride=2}, \
dim_labels=b0f_o0i->b0f, custom_call_target="__cudnn$convBackwardFilter"
  %conv.3 = (bf16[4,63,256]{2,1,0}, u8[0]{0}) custom-call(%g.1, %k.1), window={size=3 stride=2}, \
dim_labels=b0f_o0i->b0f, custom_call_target="__cudnn$convBackwardInput"
  %q.1 = bf16[2,128,12,64]{3,2,1,0} iota(), iota_dimension=0
  %attend.1 = (bf16[2,12,128,64]{3,1,2,0}, u8[0]{0}) custom-call(%q.1, %q.1, %q.1), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": \
{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "12", "128", "128"]}}}
  %pallas_call.1 = bf16[4,64]{1,0} custom-call(%a.1), custom_call_target="__gpu$xla.gpu.triton", \
metadata={op_name="jit(step)/attention/call"}, backend_config={grid_x = 8 : i32, ir = "ML\\EFR, \
calls=%x \\1B", name = "forward", serialized_metadata = "{\\22operations\\22: \\22640\\22}"}
  %pallas_call.2 = bf16[4,64]{1,0} custom-call(%a.1), custom_call_target="__gpu$xla.gpu.triton", \
backend_config={grid_x = 8 : i32, ir = "ML\\EFR", name = "unstated"}
  %table.1 = f32[100,8]{1,0} iota(), iota_dimension=0
  %bias.1 = f32[8]{0} iota(), iota_dimension=0
  %fusion.1 = f32[2,8]{1,0} fusion(%table.1, %bias.1), kind=kLoop, calls=%fused_slice
  %c.1 = bf16[64,32]{1,0} bitcast(%a.1)
  %fusion.2 = bf16[64,16]{1,0} fusion(%c.1, %b.1), kind=kCustom, calls=%gemm_fusion_dot, \
metadata={op_name="jit(step)/feed_forward/dot"}
  %while.1 = (s32[], f32[10]{0}) while(%tuple.2), condition=%cond.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"3"}}
  %all-reduce-start.1 = f32[512]{0} all-reduce-start(%bias.1), channel_id=1, \
metadata={op_name="jit(step)/grads"}
  ROOT %all-reduce-done.1 = f32[512]{0} all-reduce-done(%all-reduce-start.1)
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


TWO_SLICES = """HloModule step

ENTRY %main.1 (p: bf16[768,3072]) -> bf16[768,3072] {
  %p.1 = bf16[768,3072]{1,0} parameter(0)
  %after-all.1 = token[] after-all()
  %reduce-scatter.4 = bf16[192,3072]{1,0:T(8,128)(2,1)} reduce-scatter(%p.1), channel_id=4, \
replica_groups={{0,1,2,3}}, metadata={op_name="jit(step)/grads"}
  %send.1 = (bf16[576,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%reduce-scatter.4, \
%after-all.1), channel_id=4, is_host_transfer=true, frontend_attributes={\
_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}"}
  %recv.1 = (bf16[576,8,128]{2,1,0}, u32[], token[]) recv(%after-all.1), channel_id=5, \
is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}"}
  %send-done.1 = token[] send-done(%send.1), channel_id=4, is_host_transfer=true
  %recv-done.1 = (bf16[576,8,128]{2,1,0}, token[]) recv-done(%recv.1), channel_id=5
  %get.1 = bf16[576,8,128]{2,1,0} get-tuple-element(%recv-done.1), index=0
  ROOT %all-gather.4 = bf16[768,3072]{1,0} all-gather(%get.1), channel_id=4
}
"""


def test_a_sum_over_two_slices_is_sent_by_the_network_in_parts():
    """A quarter leaves each of four chips, as in libtpu 0.0.42's programs for v5e:2x2@2."""
    seen = [(x.kind, x.shapes, x.bytes) for x in hlo.collectives(TWO_SLICES)]
    quarter = 2 * 192 * 3072
    assert seen == [
        ("reduce-scatter", [(192, 3072)], quarter),
        (hlo.SENT, [(576, 8, 128)], quarter),
        ("all-gather", [(768, 3072)], 4 * quarter),
    ]


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


def test_kernels_of_a_gpu_with_what_they_move_and_compute():
    seen = [x for x in hlo.launches(GPU) if x.operations != 0]
    product, forward, by_kernel, by_input, attention, stated, unstated, fused = seen
    assert product == ("jit(step)/head/dot", 2 * (4 * 64 * 32 + 32 * 16 + 4 * 64 * 16), 262144, 1)
    assert product.operations == 2 * 4 * 64 * 16 * 32

    arrays = 2 * (4 * 63 * 256 + 512 * 3 * 256 + 4 * 31 * 512)
    work = 2 * (4 * 31) * 512 * (3 * 256)
    assert [x.bytes for x in (forward, by_kernel, by_input)] == [arrays] * 3
    assert [x.operations for x in (forward, by_kernel, by_input)] == [work] * 3

    assert attention.bytes == 4 * 2 * 2 * 128 * 12 * 64
    assert attention.operations == 2 * 2 * 2 * 12 * 128**2 * 64
    assert stated == ("jit(step)/attention/call", 2 * (4 * 64 * 32 + 4 * 64), 640, 1)
    assert unstated.operations is None
    assert (fused.bytes, fused.operations) == (2 * (64 * 32 + 32 * 16 + 64 * 16), 2 * 64 * 16 * 32)


def test_of_a_slice_the_slice_is_read_and_a_loop_counts_as_often_as_it_runs():
    by_size = {x.bytes: x for x in hlo.launches(GPU) if x.operations == 0}
    assert 2 * 8 * 4 + 8 * 4 + 2 * 8 * 4 in by_size
    assert by_size[2 * 10 * 4].times == 3


def test_an_exchange_of_gpus_is_no_kernel_of_the_step():
    assert not any("grads" in x.scope for x in hlo.launches(GPU))
    (sums,) = hlo.collectives(GPU)
    assert (sums.kind, sums.bytes, sums.times) == ("all-reduce", 4 * 512, 1)


def test_a_program_of_this_machine_has_the_work_that_it_was_given():
    """Two products and a convolution, whatever the compiler makes of what stands between them."""

    def work(x: jax.Array, w: jax.Array, kernel: jax.Array) -> jax.Array:
        y = jnp.tanh(x @ w) @ w.T
        convolved = jax.lax.conv_general_dilated(
            y[None], kernel, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return convolved.sum()

    x, w, kernel = (jnp.ones(shape) for shape in ((96, 64), (64, 48), (3, 64, 32)))
    launches = hlo.launches(jax.jit(work).lower(x, w, kernel).compile().as_text())
    products = 2 * 2 * 96 * 64 * 48
    assert sum(x.operations or 0 for x in launches) == products + 2 * 47 * 32 * 3 * 64
    moved = sum(x.bytes for x in launches)
    least = 4 * (x.size + w.size + kernel.size)
    assert least < moved < 6 * least
