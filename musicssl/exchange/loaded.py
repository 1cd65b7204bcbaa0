"""A pre-trained encoder in memory, wherever it was read from, and what it computes."""

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from musicssl.model.encoder import Encoder

_TRAINING_ONLY = ("dropout", "layerdrop", "feature_grad_mult", "dtype")  # ends of field names


class LoadedEncoder(NamedTuple):
    """A pre-trained encoder.

    params: NumPy float32 arrays in the tree of Encoder.init(...)["params"].
    normalize: whether clips have to be given zero mean and unit variance (`audio.normalize`).
    sample_rate: in Hz.
    source: a description of what was read, for messages and reports.
    digest: of everything that its features depend on; a run and its export have the same.
    revision: the commit on the Hub that it was read from, if any.
    """

    encoder: Encoder
    params: dict
    normalize: bool
    sample_rate: int
    source: str
    digest: str
    revision: str = ""


def with_digest(
    encoder: Encoder, params: dict, normalize: bool, sample_rate: int, source: str
) -> LoadedEncoder:
    """Return a loaded encoder with the digest of what it computes and of every weight."""
    what = architecture(encoder) | {"normalize": normalize, "sample_rate": sample_rate}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for path, array in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(array, np.float32).data)
    return LoadedEncoder(encoder, params, normalize, sample_rate, source, digest.hexdigest())


def architecture(encoder: Encoder) -> dict[str, Any]:
    """Return the fields that decide what an encoder computes from its weights."""
    return {
        field.name: getattr(encoder, field.name)
        for field in dataclasses.fields(encoder)
        if field.name not in ("parent", "name") and not field.name.endswith(_TRAINING_ONLY)
    }
