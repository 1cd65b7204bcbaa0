"""The table between our parameters and the tensors of transformers."""

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import (
    Data2VecAudioForCTC,
    HubertForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
)

from musicssl.exchange import huggingface, model_config, state_dict
from tests.support import torch_models
from tests.support.saved_models import same_tree

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


@pytest.mark.parametrize(
    "kind, head_class",
    [
        ("data2vec", Data2VecAudioForCTC),
        ("hubert", HubertForCTC),
        ("wav2vec2", Wav2Vec2ForPreTraining),
        ("wav2vec2-large", Wav2Vec2ForSequenceClassification),
        ("wav2vec2", Wav2Vec2ForXVector),
    ],
)
def test_heads_are_left_out(kind, head_class, tmp_path):
    config = torch_models.small(kind).config
    if head_class is Wav2Vec2ForSequenceClassification:
        config.use_weighted_layer_sum = True
    model = head_class(config)
    loaded = huggingface.read_directory(torch_models.save(model, tmp_path / "saved"))
    assert len(model.state_dict()) > len(model.base_model.state_dict())
    assert same_tree(loaded.params, torch_models.ours(model.base_model)[1])


@pytest.mark.parametrize(
    "wrap",
    [
        "_orig_mod.{}",  # of torch.compile
        "module.{}",  # of DistributedDataParallel
        "module._orig_mod.hubert.{}",
        "hubert._orig_mod.{}",
        "_fsdp_wrapped_module.hubert._fsdp_wrapped_module.{}",
    ],
)
def test_wrappers_are_taken_off_and_what_has_none_is_left_out(saved, weights, wrap):
    expected = huggingface.read_directory(saved).params
    wrapped = {wrap.format(name): x for name, x in weights.items()}
    wrapped["n_averaged"] = np.ones((), np.int64)  # torch's AveragedModel has it beside its module
    safetensors.numpy.save_file(wrapped, saved / "model.safetensors", {"format": "pt"})
    assert same_tree(huggingface.read_directory(saved).params, expected)


def test_heads_by_any_name():
    """What stands beside a model of a known name, even under a name of one of its modules."""
    names = ["wav2vec2.encoder.layer_norm.bias", "wav2vec2.masked_spec_embed"]
    heads = ["regressor.out.weight", "feature_extractor.bias", "tdnn.0.kernel.weight", "lm_head.a"]
    assert state_dict.canonical(names + heads) == {
        name: name.removeprefix("wav2vec2.") for name in names
    }
    bare = ["encoder.layer_norm.bias", "regressor.out.weight"]
    assert state_dict.canonical(bare) == {name: name for name in bare}  # it may be a mistake


def test_old_names_prefix_pickle_and_half_precision(saved, weights):
    old = {
        "hubert."
        + name.replace(state_dict.LENGTH, "weight_g").replace(
            state_dict.DIRECTION, "weight_v"
        ): torch.from_numpy(x).half()
        for name, x in weights.items()
    }
    assert "hubert.encoder.pos_conv_embed.conv.weight_g" in old
    expected = huggingface.read_directory(saved)
    (saved / "model.safetensors").unlink()
    torch.save(old, saved / "pytorch_model.bin")
    loaded = huggingface.read_directory(saved)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), expected.params)
    assert same_tree(loaded.params, rounded)
    assert loaded.digest != expected.digest
