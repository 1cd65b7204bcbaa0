"""Frames in groups, and what a codebook makes of them."""

import numpy as np
import scipy.spatial.distance


def frames(count: int, width: int = 13, groups: int = 60, seed: int = 0) -> np.ndarray:
    """Overlapping groups of unlike size, spread and shape, in random order: float32 [n, f]."""
    rng = np.random.default_rng(seed)
    group = rng.choice(groups, count, p=rng.dirichlet(np.ones(groups)))
    centres = 4 * rng.standard_normal((groups, width)) - 10
    spread = rng.gamma(2, 0.5, (groups, width))
    noise = rng.standard_t(5, (count, width))
    return (centres[group] + spread[group] * noise).astype(np.float32)


def inertia(codebook: np.ndarray, features: np.ndarray) -> float:
    return scipy.spatial.distance.cdist(features, codebook, "sqeuclidean").min(1).mean()
