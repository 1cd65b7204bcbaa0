"""What a plan tells: parts of scopes, exchanges, kernels."""

from types import SimpleNamespace

import pytest

from configs import music2vec, music2vec2
from musicssl.planning import hlo, report, topology
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


def test_a_prediction_of_data2vec_2_stands_beside_one_of_data2vec_1():
    """Eight copies of a clip against one, with half of the frames masked in each."""
    config = music2vec2.get_config()
    own, first = report.predicting(config)
    assert own["flops"] == flops.train_step(config)
    assert (own["predictions"], first["predictions"]) == (16 * 8 * 744, 16 * 744)
    one = music2vec.get_config()
    one.batch_size, one.data.crop_frames = 16, 1488
    assert first["flops"] == flops.train_step(one)
    (alone,) = report.predicting(one)
    assert alone["flops"] == first["flops"]
    assert alone["predictions"] == pytest.approx(16 * 1488 * 0.490, rel=0.01)  # fairseq's sampler
    a_prediction = [x["flops"] / x["predictions"] for x in (own, first)]
    assert a_prediction[1] / a_prediction[0] == pytest.approx(3.2, abs=0.1)


def test_an_hour_of_targets_takes_the_time_of_180000_predictions():
    plan = {
        "seconds": {"roofline": 1.0, "compiler": 4.0},
        "devices": 2,
        "peak_flops": 1e12,
        "predicting": [
            {"by": "ours", "flops": 3e12, "predictions": 90_000},
            {"by": "theirs", "flops": 1e12, "predictions": 10_000},
        ],
    }
    rows = report._costs(plan)[2:]
    assert rows == [
        "| ours | 3.000 | 90,000 | 33.3 | 6.0 to 16.0 s |",
        "| theirs | 1.000 | 10,000 | 100.0 | 18.0 s |",
    ]
