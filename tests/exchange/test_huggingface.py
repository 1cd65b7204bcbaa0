"""Hugging Face directories in and out, against transformers itself."""

import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from flax import traverse_util
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    Data2VecAudioForCTC,
    HubertForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
)

from musicssl import audio
from musicssl.exchange import huggingface, model_config, state_dict
from musicssl.exchange.loaded import with_digest
from tests.support import torch_models

MASKING = model_config.Masking(0.65, 10, 1)
FULL_SIZES = {
    "data2vec": ("data2vec", {}, 93_164_288),
    "hubert": ("hubert", {}, 94_371_712),
    "wav2vec2": ("wav2vec2", {}, 94_371_712),
    "data2vec-large": ("data2vec", {}, None),
    "hubert-large": ("hubert", torch_models.LARGE, None),
    "wav2vec2-large": ("wav2vec2", torch_models.LARGE, None),
}
LARGE_SIZE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


def model_type(kind: str) -> str:
    family = torch_models.KINDS[kind][0]
    return "data2vec-audio" if family == "data2vec" else family


def same_tree(a: dict, b: dict) -> bool:
    a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small HuBERT as transformers writes it."""
    return torch_models.save(torch_models.small("hubert"), tmp_path / "saved")


@pytest.fixture
def weights(saved) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(saved / "model.safetensors")


def rewrite(saved: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, saved / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("size", FULL_SIZES)
def test_the_table_is_the_full_size_model(size):
    family, options, count = FULL_SIZES[size]
    options = options | (LARGE_SIZE if "large" in size else {})
    with torch.device("meta"):
        model_class, config_class = torch_models.FAMILIES[family]
        model = model_class(config_class(**options))
    config = {k: list(v) if type(v) is tuple else v for k, v in model.config.to_dict().items()}
    encoder = model_config.read_encoder(config, Path("config.json"))
    theirs = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    ours, rows = state_dict.shapes(encoder), state_dict.table(encoder)
    assert len({row.ours for row in rows}) == len({row.fairseq for row in rows}) == len(rows)
    assert {row.ours for row in rows} == ours.keys()
    shapes = {row.name: (ours[row.ours] + (1,) * row.added_axes)[::-1] for row in rows}
    assert shapes == theirs
    total = state_dict.parameter_count(encoder)
    assert total == sum(x.numel() for x in model.parameters())
    assert count is None or total == count


@pytest.mark.parametrize("kind", torch_models.KINDS)
def test_in_and_out_is_bit_identical(kind, tmp_path):
    model = torch_models.small(kind)
    loaded = huggingface.load(torch_models.save(model, tmp_path / "in"))
    huggingface.write(tmp_path / "out", loaded, model_type(kind), MASKING, "card")
    theirs, ours = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("in", "out")
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    again = huggingface.load(tmp_path / "out")
    assert again.encoder == loaded.encoder and again.digest == loaded.digest
    assert same_tree(again.params, loaded.params)


@pytest.mark.parametrize(
    "kind, normalize",
    [("data2vec", True), ("hubert", False), ("hubert-large", True), ("wav2vec2", True)],
)
def test_our_features_in_transformers(kind, normalize, tmp_path):
    """Our own random parameters, raw audio far from unit variance, the extractor's own rule."""
    encoder, template = torch_models.ours(torch_models.small(kind))
    draw = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: (x + 0.1 * draw.standard_normal(x.shape)).astype(np.float32), template
    )
    loaded = with_digest(encoder, params, normalize, 16_000, "test")
    huggingface.write(tmp_path / "out", loaded, model_type(kind), MASKING, "card")
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    for samples in (719, 8000):
        pcm = np.round(3000 * torch_models.noise(samples, clips=1) + 400).astype(np.int16)
        raw = np.asarray(audio.to_float(pcm))
        given = audio.normalize(raw) if normalize else raw
        ours = jax.jit(encoder.apply)({"params": params}, given).hidden
        inputs = extractor(raw[0], sampling_rate=16_000, return_tensors="pt")
        assert ("attention_mask" in inputs) == (encoder.stem_norm == "layer")
        with torch.no_grad():
            output = model.eval()(**inputs, output_hidden_states=True)
        theirs = (*output.hidden_states[:-1], output.last_hidden_state)
        for a, b in zip(ours, theirs, strict=True):
            assert b.std() > 0.1
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("kind", ["data2vec", "hubert-large"])
def test_every_value_of_config_json_is_said(kind, tmp_path):
    encoder, params = torch_models.ours(torch_models.small(kind))
    encoder = encoder.clone(layerdrop=0.05, input_dropout=0.2, activation_dropout=0.0)
    loaded = with_digest(encoder, params, True, 24_000, "test")
    huggingface.write(tmp_path / "out", loaded, model_type(kind), MASKING, "card")
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert (config.layerdrop, config.feat_proj_dropout, config.activation_dropout) == (0.05, 0.2, 0)
    assert (config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks) == MASKING
    assert config.apply_spec_augment is False
    said = json.loads((tmp_path / "out" / "config.json").read_text()).keys()
    known = {field.name for field in dataclasses.fields(type(config))}
    # Data2VecAudioModel reads apply_spec_augment without declaring it.
    assert said - known <= {"model_type", "apply_spec_augment"}
    parts = ("hidden", "conv", "feat", "num_", "drop", "norm", "mask_time", "intermediate", "do_")
    heads = (
        "mask_feature_",
        "num_adapter",
        "num_code",
        "num_neg",
        "feat_quantizer",
        "final_",
        "output_hidden",
        "id",
    )
    concern = {x for x in known if any(p in x for p in parts) and not x.startswith(heads)}
    assert concern - said == set()
    extractor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert extractor["sampling_rate"] == 24_000 and extractor["do_normalize"] is True


