"""fairseq checkpoints, laid out as fairseq does, against the same model in transformers."""

import argparse
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import traverse_util

from musicssl.exchange import fairseq
from tests.support import odd_files, torch_models

# transformers' names to those of fairseq's data2vec_audio.py, hubert.py and wav2vec2.py.
RENAMES = (
    (r"^masked_spec_embed", "mask_emb"),
    (r"^feature_projection\.layer_norm", "layer_norm"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"(conv_layers\.\d)\.conv\.", r"\1.0."),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "pos_conv.0.bias"),
    (r"pos_conv_embed\.layers\.(\d)\.conv\.", r"pos_conv.\1.0."),
    (r"\.attention\.", ".self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
)
MODEL = {
    "encoder_layers": 2,
    "encoder_embed_dim": 48,
    "encoder_attention_heads": 4,
    "encoder_ffn_embed_dim": 80,
    "conv_feature_layers": "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32,2,2)] + [(32,2,2)]",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 4,
    "layer_norm_first": False,
    "extractor_mode": "default",
    "activation_fn": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.1,
    "encoder_layerdrop": 0.05,
    "feature_grad_mult": 0.1,
}
KINDS = {
    "data2vec": {"extractor_mode": "layer_norm", "conv_pos": 95, "pos_conv_depth": 5},
    "hubert": {},
    "hubert-large": {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True},
    "wav2vec2": {"pos_conv_depth": 1},
}


def fairseq_name(name: str, layer_norm_stem: bool) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    norm = "2.1" if layer_norm_stem else "2"
    return re.sub(r"(conv_layers\.\d)\.layer_norm", rf"\1.{norm}", name)


def fabricate(kind: str) -> tuple[torch.nn.Module, dict]:
    """A model of transformers and the checkpoint that fairseq would have of it."""
    model, section = torch_models.small(kind), MODEL | KINDS[kind]
    layer_norm_stem = section["extractor_mode"] == "layer_norm"
    tensors = {fairseq_name(k, layer_norm_stem): v for k, v in model.state_dict().items()}
    tensors |= {"final_proj.weight": torch.zeros(3, 48), "label_embs_concat": torch.zeros(5, 3)}
    tensors["_ema"] = {"layers.0.fc1.weight": torch.zeros(80, 48)}
    task = {"normalize": layer_norm_stem, "sample_rate": 16_000}
    return model, {"args": None, "cfg": {"model": section, "task": task}, "model": tensors}


def same_tree(a: dict, b: dict) -> bool:
    a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture
def hubert(tmp_path) -> tuple[dict, Path]:
    return fabricate("hubert")[1], tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind, tmp_path):
    model, checkpoint = fabricate(kind)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    loaded = fairseq.read_checkpoint(tmp_path / "checkpoint.pt")
    encoder, params = torch_models.ours(model)
    assert same_tree(loaded.params, params)
    trained = {"layerdrop": 0.05, "activation_dropout": 0.0, "feature_grad_mult": 0.1}
    assert loaded.encoder == encoder.clone(**trained, input_dropout=0.1)
    assert loaded.normalize == (encoder.stem_norm == "layer")
    assert loaded.sample_rate == 16_000


def test_the_names_of_published_checkpoints():
    """A few in full, as `torch.load` lists them for hubert_base_ls960.pt and audio_base_ls.pt."""
    hubert, data2vec = (fabricate(kind)[1]["model"].keys() for kind in ("hubert", "data2vec"))
    assert {
        "mask_emb",
        "feature_extractor.conv_layers.0.0.weight",
        "feature_extractor.conv_layers.0.2.weight",
        "layer_norm.weight",
        "post_extract_proj.bias",
        "encoder.pos_conv.0.weight_g",
        "encoder.layers.1.self_attn.k_proj.weight",
        "encoder.layers.1.self_attn_layer_norm.bias",
        "encoder.layers.1.fc2.weight",
        "encoder.layers.1.final_layer_norm.weight",
        "encoder.layer_norm.weight",
    } <= hubert
    assert {
        "feature_extractor.conv_layers.6.2.1.weight",
        "encoder.pos_conv.4.0.weight",
    } <= data2vec


def test_half_precision_and_an_old_namespace(hubert):
    checkpoint, path = hubert
    config = checkpoint.pop("cfg")
    checkpoint["args"] = argparse.Namespace(**config["model"], **config["task"])
    checkpoint["model"] = {
        k: v.half() if isinstance(v, torch.Tensor) else v for k, v in checkpoint["model"].items()
    }
    torch.save(checkpoint, path)
    half = torch_models.small("hubert").half().float()
    assert same_tree(fairseq.read_checkpoint(path).params, torch_models.ours(half)[1])


def test_objects_beside_the_weights_are_not_made(hubert, monkeypatch):
    """HuBERT's task keeps a fairseq Dictionary, the statistics NumPy scalars."""
    checkpoint, path = hubert
    made = []
    module = types.ModuleType("fairseq.data.dictionary")
    module.Dictionary = type("Dictionary", (), {"__module__": module.__name__})
    module.Dictionary.__setstate__ = lambda self, state: made.append(self)
    for name in ("fairseq", "fairseq.data", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    dictionary = module.Dictionary()
    dictionary.symbols = ["a"]
    checkpoint["task_state"] = {"dictionaries": [dictionary]}
    checkpoint["extra_state"] = {"best": np.float64(2.5)}
    torch.save(checkpoint, path)
    assert fairseq.read_checkpoint(path).encoder.layers == 2
    assert not made


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_code_is_refused(hubert, monkeypatch):
    checkpoint, path = hubert
    monkeypatch.chdir(path.parent)
    torch.save(checkpoint | {"criterion": Harmful()}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is refused.*run code .*system"):
        fairseq.read_checkpoint(path)
    assert not (path.parent / "harmed").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"conv_feature_layers": "[(32, 10, 5)] + [(32, 3, 2)] * 6"}, "conv_feature_layers is"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "conv_feature_layers is"),
        ({"conv_feature_layers": "[print(1)] * 7"}, "conv_feature_layers is"),
        ({"activation_fn": "relu"}, "activation_fn is 'relu'"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True"),
        ({"extractor_mode": "batch"}, "extractor_mode is 'batch'"),
        ({"encoder_layers": 3}, r"encoder\.layers\.2.* is missing"),
        ({"layer_norm_first": None}, "layer_norm_first is None"),
    ],
)
def test_what_is_not_supported(hubert, changes, message):
    checkpoint, path = hubert
    checkpoint["cfg"]["model"] |= changes
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=rf"checkpoint\.pt.*{message}"):
        fairseq.read_checkpoint(path)


def test_other_files(hubert):
    checkpoint, path = hubert
    fine_tuned = {"model": {"w2v_path": "hubert.pt"}, "task": {}}
    for content, message in (
        ([1, 2], "is not a fairseq checkpoint"),
        ({"model": torch.zeros(3)}, "is not a fairseq checkpoint"),
        (checkpoint | {"cfg": None}, "no readable configuration"),
        (checkpoint | {"cfg": fine_tuned}, "encoder_layers is not configured.*not a fine-tuned"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            fairseq.read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="is damaged"):
        fairseq.read_checkpoint(path)
    path.write_bytes(odd_files.LFS_POINTER)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is a pointer of Git LFS"):
        fairseq.read_checkpoint(path)
