"""Configurations of transformers, read and written, and those that are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import (
    AutoModel,
)

from musicssl.exchange import huggingface
from musicssl.exchange.loaded import with_digest
from tests.support import torch_models
from tests.support.saved_models import MASKING, model_type


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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


def test_mert(saved):
    expected = huggingface.read_directory(saved)
    off = {"attention_relax": -1.0, "deepnorm": False, "feature_extractor_cqt": False}
    edit_json(saved / "config.json", model_type="mert_model", sample_rate=16_000, **off)
    assert huggingface.read_directory(saved).digest == expected.digest


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
        huggingface.read_directory(saved)


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
        huggingface.read_directory(saved)


def test_what_transformers_has_no_model_for(saved, tmp_path):
    loaded = huggingface.read_directory(saved)
    encoder = loaded.encoder
    for changed, model, message in (
        (encoder, "data2vec-audio", "pos_conv_depth 0 is not a data2vec-audio"),
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
