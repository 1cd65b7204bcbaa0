"""The encoder's parameters under PyTorch's names: one table, used in both directions.

`table` pairs every parameter of `encoder.Encoder` with its name in transformers'
Data2VecAudioModel, HubertModel and Wav2Vec2Model and with its name in fairseq. Flax and PyTorch
hold the axes of dense and convolution weights in opposite order, so the layout is one
transposition.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from musicssl import environment
from musicssl.model.encoder import Encoder
from musicssl.model.stem import KERNELS

LENGTH = "parametrizations.weight.original0"  # of torch's weight_norm
DIRECTION = "parametrizations.weight.original1"
_OLD_NAMES = {"weight_g": LENGTH, "weight_v": DIRECTION}  # before PyTorch 2.0, and fairseq's
_PREFIXES = ("data2vec_audio.", "hubert.", "wav2vec2.", "mert_model.")
# Wrappers that torch.compile, DistributedDataParallel, FSDP and checkpointing put around a module.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What checkpoints hold besides the encoder: fine-tuning heads, wav2vec 2.0's quantizer, fairseq's
# pre-training heads and EMA teacher. A name that ends with a dot means a module.
HEADS = (
    *("lm_head.", "projector.", "classifier.", "layer_weights"),
    *("quantizer.", "project_q.", "project_hid."),
    *("final_proj.", "label_embs_concat", "_ema"),
)
_NAMED_AT_MOST = 3  # how many problems an error lists


class ParameterNames(NamedTuple):
    """One parameter.

    ours: its path in our tree, joined by slashes.
    name: its name in transformers.
    fairseq: its name in fairseq.
    added_axes: axes of size 1 that PyTorch has in front of ours, after the order is reversed.
    """

    ours: str
    name: str
    fairseq: str
    added_axes: int = 0


def table(encoder: Encoder) -> list[ParameterNames]:
    """Return the names of every parameter of an encoder.

    fairseq's are those of wav2vec2.py, hubert.py and data2vec_audio.py, with old weight-norm names
    already replaced.
    """
    rows = [ParameterNames("mask_embedding", "masked_spec_embed", "mask_emb")]
    for i in range(len(KERNELS)):
        name = f"feature_extractor.conv_layers.{i}"
        rows += _module(f"stem_conv_{i}", f"{name}.conv", f"{name}.0", bias=encoder.stem_bias)
        if encoder.stem_norm == "layer":
            rows += _module(f"stem_norm_{i}", f"{name}.layer_norm", f"{name}.2.1", "scale")
        elif i == 0:
            rows += _module("stem_norm_0", f"{name}.layer_norm", f"{name}.2", "scale")
    rows += _module("projection_norm", "feature_projection.layer_norm", "layer_norm", "scale")
    rows += _module("projection", "feature_projection.projection", "post_extract_proj")
    rows += _positional(encoder)
    rows += _module("encoder_norm", "encoder.layer_norm", "encoder.layer_norm", "scale")
    for i in range(encoder.layers):
        rows += _block(f"layer_{i}", f"encoder.layers.{i}")
    return rows


def _positional(encoder: Encoder) -> list[ParameterNames]:
    if not encoder.pos_conv_depth:
        names = "pos_conv_0", "encoder.pos_conv_embed.conv", "encoder.pos_conv.0"
        ours, name, fairseq = names
        length = ParameterNames(f"{ours}/length", f"{name}.{LENGTH}", f"{fairseq}.{LENGTH}", 2)
        direction = ParameterNames(
            f"{ours}/direction", f"{name}.{DIRECTION}", f"{fairseq}.{DIRECTION}"
        )
        return [length, direction, _module(*names)[1]]
    rows = []
    for i in range(encoder.pos_conv_depth):
        name = f"encoder.pos_conv_embed.layers.{i}.conv"
        rows += _module(f"pos_conv_{i}", name, f"encoder.pos_conv.{i}.0")
    return rows


def _block(ours: str, name: str) -> list[ParameterNames]:
    rows = []
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        theirs = f"{name}.attention.{part}", f"{name}.self_attn.{part}"
        rows += _module(f"{ours}/attention/{part}", *theirs)
    for part, fairseq in (("intermediate_dense", "fc1"), ("output_dense", "fc2")):
        theirs = f"{name}.feed_forward.{part}", f"{name}.{fairseq}"
        rows += _module(f"{ours}/feed_forward/{part}", *theirs)
    for part, fairseq in (
        ("layer_norm", "self_attn_layer_norm"),
        ("final_layer_norm", "final_layer_norm"),
    ):
        rows += _module(f"{ours}/{part}", f"{name}.{part}", f"{name}.{fairseq}", "scale")
    return rows


def _module(
    ours: str, name: str, fairseq: str, weight: str = "kernel", bias: bool = True
) -> list[ParameterNames]:
    """Name weight and bias of a dense layer, a convolution or, with weight="scale", a norm."""
    leaves = [(weight, "weight"), ("bias", "bias")][: 1 + bias]
    return [ParameterNames(f"{ours}/{a}", f"{name}.{b}", f"{fairseq}.{b}") for a, b in leaves]


@functools.cache
def shapes(encoder: Encoder) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every parameter by its path in our tree, without computing values.

    Traced once for each unbound encoder, which takes a third of a second for twelve blocks.
    """
    audio = jax.ShapeDtypeStruct((1, 400), np.float32)
    tree = jax.eval_shape(encoder.init, environment.key(0), audio)["params"]
    flat = traverse_util.flatten_dict(tree, sep="/")
    return MappingProxyType({path: x.shape for path, x in flat.items()})


