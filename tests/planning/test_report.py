"""What a plan tells: parts of scopes, exchanges, kernels."""

from types import SimpleNamespace

import pytest

from musicssl.planning import hlo, report, topology


@pytest.mark.parametrize(
    "scope, part",
    [
        (
            "jit(step)/transpose(jvp(Encoder.contextualize))/layer_3/attention/q_proj/dot",
            "attention",
        ),
        ("jit(step)/jvp(Encoder.contextualize)/layer_3/feed_forward/mul", "ffn"),
        ("jit(step)/jvp(teacher)/Encoder.contextualize/layer_3/attention/dot", "teacher"),
        ("jit(step)/transpose(jvp(Encoder.stem))/stem_1/stem_norm_1/mul", "stem 1"),
        ("jit(step)/transpose(jvp(Encoder.stem))/add", "norms, residuals and the rest"),
        ("jit(step)/jvp(Encoder.contextualize)/positional/pos_conv_0/conv", "positional"),
        ("jit(step)/optimizer/mul", "optimizer"),
        ("", "copies"),
    ],
)
def test_parts_of_scopes(scope, part):
    assert report.part(scope) == part


def test_gradients_cross_slices_by_the_network():
    devices = [SimpleNamespace(process_index=i // 4) for i in range(8)]
    chip = topology.CHIPS["v5e"]
    rows = [{"kind": "all-reduce", "bytes": 1e9}, {"kind": "all-gather", "bytes": 1e9}]
    one, two = (
        report.exchange(rows, topology.Topology("", devices, chip, slices)) for slices in (1, 2)
    )
    inside = 1e9 / (chip.links / 2)
    assert one == pytest.approx(3 * inside)
    assert two == pytest.approx(inside + 2e9 / (report.SLICE_LINKS / 4))


def test_kernels_are_entered_at_the_stated_share_of_peak():
    """460 operations at two a cycle, 23 % of that rate; one without a figure stays out."""
    cycles = {"attention": 100}
    kernels = [hlo.Kernel("jit(step)/layer_0/attention/call", 460), hlo.Kernel("x", None)]
    assert report.enter_kernels(cycles, kernels, 2.0) == 1000
    assert cycles == {"attention": 1100}