@pytest.mark.parametrize(
    "kind, head_class",
    [
        ("data2vec", Data2VecAudioForCTC),
        ("hubert", HubertForCTC),
        ("wav2vec2", Wav2Vec2ForPreTraining),
        ("wav2vec2-large", Wav2Vec2ForSequenceClassification),
    ],
)
def test_heads_are_left_out(kind, head_class, tmp_path):
    config = torch_models.small(kind).config
    if head_class is Wav2Vec2ForSequenceClassification:
        config.use_weighted_layer_sum = True
    model = head_class(config)
    loaded = huggingface.load(torch_models.save(model, tmp_path / "saved"))
    assert len(model.state_dict()) > len(model.base_model.state_dict())
    assert same_tree(loaded.params, torch_models.ours(model.base_model)[1])


def test_old_names_prefix_pickle_and_half_precision(saved, weights):
    old = {
        "hubert."
        + name.replace(state_dict.LENGTH, "weight_g").replace(
            state_dict.DIRECTION, "weight_v"
        ): torch.from_numpy(x).half()
        for name, x in weights.items()
    }
    assert "hubert.encoder.pos_conv_embed.conv.weight_g" in old
    expected = huggingface.load(saved)
    (saved / "model.safetensors").unlink()
    torch.save(old, saved / "pytorch_model.bin")
    loaded = huggingface.load(saved)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), expected.params)
    assert same_tree(loaded.params, rounded)
    assert loaded.digest != expected.digest


def test_bfloat16_safetensors(saved, weights):
    expected = {name: torch.from_numpy(x).bfloat16() for name, x in weights.items()}
    safetensors.torch.save_file(expected, saved / "model.safetensors", {"format": "pt"})
    loaded = huggingface.load(saved)
    tensors = state_dict.to_tensors(loaded.encoder, loaded.params)
    assert all((tensors[name] == x.float().numpy()).all() for name, x in expected.items())


def test_shards(saved, tmp_path):
    model = torch_models.small("hubert")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    (saved / "preprocessor_config.json").rename(tmp_path / "shards" / "preprocessor_config.json")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    loaded = huggingface.load(tmp_path / "shards")
    assert same_tree(loaded.params, torch_models.ours(model)[1])
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"{shards[1].name} is missing"):
        huggingface.load(tmp_path / "shards")


def test_mert(saved):
    expected = huggingface.load(saved)
    off = {"attention_relax": -1.0, "deepnorm": False, "feature_extractor_cqt": False}
    edit_json(saved / "config.json", model_type="mert_model", sample_rate=16_000, **off)
    assert huggingface.load(saved).digest == expected.digest


def test_no_mask_embedding_where_nothing_is_masked(tmp_path):
    options = torch_models.SMALL | {"mask_time_prob": 0.0}
    model = torch_models.make("hubert", **options)
    assert "masked_spec_embed" not in model.state_dict()
    loaded = huggingface.load(torch_models.save(model, tmp_path / "saved"))
    assert not loaded.params["mask_embedding"].any()
    ours = state_dict.to_tensors(loaded.encoder, loaded.params)
    theirs = torch_models.tensors(model)
    assert ours.keys() - theirs.keys() == {"masked_spec_embed"}
    assert all(np.array_equal(ours[name], x) for name, x in theirs.items())


