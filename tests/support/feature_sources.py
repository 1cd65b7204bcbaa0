"""A tiny encoder as a source of features, and records for it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from musicssl.features import extract, windows
from musicssl.model.encoder import Encoder
from musicssl.runtime import sharding
from tests.support import tiny

RATE = 16_000
LENGTHS = np.array([40_000, 16_000, 51_000, 9_000])  # at 1 s: 2.5, 1, 3.19 and 0.56 windows
SEED = 4


@functools.cache
def source(normalize: bool = True, digest: str = "tiny") -> extract.FeatureSource:
    encoder = Encoder(**tiny.config().encoder)
    params = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, 400)))["params"])
    params = jax.tree.map(np.asarray, params(jax.random.key(0)))

    apply = functools.partial(extract.hidden_states, encoder)
    layers, width = encoder.layers + 1, encoder.width
    return extract.FeatureSource("tiny", digest, layers, width, RATE, normalize, params, apply)


def read(record: int) -> np.ndarray:
    random = np.random.default_rng((SEED, record))
    return random.integers(-9000, 9000, LENGTHS[record], dtype=np.int16)


def get(folder: Path, pools=(windows.WHOLE, 25, 1), read=read, of=None) -> dict[int, np.ndarray]:
    cut = windows.cut(LENGTHS, 1.0, RATE)
    of = of or source()
    mesh = sharding.make_mesh()
    return extract.extract(of, cut, read, pools, folder, "data", mesh, batch=3)
