"""FLOP counts against hand counts and against XLA's."""

import types

import jax
import numpy as np
import pytest

from configs import common, music2vec, music2vec2, musichubert
from musicssl import audio
from musicssl.model.encoder import Encoder
from musicssl.objectives import masking
from musicssl.planning import compilation
from musicssl.runtime import sharding
from musicssl.training import flops

SECOND = 50  # frames


def base(**leaves) -> dict:
    """Base-size encoder fields: data2vec's unless said otherwise."""
    return common.get_config().encoder.to_dict() | leaves


def hubert() -> dict:
    return base(pos_conv_depth=0, pos_conv_kernel=128, stem_norm="group")


def counted(encoder: dict, frames: int) -> dict[str, float]:
    """GFLOP for each second of audio."""
    encoder = types.SimpleNamespace(**encoder)
    return {k: v / 1e9 * SECOND / frames for k, v in flops.forward(encoder, frames).items()}


def test_stem_and_positional_convolutions():
    """By layer .033, 2.52, 1.26, .63, .31, .10, .05 GF for each second, by hand."""
    frames = 1500
    rates = [16_000 / 5 / 2**i for i in range(7)]
    taps = [10, 3 * 512, 3 * 512, 3 * 512, 3 * 512, 2 * 512, 2 * 512]
    by_hand = sum(2 * 512 * n * rate for n, rate in zip(taps, rates, strict=True)) / 1e9
    assert by_hand == pytest.approx(4.91, rel=0.005)
    assert counted(base(), frames)["stem"] == pytest.approx(by_hand, rel=0.002)
    assert counted(hubert(), frames)["positional"] == pytest.approx(0.47, rel=0.01)  # k = 128
    assert counted(base(), frames)["positional"] == pytest.approx(0.47 * 5 * 19 / 128, rel=0.01)


@pytest.mark.parametrize("seconds, attention", [(5, 0.46), (10, 0.92), (15.6, 1.44), (30, 2.76)])
def test_transformer(seconds, attention):
    frames = round(seconds * SECOND)
    parts = counted(base(), frames)
    linear = 2 * SECOND * (12 * (4 * 768**2 + 2 * 768 * 3072) + 512 * 768) / 1e9
    assert linear == pytest.approx(8.53, rel=0.005)  # 8.49 in the blocks
    scores = parts["attention"] + parts["ffn"] + parts["projection"] - linear
    assert scores == pytest.approx(attention, rel=0.01)


def test_whole_steps():
    """HuBERT at 15.6 s 46.1 GF for each second of audio, data2vec at 30 s 61.3."""
    config = music2vec.get_config()
    config.data.crop_frames = 1500
    step = flops.train_step(config) / (config.batch_size * 30) / 1e9
    assert step == pytest.approx(61.3, rel=0.02)
    config.data.crop_frames = 780
    forward = sum(counted(hubert(), 780).values())
    assert 3 * forward == pytest.approx(46.1, rel=0.02)


def test_step_is_three_passes_of_the_student_and_one_of_the_teacher_without_stem():
    config = music2vec.get_config()
    parts = flops.forward(config.encoder, config.data.crop_frames)
    head = 2 * 768**2 * config.data.crop_frames
    teacher = sum(parts.values()) - parts["stem"] - parts["projection"]
    clip = 3 * (sum(parts.values()) + head) + teacher
    assert flops.train_step(config) == pytest.approx(112 * clip, rel=1e-6)
    config.accumulate = 4
    assert flops.train_step(config) == pytest.approx(112 * clip, rel=1e-6)


def test_parts_of_a_step_of_masked_copies_by_hand():
    """Stem and teacher once a clip, the rest for each copy, whose student sees 744 frames."""
    config = music2vec2.get_config()
    frames, visible, masked = 1488, 744, 744
    whole = flops.forward(config.encoder, frames)
    blocks = 12 * visible * (2 * (4 * 768**2 + 2 * 768 * 3072) + 4 * 768 * visible)
    convolutions = 2 * 7 * frames * (768 // 16 * 384 + 3 * 384 // 16 * 384)
    by_hand = {
        "stem": 3 * whole["stem"],
        "projection": 3 * whole["projection"],
        "positional": 3 * 8 * whole["positional"],
        "transformer": 3 * 8 * blocks,
        "head": 3 * 8 * (convolutions + 2 * 384 * 768 * masked),
        "teacher": whole["positional"] + whole["attention"] + whole["ffn"],
    }
    parts = flops.train_parts(config)
    parts["transformer"] = parts.pop("attention") + parts.pop("ffn")
    assert parts == pytest.approx({name: 16 * n for name, n in by_hand.items()})
    assert flops.predictions(config) == 16 * 8 * masked


@pytest.mark.parametrize("fields", [base(layers=3), hubert() | {"layers": 3}])
def test_xla_counts_the_same(fields):
    """XLA adds norms, activations and softmax, a few percent, and leaves out taps on padding."""
    frames = 200
    encoder = Encoder(**fields)
    clip = jax.ShapeDtypeStruct((1, audio.crop_samples(frames)), np.float32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), clip)
    cost = jax.jit(encoder.apply).lower(params, clip).cost_analysis()
    ours = sum(flops.forward(types.SimpleNamespace(**fields), frames).values())
    assert 0.99 < cost["flops"] / ours < 1.05


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peak_by_device(kind, peak):
    assert flops.peak(types.SimpleNamespace(device_kind=kind)) == peak


