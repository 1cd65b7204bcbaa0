"""The figures of a plan: parts of scopes, exchanges, kernels."""

import pytest

from configs import music2vec, music2vec2
from musicssl.planning import costs, hlo, topology
from musicssl.planning.gpus import GPUS
from musicssl.training import flops


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
    assert costs.part(scope) == part


ROWS = [
    {"kind": "all-reduce", "bytes": 1e9, "count": 1, "activations": []},
    {"kind": "all-gather", "bytes": 1e9, "count": 1, "activations": []},
]


def test_only_what_is_sent_between_slices_crosses_the_network():
    """Four chips of a host share its adapter."""
    chip = topology.CHIPS["v5e"]
    sent = {"kind": hlo.SENT, "bytes": 1e8, "count": 1, "activations": []}

    def seconds(slices: int, *rows: dict) -> float:
        return costs.exchange(list(rows), topology.Topology("", [None] * 8, chip, slices, 4), 1)

    inside = 3e9 / (chip.links / 2)
    assert seconds(1, *ROWS) == seconds(2, *ROWS) == pytest.approx(inside)
    assert seconds(2, *ROWS, sent) == pytest.approx(inside + 1e8 / (costs.SLICE_LINKS / 4))
    assert seconds(4, sent) == pytest.approx(1.5e8 / (costs.SLICE_LINKS / 4))


def test_gradients_cross_gpu_machines_once_they_are_summed_in_each():
    """Eight adapters of a machine carry what one of its GPUs has."""
    gpu = GPUS["h100"]

    def seconds(gpus: int, fsdp: int) -> float:
        return costs.exchange(ROWS, topology.Topology("", [None] * gpus, gpu, 1, 8), fsdp)

    assert seconds(8, 1) == seconds(8, 8) == pytest.approx(3e9 / 450e9)
    assert seconds(16, 1) == pytest.approx(3e9 / 450e9 + 2e9 / 400e9)
    assert seconds(16, 16) == pytest.approx(3e9 / 450e9 + 3e9 / 400e9)  # a copy on all sixteen


def test_a_gpus_kernel_takes_what_its_bytes_or_its_operations_take():
    """1,000 bytes and 100 operations a second."""
    launches = [
        hlo.Launch("jit(step)/feed_forward/dot", 2000, 500, 1),
        hlo.Launch("jit(step)/feed_forward/mul", 3000, 0, 2),
        hlo.Launch("jit(step)/optimizer/mul", 50, None, 1),
    ]
    work = costs.work_by_part(launches, 1000, 100)
    assert list(work) == ["ffn", "optimizer"]
    assert work["ffn"] == {
        "kernels": 3, "bytes": 8000, "operations": 500, "seconds": 11, "memory_seconds": 6
    }  # fmt: skip
    assert work["optimizer"]["seconds"] == work["optimizer"]["memory_seconds"] == 0.05


def test_kernels_are_entered_at_the_stated_share_of_peak():
    """460 operations at two a cycle, 23 % of that rate; one without a figure stays out."""
    cycles = {"attention": 100}
    kernels = [hlo.Kernel("jit(step)/layer_0/attention/call", 460), hlo.Kernel("x", None)]
    assert costs.enter_kernels(cycles, kernels, 2.0) == 1000
    assert cycles == {"attention": 1100}


def test_a_prediction_of_data2vec_2_stands_beside_one_of_data2vec_1():
    """Eight copies of a clip against one, with half of the frames masked in each."""
    config = music2vec2.get_config()
    own, first = costs.predicting(config)
    assert own["flops"] == flops.train_step(config)
    assert (own["predictions"], first["predictions"]) == (16 * 8 * 744, 16 * 744)
    one = music2vec.get_config()
    one.batch_size, one.data.crop_frames = 16, 1488
    assert first["flops"] == flops.train_step(one)
    (alone,) = costs.predicting(one)
    assert alone["flops"] == first["flops"]
    assert alone["predictions"] == pytest.approx(16 * 1488 * 0.490, rel=0.01)  # fairseq's sampler
    a_prediction = [x["flops"] / x["predictions"] for x in (own, first)]
    assert a_prediction[1] / a_prediction[0] == pytest.approx(3.2, abs=0.1)