def parameter_count(encoder: Encoder) -> int:
    """Return the number of values in all parameters."""
    return sum(math.prod(shape) for shape in shapes(encoder).values())


def to_tensors(encoder: Encoder, params: dict) -> dict[str, np.ndarray]:
    """Turn our parameter tree into transformers' state dict of contiguous float32 arrays.

    Raises:
      ValueError: the tree is not this encoder's; the message names what differs.
    """
    given, expected = traverse_util.flatten_dict(params, sep="/"), shapes(encoder)
    problems = [f"{path} is missing" for path in expected if path not in given]
    problems += [f"{path} is unexpected" for path in given if path not in expected]
    problems += [
        f"{path} is {np.shape(given[path])} and should be {shape}"
        for path, shape in expected.items()
        if path in given and np.shape(given[path]) != shape
    ]
    if problems:
        raise ValueError(f"the parameters are not this encoder's: {_listed(problems)}")

    tensors = {}
    for row in table(encoder):
        array = np.asarray(given[row.ours], np.float32)
        array = array.reshape(array.shape + (1,) * row.added_axes)
        # safetensors writes memory as it is, ignoring the strides, so C order is required.
        tensors[row.name] = np.ascontiguousarray(array.T)
    return tensors


def from_tensors(encoder: Encoder, tensors: dict[str, np.ndarray], source: str) -> dict:
    """Turn transformers' state dict into our parameter tree of float32 arrays.

    `tensors` is emptied meanwhile, so that memory holds only one copy of the model.

    Raises:
      ValueError: tensors are missing, left over or of another shape; the message names them and
        `source`.
    """
    problems, flat, expected = [], {}, shapes(encoder)
    for row in table(encoder):
        shape = (expected[row.ours] + (1,) * row.added_axes)[::-1]
        tensor = tensors.pop(row.name, None)
        if tensor is None:
            problems.append(f"{row.name} is missing")
        elif tensor.shape != shape:
            problems.append(f"{row.name} is {tensor.shape} and should be {shape}")
        elif not jax.dtypes.issubdtype(tensor.dtype, np.floating):  # bfloat16 too
            problems.append(f"{row.name} holds {tensor.dtype} and should hold floats")
        else:
            array = np.array(tensor.T, np.float32, order="C")
            flat[row.ours] = array.reshape(expected[row.ours])

    problems += [f"{name} is unexpected" for name in tensors]
    if problems:
        raise ValueError(f"{source} contradicts its configuration: {_listed(problems)}")
    return traverse_util.unflatten_dict(flat, sep="/")


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Return transformers' name for each tensor of the bare model in a file.

    Wrappers and the prefix of models with a head are removed, and old weight-norm names replaced.
    HEADS are left out. If some names begin with a wrapper or prefix, names without it are left out
    too, since they are also of heads.
    """
    bare = {name: name.split(".") for name in names}
    if any(parts[0] in _WRAPPERS for parts in bare.values()):
        bare = {name: parts for name, parts in bare.items() if parts[0] in _WRAPPERS}
    inner = {
        name: ".".join(part for part in parts if part not in _WRAPPERS)
        for name, parts in bare.items()
    }
    for prefix in _PREFIXES:
        inside = {name: x for name, x in inner.items() if x.startswith(prefix)}
        if inside:
            inner = {name: x.removeprefix(prefix) for name, x in inside.items()}
            break

    current = {}
    for name, x in inner.items():
        if any(x == head or (head[-1] == "." and x.startswith(head)) for head in HEADS):
            continue
        module, _, leaf = x.rpartition(".")
        current[name] = f"{module}.{_OLD_NAMES[leaf]}" if leaf in _OLD_NAMES else x
    return current


def _listed(problems: list[str]) -> str:
    """Name the first few problems and count the others, in one line."""
    others = len(problems) - _NAMED_AT_MOST
    return "; ".join(problems[:_NAMED_AT_MOST]) + (f"; and {others} others" if others > 0 else "")
