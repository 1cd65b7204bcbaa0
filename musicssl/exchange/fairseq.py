"""Reads fairseq's pre-training checkpoints of data2vec audio, HuBERT and wav2vec 2.0.

A .pt file holds the weights under "model" and the configuration under "cfg" (or, before 2021, as
a Namespace under "args"). Names come from the table of `state_dict`; the configuration's keys are
those of Wav2Vec2Config, HubertConfig and Data2VecAudioConfig in fairseq's models.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from musicssl import host
from musicssl.exchange import state_dict, torch_file
from musicssl.exchange.loaded import LoadedEncoder, with_digest
from musicssl.exchange.model_config import read_value
from musicssl.model.encoder import Encoder
from musicssl.model.stem import KERNELS, STRIDES

# Encoder field, fairseq's key, and a value of its kind.
_FIELDS = (
    ("layers", "encoder_layers", 12),
    ("width", "encoder_embed_dim", 768),
    ("heads", "encoder_attention_heads", 12),
    ("ffn_width", "encoder_ffn_embed_dim", 3072),
    ("stem_bias", "conv_bias", False),
    ("pos_conv_groups", "conv_pos_groups", 16),
    ("pre_norm", "layer_norm_first", False),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.0),
    ("input_dropout", "dropout_input", 0.0),
    ("layerdrop", "encoder_layerdrop", 0.05),
    ("feature_grad_mult", "feature_grad_mult", 1.0),
)
_STEM_NORMS = {"default": "group", "layer_norm": "layer"}
# Keys that early checkpoints of fairseq lack; another value means another architecture.
_FIXED = {"activation_fn": "gelu", "layer_type": "transformer", "conv_pos_batch_norm": False}


def read_checkpoint(path: str | os.PathLike) -> LoadedEncoder:
    """Read a .pt file whose weights PyTorch can read without running code from the file.

    The student is read; fairseq's EMA teacher and pre-training heads are left out.

    Raises:
      ValueError: the file is refused, damaged, or not of a supported architecture.
    """
    path = host.path(path)
    checkpoint = torch_file.read(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(f"{path} is not a fairseq checkpoint: it has no state dict named 'model'")
    model, task = _read_sections(checkpoint, path)
    encoder = read_encoder(model, path)
    tensors = torch_file.to_numpy(checkpoint["model"])

    # the tensors under transformers' names
    names = {row.fairseq: row.name for row in state_dict.table(encoder)}
    renamed = {
        names.get(current, current): tensors[name]
        for name, current in state_dict.canonical(tensors).items()
    }
    return with_digest(
        encoder,
        state_dict.from_tensors(encoder, renamed, str(path)),
        read_value(task, "normalize", False, path),
        read_value(task, "sample_rate", 16_000, path),
        f"fairseq checkpoint {path}",
    )


def _read_sections(checkpoint: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configurations of the model and of the task; in old checkpoints they are one."""
    config = checkpoint.get("cfg") or checkpoint.get("args")
    if isinstance(config, argparse.Namespace):
        config = {"model": config, "task": config}
    if not isinstance(config, dict):
        config = {}
    sections = [config.get("model"), config.get("task")]
    model, task = (vars(s) if isinstance(s, argparse.Namespace) else s for s in sections)
    if not (isinstance(model, dict) and isinstance(task, dict)):
        raise ValueError(f"{path} holds no readable configuration under 'cfg' or 'args'")
    return model, task


def read_encoder(config: dict[str, Any], path: Path) -> Encoder:
    """Return the encoder that a fairseq model configuration describes."""
    missing = [key for _, key, _ in _FIELDS if key not in config]
    missing += [key for key in ("conv_feature_layers", "conv_pos") if key not in config]
    if missing:
        raise ValueError(
            f"{path}: {missing[0]} is not configured: give a pre-training checkpoint of data2vec "
            "audio, HuBERT or wav2vec 2.0, not a fine-tuned one"
        )
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"{path}: {key} is {config[key]!r}: only models with {value!r} are supported"
            )

    # the fields that fairseq spells differently
    norm = config.get("extractor_mode", "default")
    if norm not in _STEM_NORMS:
        raise ValueError(f"{path}: extractor_mode is {norm!r}: use 'default' or 'layer_norm'")
    depth, kernel = config.get("pos_conv_depth", 1), read_value(config, "conv_pos", 128, path)
    return Encoder(
        **{field: read_value(config, key, kind, path) for field, key, kind in _FIELDS},
        stem_width=_read_stem_width(str(config["conv_feature_layers"]), path),
        stem_norm=_STEM_NORMS[norm],
        pos_conv_depth=depth if depth > 1 else 0,
        pos_conv_kernel=max(3, kernel // depth) if depth > 1 else kernel,
    )


def _read_stem_width(layers: str, path: Path) -> int:
    """Return the width of a stem written as Python, like "[(512, 10, 5)] + [(512, 2, 2)] * 6"."""
    convs = []
    for inside, times in re.findall(r"\[([^\]]*)\]\s*(?:\*\s*(\d+))?", layers):
        triples = re.findall(r"\((\d+), *(\d+), *(\d+)\)", inside)
        convs += [tuple(map(int, conv)) for conv in triples] * int(times or 1)
    widths = {conv[0] for conv in convs}
    if [conv[1:] for conv in convs] != list(zip(KERNELS, STRIDES, strict=True)) or len(widths) > 1:
        raise ValueError(
            f"{path}: conv_feature_layers is {layers}: kernels {KERNELS}, strides {STRIDES} and "
            "one width are supported"
        )
    return widths.pop()
