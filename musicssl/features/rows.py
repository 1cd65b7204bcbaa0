"""A task's rows of the features on disk: read whole, or as a program needs them.

Axis letters: l layers of the file, m layers taken (one, or all blocks of the weighted sum), n rows,
d width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SUM = "sum"
BLOCK = 2**15  # rows in float32 at a time

Scale = tuple[tuple[np.ndarray, np.ndarray], ...]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Features [1, m, n, d], float16, that may be memory-mapped.

    layers: m arrays [all rows, d]. rows: [n] of them. scale: each layer's mean and deviation [d],
    which `read` takes out, or none.
    """

    layers: tuple[np.ndarray, ...]
    rows: np.ndarray
    scale: Scale = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, len(self.layers), len(self.rows), self.layers[0].shape[1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows [...] of every layer: float16 [1, m, ..., d]."""
        chosen = self.rows[np.asarray(rows)]
        found = np.stack([layer[chosen] for layer in self.layers])
        for x, (mean, deviation) in zip(found, self.scale, strict=bool(self.scale)):
            x[:] = (x.astype(np.float32) - mean) / deviation
        return found[None].astype(np.float16)

    def whole(self) -> np.ndarray:
        """All of it, in memory."""
        if not self.scale and len(self.layers) == 1 and len(self.rows) == len(self.layers[0]):
            return self.layers[0][None, None]
        out = np.empty(self.shape, np.float16)
        for begin in range(0, len(self.rows), BLOCK):
            rows = np.arange(begin, min(begin + BLOCK, len(self.rows)))
            out[:, :, rows] = self.read(rows)
        return out

    def moments(self) -> Scale:
        """Mean and standard deviation of each layer's columns, which is 1 for a constant one."""
        found = []
        for layer in self.layers:
            blocks = range(0, len(self.rows), BLOCK)
            mean = sum(self._sum(layer, begin, 0.0, 1) for begin in blocks) / len(self.rows)
            square = sum(self._sum(layer, begin, mean, 2) for begin in blocks) / len(self.rows)
            deviation = np.sqrt(np.where(square > 0, square, 1))
            found.append((mean.astype(np.float32), deviation.astype(np.float32)))
        return tuple(found)

    def _sum(self, layer: np.ndarray, begin: int, mean: np.ndarray | float, power: int):
        return ((layer[self.rows[begin : begin + BLOCK]] - np.float64(mean)) ** power).sum(0)


def stored(features: np.ndarray, source: str, rows: np.ndarray) -> Stored:
    """A source ("0" to "12", or "sum": every layer but 0) of features [l, all rows, d]."""
    layers = range(1, len(features)) if source == SUM else [int(source)]
    return Stored(tuple(features[i] for i in layers), rows)


def take(x: jax.Array | Stored, rows: jax.Array) -> jax.Array:
    """Rows [...] of features [g, m, n, d], inside a program: [g, m, ..., d]."""
    if not isinstance(x, Stored):
        return x[:, :, rows]
    shape = (*x.shape[:2], *rows.shape, x.shape[3])
    return jax.pure_callback(x.read, jax.ShapeDtypeStruct(shape, jnp.float16), rows)