def test_parts_of_a_hubert_step_by_hand():
    """Head on the masked frames of a 500-class run; MFCC and its nearest code once a frame."""
    config = musichubert.get_config("k500")
    frames, clips = config.data.crop_frames, config.batch_size
    parts = flops.train_parts(config)
    masked = masking.mask_capacity(frames, **config.mask)
    assert 0.5 * frames < masked < 0.6 * frames
    head = 3 * 2 * (768 * 256 + 256 * 500) * masked
    assert parts["head"] == clips * head
    per_window = 2 * (400 * 510 + 255 * 23 + 23 * 13)
    labels = per_window * (2 * frames - 1) + 2 * 39 * 500 * frames
    assert parts["labels"] == clips * labels
    assert 0.0005 < parts["labels"] / flops.train_step(config) < 0.002


def test_labels_and_heads_of_several_targets_by_hand():
    """Each feature once, each codebook's projection and nearest code, and a head each."""
    config = musichubert.get_config("k500")
    leaves = {
        "teacher.feature": "",
        "teacher.targets": "mfcc:kmeans:300,mel:random:2x512,chroma:kmeans:200,onset:random:64",
    }
    config.update_from_flattened_dict(leaves)
    frames, clips = config.data.crop_frames, config.batch_size
    parts = flops.train_parts(config)
    mfcc = 2 * (400 * 510 + 255 * 23 + 23 * 13) * (2 * frames - 1)
    bands = 2 * (400 * 510 + 255 * 80) * frames  # for mel, and as many for onsets
    longest = 16_000 / 32.703 / (2 ** (2 / 12) - 1) * (2 ** (2 / 12) + 1)  # samples of C1's filter
    hops = sum(max(np.ceil(longest / 2**octave / 320), 2) for octave in range(7))
    constant_q = 2 * 24 * 320 * hops * frames
    codes = 2 * (39 * 300 + 2 * 16 * (80 + 512) + 12 * 200 + 16 * (8 + 64)) * frames
    assert parts["labels"] == clips * (mfcc + 2 * bands + constant_q + codes)
    masked = masking.mask_capacity(frames, **config.mask)
    classes = 300 + 2 * 512 + 200 + 64
    assert parts["head"] == clips * 3 * 2 * masked * 256 * (5 * 768 + classes)


def test_the_frozen_encoder_of_iteration_2():
    """A forward pass of six of twelve blocks, and 2000 distances of 768 numbers a frame."""
    config = musichubert.get_config("k2000_iter2")
    frames = config.data.crop_frames
    passes = flops.forward(config.encoder, frames)
    below = passes["stem"] + passes["projection"] + passes["positional"]
    blocks = (passes["attention"] + passes["ffn"]) / 2
    by_hand = below + blocks + 2 * 768 * 2000 * frames
    assert flops.train_parts(config)["labels"] == pytest.approx(config.batch_size * by_hand)
    assert flops.train_step(config) == pytest.approx(sum(flops.train_parts(config).values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, leaves",
    [
        (musichubert, {}),
        (musichubert, {"teacher.feature": "partials", "encoder.feature_grad_mult": 0.0}),
        (musichubert, {"teacher.feature": "layer", "teacher.layer": 1}),
        (
            musichubert,
            {"teacher.feature": "", "teacher.targets": "mel:random:2x64,cqt,onset:kmeans:16"},
        ),
        (music2vec2, {"decoder.width": 256}),
    ],
)
def test_xla_counts_the_same_for_a_whole_step(family, leaves):
    """Optimizer, masks and dropout add to it, and the stem has no gradient for the audio."""
    config = family.get_config("demo")
    size = {"data.crop_frames": 128, "encoder.width": 256, "encoder.ffn_width": 1024}
    config.update_from_flattened_dict(size | {"batch_size": 8} | leaves)
    lowered = compilation.lower(config, sharding.make_mesh(1, jax.devices()[:1]))
    parts = flops.train_parts(config)
    counted = lowered.cost_analysis()["flops"]
    assert 0.95 < counted / sum(parts.values()) < 1.2, parts
