"""Configurations: the published values, no leaf unread, and every variant takes a step."""

import ast
import functools
import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import musicssl
from configs import common, music2vec, music2vec2, musichubert, probe
from musicssl import audio
from musicssl.model.encoder import Encoder
from musicssl.objectives import data2vec2, masking
from musicssl.training import optim, step
from tests.support import full_size

FAMILIES = (music2vec, music2vec2, musichubert)
STUDIED = (music2vec, musichubert)
PAPER = ["vanilla", "800k", "crop5s", "prob50", "prob80", "span5", "span15", "target12"]
SOURCES = Path(musicssl.__file__).parent

# fairseq examples/data2vec/config/audio/pretraining/base_librispeech.yaml, with the defaults of
# data2vec_audio.py; batch and crop as inferred for music2vec.
RECIPE = {
    "method": "data2vec",
    "seed": 1,
    "steps": 400_000,
    "start_from": "",
    "batch_size": 16 * 7,  # GPUs times 30 s clips in 3.8 million samples
    "accumulate": 1,
    "log_every": 200,
    "data.sample_rate": 16_000,
    "data.crop_frames": 1496,
    "data.normalize": True,
    "encoder.layers": 12,
    "encoder.width": 768,
    "encoder.heads": 12,
    "encoder.ffn_width": 3072,
    "encoder.stem_width": 512,
    "encoder.stem_norm": "layer",
    "encoder.stem_bias": False,
    "encoder.stem_start": "random",
    "encoder.pos_conv_depth": 5,
    "encoder.pos_conv_kernel": max(3, 95 // 5),
    "encoder.pos_conv_groups": 16,
    "encoder.pre_norm": False,
    "encoder.dropout": 0.1,
    "encoder.attention_dropout": 0.1,
    "encoder.activation_dropout": 0.0,
    "encoder.input_dropout": 0.0,
    "encoder.layerdrop": 0.05,
    "encoder.feature_grad_mult": 1.0,
    "mask.probability": 0.65,
    "mask.span": 10,
    "mask.min_spans": 1,
    "mask.equal_counts": 7,
    "optim.schedule": "tri_stage",
    "optim.learning_rate": 5e-4,
    "optim.beta1": 0.9,
    "optim.beta2": 0.98,
    "optim.epsilon": 1e-6,
    "optim.weight_decay": 0.01,
    "optim.clip_norm": 0.0,
    "optim.phases": [0.03, 0.9, 0.07],
    "optim.end_scale": 0.01,
    "data2vec.top_layers": 8,
    "data2vec.ema_start": 0.999,
    "data2vec.ema_end": 0.9999,
    "data2vec.ema_steps": 30_000,
    "data2vec.min_target_std": 0.1,
    "data2vec.min_prediction_std": 0.01,
    "data2vec.guard_after": 5_000,
}
# fairseq examples/data2vec/config/v2/base_audio_only_task.yaml, with the defaults of data2vec2.py
# and modalities/: where data2vec 2.0 differs. Eight GPUs of a million samples a batch.
RECIPE2 = RECIPE | {
    "method": "data2vec2",
    "batch_size": 16,
    "data.crop_frames": 1488,
    "mask.copies": 8,
    "mask.probability": 0.5,
    "mask.span": 5,
    "mask.adjust": 0.05,
    "mask.inverse": False,
    "optim.schedule": "cosine",
    "optim.learning_rate": 7.5e-4,
    "optim.warmup_steps": 8_000,
    "decoder.layers": 4,
    "decoder.width": 384,
    "decoder.kernel": 7,
    "decoder.groups": 16,
    "decoder.dropout": 0.1,
    "decoder.noise": 0.01,
    "data2vec.ema_end": 0.99999,
    "data2vec.ema_steps": 75_000,
}
for _name in ("mask.min_spans", "mask.equal_counts", "optim.phases", "optim.end_scale"):
    del RECIPE2[_name]
# What the recipes say nothing of.
OURS = {
    *("name", "variant", "then", "precision", "nonfinite", "profile", "tracker"),
    *("data.name", "data.mix", "data.data_dir", "data.on_damage", "data.order", "data.mirror"),
    *(
        "checkpoint.every",
        "checkpoint.keep",
        "checkpoint.keep_every",
        "checkpoint.on_damage",
        "mesh.fsdp",
    ),
    *(f"probe.{name}" for name in common.get_config().probe),
    *(f"validate.{name}" for name in common.get_config().validate),
}
DIFFERENCES = {
    "vanilla": {},
    "800k": {"steps": 800_000},
    # 47 clips of 5 s in 3.8 million samples, on 16 GPUs
    "crop5s": {"data.crop_frames": 256, "batch_size": 752, "mask.equal_counts": 47},
    "prob50": {"mask.probability": 0.5},
    "prob80": {"mask.probability": 0.8},
    "span5": {"mask.span": 5},
    "span15": {"mask.span": 15},
    "target12": {"data2vec.top_layers": 12},
}


def test_vanilla_is_the_published_recipe():
    ours = full_size.leaves(music2vec.get_config())
    assert {name: ours[name] for name in RECIPE} == RECIPE
    assert set(ours) == RECIPE.keys() | OURS


def test_base_is_the_published_recipe_of_data2vec_2():
    config = music2vec2.get_config()
    ours = full_size.leaves(config)
    assert {name: ours[name] for name in RECIPE2} == RECIPE2
    assert set(ours) == RECIPE2.keys() | OURS
    samples = config.batch_size * audio.crop_samples(config.data.crop_frames)
    assert 0.9 * 8e6 < samples < 8e6
    assert config.data.crop_frames % 16 == 0  # visible frames in tiles of accelerators too


@pytest.mark.parametrize("variant", PAPER)
def test_variants_differ_in_what_the_paper_varies_alone(variant):
    vanilla, ours = (
        full_size.leaves(music2vec.get_config()),
        full_size.leaves(music2vec.get_config(variant)),
    )
    assert ours.keys() == vanilla.keys()
    changed = {name: x for name, x in ours.items() if x != vanilla[name] and name != "variant"}
    assert changed == DIFFERENCES[variant]
    assert ours["variant"] == variant and ours["name"] == "music2vec"


def test_the_paper_has_eight_variants():
    assert list(music2vec.STUDIED)[:8] == PAPER
    assert list(musichubert.STUDIED)[:4] == ["k500", "k500_mfcc60", "k2000_iter1", "k2000_iter2"]


def changed(family, name: str, vanilla: str) -> dict[str, object]:
    """Leaves in which a variant differs from another, without its name."""
    ours, theirs = (full_size.leaves(family.get_config(x)) for x in (name, vanilla))
    return {x: value for x, value in ours.items() if value != theirs[x] and x != "variant"}


@pytest.mark.parametrize(
    "family, name", [(family, name) for family in STUDIED for name in family.STUDIED]
)
def test_the_demo_of_a_variant_differs_from_vanillas_in_the_same_leaves(family, name):
    vanilla = next(iter(family.STUDIED))
    paper = changed(family, name, vanilla)
    small = changed(family, f"{name}_demo", f"{vanilla}_demo")
    assert small.keys() - paper.keys() <= {"teacher.layer"}  # the demo's encoder has no layer 6
    assert paper.keys() <= small.keys()
    for leaf in ("mask.probability", "mask.span", "teacher.ceps", "teacher.feature"):
        assert small.get(leaf) == paper.get(leaf)


@pytest.mark.parametrize("family, size", [(music2vec, 313_276_416), (musichubert, 315_438_720)])
def test_large_has_the_size_of_the_families_large_models(family, size):
    shapes = step.state_shapes(family.get_config("large"))
    assert sum(x.size for x in jax.tree.leaves(shapes.params["encoder"])) == size


@pytest.mark.parametrize("variant", PAPER)
def test_an_update_is_about_an_hour_of_audio(variant):
    config = music2vec.get_config(variant)
    samples = audio.crop_samples(config.data.crop_frames)
    assert 55 < config.batch_size * samples / 16_000 / 60 < 65
    assert config.batch_size % config.mask.equal_counts == 0
    assert config.data.crop_frames % 8 == 0  # tiles of accelerators


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_is_locked_and_fits_its_optimizer_and_masks(family):
    for variant in family.VARIANTS:
        config = family.get_config(variant)
        with pytest.raises(AttributeError, match="layrs"):
            config.encoder.layrs = 3
        with pytest.raises(KeyError, match="learning_rte"):
            config.update_from_flattened_dict({"optim.learning_rte": 1.0})
        optim.learning_rate(config)
        clips = (config.batch_size, audio.crop_samples(config.data.crop_frames))
        key = jax.random.key(0)
        jax.eval_shape(
            functools.partial(step.prepare, config, key), jax.ShapeDtypeStruct(clips, np.int16)
        )
        assert json.loads(config.to_json())["variant"] == variant


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_variant_is_refused_with_the_known_ones(family):
    with pytest.raises(ValueError, match=r"no variant 'prob65' in configs/music\w+\.py: use \['"):
        family.get_config("prob65")


def test_sections_passed_whole_fit_what_they_are_passed_to():
    config = common.get_config()
    fields = {f for f in Encoder.__dataclass_fields__ if f not in ("dtype", "parent", "name")}
    assert set(config.encoder) == fields
    parameters = inspect.signature(masking.span_mask).parameters.values()
    assert set(config.mask) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    config = music2vec2.get_config()
    parameters = inspect.signature(masking.block_mask).parameters.values()
    assert set(config.mask) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    fields = set(data2vec2.Decoder.__dataclass_fields__)
    assert set(config.decoder) == fields - {"outputs", "dtype", "parent", "name"}


class Reads(ast.NodeVisitor):
    """Leaves, and sections passed whole, that a module reads through a name `config`."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.aliases: dict[str, list[str]] = {}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.aliases = self.aliases, dict(self.aliases)
        self.generic_visit(node)
        self.aliases = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
            for name, value in pairs:
                chain = self.chain(value)
                if isinstance(name, ast.Name):
                    self.aliases[name.id] = chain if "config" in chain else [name.id]
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self.chain(node)
        if isinstance(node.ctx, ast.Load) and "config" in chain:
            self.found.add(".".join(chain[chain.index("config") + 1 :]))
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        chain = self.chain(node.value)
        if node.arg is None and "config" in chain:
            self.found.add(f"{chain[-1]}.*")
        self.generic_visit(node)

    def chain(self, node: ast.AST) -> list[str]:
        """["config", "optim", "beta1"], with the names of sections resolved; [] for others."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, [node.id])
        if isinstance(node, ast.Attribute) and (start := self.chain(node.value)):
            return [*start, node.attr]
        return []


@functools.cache
def reads() -> frozenset[str]:
    visitor = Reads()
    for path in SOURCES.rglob("*.py"):
        visitor.aliases = {}
        visitor.visit(ast.parse(path.read_text()))
    return frozenset(visitor.found)


def unread(config: ml_collections.ConfigDict) -> list[str]:
    def is_read(name: str) -> bool:
        section, dot, _ = name.partition(".")
        return name in reads() or (bool(dot) and f"{section}.*" in reads())

    return [name for name in full_size.leaves(config) if not is_read(name)]


@pytest.mark.parametrize("family", [*FAMILIES, probe])
def test_code_reads_every_leaf(family):
    assert unread(family.get_config()) == []


@pytest.mark.parametrize("dead", ["warmup", "optim.nesterov", "data.beta1", "data2vec.decay"])
def test_a_leaf_that_no_code_reads_is_found(dead):
    config = music2vec.get_config().unlock()
    section, _, leaf = dead.rpartition(".")
    (config[section] if section else config)[leaf] = 1
    assert unread(config) == [dead]


@pytest.mark.slow
def test_one_optimizer_step_of_every_full_size_variant(monkeypatch):
    """One after another on the same state, in one program."""
    programs = full_size.Programs(monkeypatch)
    state = full_size.some_state(full_size.short(music2vec.get_config()), updates=0)
    assert sum(x.size for x in jax.tree.leaves(state.params["encoder"])) == 93_164_288
    assert sum(x.size for x in jax.tree.leaves(state.params["head"])) == 590_592
    for number, variant in enumerate(PAPER):
        config = full_size.short(music2vec.get_config(variant))
        batch = full_size.masked_clip(config, number)
        batch = batch._replace(mask=batch.mask._replace(frames=None, valid=None))  # by their shape
        rate = optim.learning_rate(config)(jnp.int32(number))
        before = np.array(state.params["head"]["bias"])
        assert config.data2vec.top_layers in full_size.TOPS
        blocks = jnp.int32(config.data2vec.top_layers)
        state, metrics = programs.step(config, state, batch, rate, blocks)
        assert metrics["learning_rate"] == float(rate) > 0
        assert metrics["nonfinite"] == 0 and 1 < metrics["loss"] < 100, (variant, metrics)
        assert metrics["grad_norm"] > 0 and metrics["target_std"] > 0.01, (variant, metrics)
        assert metrics["masked_fraction"] == np.asarray(batch.mask.mask).mean() > 0
        assert np.abs(np.asarray(state.params["head"]["bias"]) - before).max() > 0
        assert int(state.updates) == number + 1
    assert len(programs.compiled) == 1
