"""A tiny encoder as a source of features, and records for it."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from musicssl.features import extract, windows
from musicssl.model.encoder import Encoder
from musicssl.runtime import sharding
from tests.support import tiny

RATE = 16_000
SECONDS = 1.5
# Of records: two windows and a remainder of just over a second, one window, three and a remainder
# that is dropped, and a record that is shorter than a window.
LENGTHS = np.array([64_017, 24_000, 74_000, 17_123])
SEED = 4


@functools.cache
def source(
    normalize: bool = True, digest: str = "tiny", stem_norm: str = "layer"
) -> extract.FeatureSource:
    encoder = Encoder(**tiny.config({"encoder.stem_norm": stem_norm}).encoder)
    params = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, 400)))["params"])
    params = jax.tree.map(np.asarray, params(jax.random.key(0)))

    apply = functools.partial(extract.hidden_states, encoder)
    layers, width = encoder.layers + 1, encoder.width
    return extract.FeatureSource("tiny", digest, layers, width, RATE, normalize, params, apply)


def read(record: int) -> np.ndarray:
    random = np.random.default_rng((SEED, record))
    return random.integers(-9000, 9000, LENGTHS[record], dtype=np.int16)


def get(
    folder: Path,
    pools: Sequence[int] = (windows.WHOLE, 25, 1),
    read: Callable[[int], np.ndarray] = read,
    of: extract.FeatureSource | None = None,
    standardised_alone: bool = False,
) -> dict[int, np.ndarray]:
    of = of or source()
    cut = windows.cut(LENGTHS, SECONDS, RATE, standardised_alone, of.frames)
    mesh = sharding.make_mesh()
    return extract.extract(of, cut, read, pools, folder, "data", mesh, batch=3)
