"""configs/musichubert.py against the published values, and its full-size models on a CPU."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import musichubert
from musicssl import audio
from musicssl.exchange import state_dict
from musicssl.model.encoder import make_encoder
from musicssl.objectives import codebook, hubert, targets
from musicssl.runtime import sharding
from musicssl.training import loop, optim, step
from tests.support import full_size, torch_models

FULL_SIZE = ("k500", "k500_mfcc60", "k2000_iter1", "k2000_iter2")
BASE = {  # fairseq hubert_base_librispeech.yaml and the defaults of HubertConfig
    "data.sample_rate": 16_000,
    "data.normalize": False,
    "encoder.layers": 12,
    "encoder.width": 768,
    "encoder.heads": 12,
    "encoder.ffn_width": 3072,
    "encoder.stem_width": 512,
    "encoder.stem_norm": "group",
    "encoder.stem_bias": False,
    "encoder.pos_conv_depth": 0,
    "encoder.pos_conv_kernel": 128,
    "encoder.pos_conv_groups": 16,
    "encoder.pre_norm": False,
    "encoder.dropout": 0.1,
    "encoder.attention_dropout": 0.1,
    "encoder.activation_dropout": 0.0,
    "encoder.input_dropout": 0.1,
    "encoder.layerdrop": 0.05,
    "encoder.feature_grad_mult": 0.1,
    "mask.probability": 0.8,
    "mask.span": 10,
    "mask.min_spans": 2,
    "optim.schedule": "polynomial",
    "optim.learning_rate": 5e-4,
    "optim.warmup_steps": 32_000,
    "optim.beta1": 0.9,
    "optim.beta2": 0.98,
    "optim.epsilon": 1e-6,
    "optim.weight_decay": 0.01,
    "optim.clip_norm": 10.0,
    "hubert.final_dim": 256,
    "hubert.temperature": 0.1,
    "hubert.feature_penalty": 10.0,
    "seed": 1337,
    "method": "hubert",
}
OF_VARIANT = {  # MARBLE benchmark/models/hubert; updates of the runs' names
    "k500": {"teacher.feature": "mfcc", "teacher.clusters": 500, "steps": 250_000},
    "k500_mfcc60": {"teacher.feature": "mfcc", "teacher.clusters": 500, "steps": 250_000},
    "k2000_iter1": {"teacher.feature": "mfcc", "teacher.clusters": 2000, "steps": 250_000},
    "k2000_iter2": {"teacher.feature": "layer", "teacher.clusters": 2000, "steps": 400_000},
}
CEPS = {"k500": 13, "k500_mfcc60": 20, "k2000_iter1": 13}  # 39 and 60 features


@pytest.mark.parametrize("variant", FULL_SIZE)
def test_values_are_the_recipes(variant):
    config = musichubert.get_config(variant)
    leaves = full_size.leaves(config)
    wanted = BASE | OF_VARIANT[variant]
    if variant in CEPS:
        wanted |= {"teacher.ceps": CEPS[variant]}
    assert {name: leaves[name] for name in wanted} == wanted
    minutes = config.batch_size * audio.crop_samples(config.data.crop_frames) / 16_000 / 60
    assert minutes == pytest.approx(16, rel=0.01)  # of audio an update: 32 clips of 30 s
    assert config.batch_size == 32 and config.mask.equal_counts == 4  # four on each of 8 GPUs
    assert state_dict.parameter_count(make_encoder(config)) == 94_371_712


def test_variants_differ_in_their_labels_and_length_alone():
    vanilla = full_size.leaves(musichubert.get_config("k500"))
    for variant in FULL_SIZE[1:]:
        leaves = full_size.leaves(musichubert.get_config(variant))
        changed = {name for name in vanilla if leaves[name] != vanilla[name]} - {"variant"}
        allowed = {"teacher.feature", "teacher.clusters", "teacher.ceps", "steps"}
        assert changed and changed <= allowed, variant


def test_the_schedule_rises_over_32k_updates_and_falls_to_nothing():
    rate = optim.learning_rate(musichubert.get_config("k2000_iter2"))
    expected = {0: 0.0, 16_000: 2.5e-4, 32_000: 5e-4, 216_000: 2.5e-4, 400_000: 0.0}
    for update, value in expected.items():
        assert float(rate(jnp.int32(update))) == pytest.approx(value, rel=1e-5, abs=1e-12)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="no variant 'k100' in configs/musichubert"):
        musichubert.get_config("k100")


def test_the_demo_goes_on_with_its_second_iteration():
    first = musichubert.get_config("demo")
    second = musichubert.get_config(first.then)
    assert (first.teacher.feature, second.teacher.feature) == ("mfcc", "layer")
    assert second.then == "" and second.teacher.layer <= first.encoder.layers
    shapes = [dict(config.encoder) for config in (first, second)]
    assert shapes[0] == shapes[1]


def frozen_of(config: ml_collections.ConfigDict, tmp_path: Path) -> dict:
    """A codebook of the variant's size and, for a second iteration, a small frozen encoder."""
    if config.teacher.feature == "layer":
        layers = torch_models.SMALL | {"num_hidden_layers": config.teacher.layer + 1}
        model = torch_models.make("hubert", **layers)
        config.teacher.encoder = str(torch_models.save(model, tmp_path / "teacher", False))
    frozen, digest = codebook.frozen_encoder(config, sharding.make_mesh())
    (target,) = targets.of(config)
    width = codebook.definition(config, target, digest).get("ceps", 16) * 3  # or the encoder's 48
    rows = np.random.default_rng(0).normal(0, 10, (config.teacher.clusters, width))
    return frozen | {"quantizers": {target.name: {"codebook": jnp.asarray(rows, jnp.float32)}}}


