"""How a layer's features fill their space: isotropy, effective rank, mean cosine.

These need no labels. They show before any probe is trained whether features have collapsed, or
whether an encoder spends its width on a few directions.
"""

from typing import NamedTuple

import numpy as np

_ROWS = 2**15  # how many rows are used, spread evenly
_BLOCK = 4096


class Geometry(NamedTuple):
    """The geometry of one layer.

    isotropy: IsoScore (Rudman et al., Findings of ACL 2022), from 0, if all variance is in one
    direction, to 1, if it is the same in all. effective_rank: exp of the entropy of the singular
    values of the centred features, as shares of their sum (Roy and Vetterli, EUSIPCO 2007), from 1
    to the width. mean_cosine: between the features of two different rows (Ethayarajh, EMNLP 2019).
    """

    isotropy: float
    effective_rank: float
    mean_cosine: float


def geometry(layer: np.ndarray, rows: np.ndarray) -> Geometry:
    """Return the geometry of a layer's rows; features that do not vary have isotropy and rank 0.

    Args:
      layer: features [all rows, d] of any float type, which may be memory-mapped.
      rows: the numbers of the rows to use, at least two.
    """
    # Sums over blocks of rows, in float64.
    if len(rows) > _ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _ROWS).round().astype(int)]
    n, d = len(rows), layer.shape[1]
    total, directions, products = np.zeros(d), np.zeros(d), np.zeros((d, d))
    for begin in range(0, n, _BLOCK):
        x = layer[rows[begin : begin + _BLOCK]].astype(np.float64)
        total += x.sum(0)
        products += x.T @ x
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        directions += (x / np.maximum(norms, 1e-12)).sum(0)
    mean_cosine = float((directions @ directions - n) / (n * (n - 1)))

    # The variances along the principal directions. All steps of IsoScore together amount to
    # (r - 1) / (d - 1), where r is the participation ratio of these variances.
    covariance = products / n - np.outer(total, total) / n**2
    trace = float(np.trace(covariance))
    if trace <= 1e-12 * float(np.trace(products)) / n:
        return Geometry(0.0, 0.0, mean_cosine)
    isotropy = (trace**2 / float(np.square(covariance).sum()) - 1) / max(d - 1, 1)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(covariance), 0, None))
    shares = singular[singular > 0] / singular.sum()
    rank = float(np.exp(-(shares * np.log(shares)).sum()))
    return Geometry(isotropy, rank, mean_cosine)