def test_the_digest_is_of_what_features_depend_on(saved):
    loaded = huggingface.load(saved)
    encoder, params = loaded.encoder, loaded.params

    def digest(**options) -> str:
        fields = {"normalize": True, "sample_rate": 16_000} | options
        chosen = fields.pop("encoder", encoder), fields.pop("params", params)
        return with_digest(*chosen, source="elsewhere", **fields).digest

    assert digest() == loaded.digest
    assert digest(encoder=encoder.clone(dropout=0.7, layerdrop=0.7)) == loaded.digest
    nudged = params | {"mask_embedding": np.nextafter(params["mask_embedding"], np.float32(9))}
    others = [{"normalize": False}, {"sample_rate": 24_000}, {"encoder": encoder.clone(heads=2)}]
    assert len({digest(), *(digest(**x) for x in [*others, {"params": nudged}])}) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "whisper"},
        {"model_type": None},
        {"conv_pos_batch_norm": True},
        {"add_adapter": True},
        {"adapter_attn_dim": 16},
        {"feat_proj_layer_norm": False},
        {"conv_kernel": [10, 3, 3, 3, 3, 2, 3]},
        {"conv_stride": [6, 2, 2, 2, 2, 2, 2]},
        {"hidden_act": "relu"},
        {"feat_extract_activation": "gelu_new"},
        {"layer_norm_eps": 1e-6},
        {"feat_extract_norm": "batch"},
        {"conv_dim": [32, 32, 32, 32, 32, 32, 64]},
        {"deepnorm": True},
        {"feature_extractor_cqt": True},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": 0},
        {"do_stable_layer_norm": 1},
        {"hidden_dropout": -0.1},
        {"hidden_size": 50},
    ],
)
def test_other_architectures_are_refused_by_name(saved, changes):
    edit_json(saved / "config.json", **changes)
    name = next(iter(changes))
    with pytest.raises(ValueError, match=rf"config\.json: {name}"):
        huggingface.load(saved)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": 1}, r"encoder\.layers\.1\.attention\.k_proj.* is unexpected"),
        ({"num_hidden_layers": 3}, r"encoder\.layers\.2\.attention\.q_proj.* is missing"),
        ({"hidden_size": 32}, r"masked_spec_embed is \(48,\) and should be \(32,\)"),
        ({"conv_bias": True}, r"conv_layers\.0\.conv\.bias is missing"),
        ({"feat_extract_norm": "layer"}, r"conv_layers\.1\.layer_norm\.weight is missing"),
    ],
)
def test_a_config_that_contradicts_the_weights(saved, changes, message):
    edit_json(saved / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"model\.safetensors contradicts.*{message}"):
        huggingface.load(saved)


def test_damaged_tensors(saved, weights):
    name = "encoder.layer_norm.bias"
    for changed, message in (
        ({name: weights[name][:-1]}, r"is \(47,\) and should be \(48,\)"),
        ({name: weights[name].astype(np.int32)}, "holds int32"),
        ({"extra.weight": weights[name]}, r"extra\.weight is unexpected"),
    ):
        rewrite(saved, weights | changed)
        with pytest.raises(ValueError, match=message):
            huggingface.load(saved)
    rewrite(saved, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(ValueError, match=f"{name} is missing"):
        huggingface.load(saved)


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_truncated_safetensors(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        huggingface.load(saved)


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_truncated_pickle(saved, weights, keep):
    (saved / "model.safetensors").unlink()
    path = saved / "pytorch_model.bin"
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        huggingface.load(saved)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_that_runs_code_is_refused(saved, monkeypatch):
    monkeypatch.chdir(saved)
    (saved / "model.safetensors").unlink()
    for save in (torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))):
        save({"weight": Harmful()}, saved / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is (refused|damaged)"):
            huggingface.load(saved)
    assert not (saved / "harmed").exists()


def test_a_pickle_without_pytorch(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    huggingface.load(saved)  # safetensors needs none
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="needs PyTorch to read: pip install torch"):
        huggingface.load(saved)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_and_broken_files(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(b"{" + whole[1:10])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        huggingface.load(saved)
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        huggingface.load(saved)


def test_an_occupied_output_is_refused(saved, tmp_path):
    loaded = huggingface.load(saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(FileExistsError, match="is not empty"):
        huggingface.write(saved, loaded, "hubert", MASKING, "card")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        huggingface.write(tmp_path / "file", loaded, "hubert", MASKING, "card")
    (tmp_path / "empty").mkdir()
    huggingface.write(tmp_path / "empty", loaded, "hubert", MASKING, "card")
    assert (tmp_path / "empty" / "README.md").read_text() == "card"
    assert len({path.stat().st_mode for path in (tmp_path / "empty").iterdir()}) == 1


def test_a_failed_write_leaves_nothing(saved, tmp_path, monkeypatch):
    loaded = huggingface.load(saved)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        huggingface.write(tmp_path / "out", loaded, "hubert", MASKING, "card")
    assert sorted(tmp_path.iterdir()) == before


def test_what_transformers_has_no_model_for(saved, tmp_path):
    loaded = huggingface.load(saved)
    encoder = loaded.encoder
    for changed, model, message in (
        (encoder, "data2vec-audio", "pos_conv_depth 0 is no data2vec-audio"),
        (encoder.clone(pos_conv_depth=5, stem_norm="layer"), "hubert", "pos_conv_depth 5"),
        (encoder.clone(pos_conv_depth=5), "data2vec-audio", "needs stem_norm 'layer'"),
        (encoder.clone(layers=3), "hubert", "layer_2/attention/k_proj/kernel is missing"),
        (encoder.clone(layers=1), "hubert", "layer_1/attention/q_proj/.* is unexpected"),
        (encoder.clone(ffn_width=8), "hubert", r"is \(48, 80\) and should be \(48, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            huggingface.write(
                tmp_path / "out", loaded._replace(encoder=changed), model, MASKING, "card"
            )
    assert not (tmp_path / "out").exists()
