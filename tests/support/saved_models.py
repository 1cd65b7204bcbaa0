"""Small models of transformers on disk, and changes to their files."""

import numpy as np
from flax import traverse_util

from musicssl.exchange import model_config
from tests.support import torch_models

MASKING = model_config.Masking(0.65, 10, 1)


def model_type(kind: str) -> str:
    family = torch_models.KINDS[kind][0]
    return "data2vec-audio" if family == "data2vec" else family


def same_tree(a: dict, b: dict) -> bool:
    a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
