"""A task's rows of the features on disk: read as a whole, or as a program needs them.

Axis letters: l layers of the file, m layers taken (one, or all blocks of the weighted sum), n rows,
d width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SUM, CONCAT = "sum", "concat"  # the weighted sum of the blocks; all layers side by side
_BLOCK = 2**15  # rows in float32 at a time

Scale = tuple[tuple[np.ndarray, np.ndarray], ...]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Features [1, m, n, d], float16, that may be memory-mapped.

    layers: m arrays [all rows, d].
    rows: the numbers of the rows that are used, [n].
    scale: each layer's mean and standard deviation [d], by which `read` standardises; or nothing.
    """

    layers: tuple[np.ndarray, ...]
    rows: np.ndarray
    scale: Scale = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape [1, m, n, d]."""
        return 1, len(self.layers), len(self.rows), self.layers[0].shape[1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows [...] of every layer: float16 [1, m, ..., d]."""
        chosen = self.rows[np.asarray(rows)]
        values = np.stack([layer[chosen] for layer in self.layers])
        for x, (mean, deviation) in zip(values, self.scale, strict=bool(self.scale)):
            x[:] = (x.astype(np.float32) - mean) / deviation
        return values[None].astype(np.float16)

    def whole(self) -> np.ndarray:
        """Read all rows into memory."""
        if not self.scale and len(self.layers) == 1 and len(self.rows) == len(self.layers[0]):
            return self.layers[0][None, None]
        out = np.empty(self.shape, np.float16)
        for begin in range(0, len(self.rows), _BLOCK):
            rows = np.arange(begin, min(begin + _BLOCK, len(self.rows)))
            out[:, :, rows] = self.read(rows)
        return out

    def moments(self) -> Scale:
        """Return mean and standard deviation of each layer's columns; 1 for a constant column."""
        moments = []
        for layer in self.layers:
            blocks = range(0, len(self.rows), _BLOCK)
            mean = sum(self._sum(layer, begin, 0.0, 1) for begin in blocks) / len(self.rows)
            square = sum(self._sum(layer, begin, mean, 2) for begin in blocks) / len(self.rows)
            deviation = np.sqrt(np.where(square > 0, square, 1))
            moments.append((mean.astype(np.float32), deviation.astype(np.float32)))
        return tuple(moments)

    def _sum(self, layer: np.ndarray, begin: int, mean: np.ndarray | float, power: int):
        """Sum powers of a block's distances from the mean: [d]."""
        return ((layer[self.rows[begin : begin + _BLOCK]] - np.float64(mean)) ** power).sum(0)


def stored(features: np.ndarray, source: str, rows: np.ndarray) -> Stored:
    """Return rows of a source of features [l, all rows, d].

    Args:
      source: as of `layers_of`.
      rows: the numbers of the rows to use.
    """
    return Stored(tuple(features[i] for i in layers_of(source, len(features))), rows)


def layers_of(source: str, layers: int) -> list[int]:
    """Return the numbers of a source's layers, given how many layers there are.

    Args:
      source: a layer, "0" to "12", "sum" (every layer but 0) or "concat" (every layer).
    """
    if source == SUM:
        return list(range(1, layers))
    return list(range(layers)) if source == CONCAT else [int(source)]


def take(x: jax.Array | Stored, rows: jax.Array) -> jax.Array:
    """Take rows [...] of features [g, m, n, d], inside a program: [g, m, ..., d]."""
    if not isinstance(x, Stored):
        return x[:, :, rows]
    shape = (*x.shape[:2], *rows.shape, x.shape[3])
    return jax.pure_callback(x.read, jax.ShapeDtypeStruct(shape, jnp.float16), rows)