@pytest.mark.slow
def test_one_optimizer_step_of_every_full_size_variant(monkeypatch, tmp_path):
    """One after another, to bound memory; those of as many clusters share state and program."""
    programs, state, clusters = full_size.Programs(monkeypatch), None, None
    for number, variant in enumerate(FULL_SIZE):
        config = full_size.short(musichubert.get_config(variant))
        frozen = frozen_of(config, tmp_path)
        batch = full_size.masked_clip(config, number)
        (labels,) = jax.jit(functools.partial(hubert.labels, config))(
            frozen, batch.waveform
        ).values()
        assert labels.shape == (1, 16) and len(np.unique(labels)) > 1
        if config.teacher.clusters != clusters:
            state, clusters = full_size.some_state(config, 1000, state), config.teacher.clusters
        before = np.array(kernel(state))
        rate = optim.learning_rate(config)(state.updates)
        seen = int(state.updates)
        state, metrics = programs.step(config, state, batch, rate, labels)
        assert int(state.updates) == seen + 1 and metrics["nonfinite"] == 0
        assert 0 < np.abs(np.asarray(kernel(state)) - before).max() < 10 * float(rate)
        assert abs(metrics["cross_entropy"] - np.log(config.teacher.clusters)) < 1
    assert len(programs.compiled) == 2


def kernel(state: step.TrainState) -> jax.Array:
    return state.params["encoder"]["layer_11"]["attention"]["q_proj"]["kernel"]


@pytest.mark.slow
def test_the_hours_recipe_takes_a_step_that_moves_its_stem_and_its_heads():
    """At toy size, from two optimiser steps, the first of which has rate 0."""
    config = musichubert.get_config("small")
    mesh = sharding.make_mesh(1)
    loop.check(config, mesh)
    predicted = targets.of(config)
    assert [target.feature for target in predicted] == [
        *("cqt", "chroma", "mel", "mfcc", "onset"),
    ]
    leaves = {"batch_size": 2, "data.crop_frames": 16, "encoder.layers": 1, "encoder.width": 32}
    leaves |= {"encoder.ffn_width": 64, "encoder.stem_width": 24, "mask.equal_counts": 2}
    leaves |= {"encoder.pos_conv_kernel": 4, "encoder.pos_conv_groups": 4, "hubert.final_dim": 8}
    config.update_from_flattened_dict(leaves)

    # Codes are frames of other sounds.
    rng = np.random.default_rng(0)
    shape = 2, audio.crop_samples(config.data.crop_frames)
    clips = rng.integers(-9_000, 9_000, shape, dtype=np.int16)
    frozen = {"quantizers": {}}
    for target in predicted:
        rows = rng.standard_normal((target.clusters, targets.width(config, target)))
        frozen["quantizers"][target.name] = {"codebook": jnp.asarray(rows, jnp.float32)}
    state = step.sharded_init(config, mesh)
    before = jax.tree.map(np.array, state.params)
    take = step.make_step(config, mesh)
    for _ in range(2):
        state, metrics = take(state, frozen, jnp.asarray(clips))
    assert metrics["nonfinite"] == 0 and metrics["grad_norm"] > 0
    assert {f"cross_entropy/{target.name}" for target in predicted} <= metrics.keys()
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.params, before)
    assert all(moved["encoder"][f"stem_conv_{i}"]["kernel"] for i in range(7))
    assert all(moved["head"][target.name]["embeddings"] for target in predicted)
