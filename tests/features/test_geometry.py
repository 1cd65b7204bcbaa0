"""Isotropy, effective rank and mean cosine against their papers' steps, with NumPy and sklearn."""

import numpy as np
import pytest
import sklearn.decomposition
import sklearn.metrics

from musicssl.features import geometry


def isoscore(x: np.ndarray) -> float:
    """The seven steps of Rudman et al. (2022), algorithm 1, with scikit-learn's PCA."""
    n = x.shape[1]
    rotated = sklearn.decomposition.PCA(n_components=n).fit_transform(x)
    diagonal = np.var(rotated, axis=0)
    normalised = np.sqrt(n) * diagonal / np.linalg.norm(diagonal)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    used = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return float((n * used - 1) / (n - 1))


def effective_rank(x: np.ndarray) -> float:
    """Roy and Vetterli (2007), definition 1, by a singular value decomposition."""
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    shares = singular / singular.sum()
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_what_the_papers_define(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(9000)[:8500])  # more than a block
    x = random.standard_normal((9000, 24)) * np.linspace(0.1, 3, 24) + random.standard_normal(24)
    layer = x.astype(np.float16)
    taken = layer[rows].astype(np.float64)
    found = geometry.geometry(layer, rows)
    assert found.isotropy == pytest.approx(isoscore(taken), abs=1e-6)
    assert found.effective_rank == pytest.approx(effective_rank(taken), rel=1e-6)
    cosines = sklearn.metrics.pairwise.cosine_similarity(taken)
    mean = (cosines.sum() - len(taken)) / (len(taken) * (len(taken) - 1))
    assert found.mean_cosine == pytest.approx(mean, abs=1e-9)


def test_the_ends_of_the_scales() -> None:
    random = np.random.default_rng(0)
    round_ball = geometry.geometry(random.standard_normal((20_000, 16)), np.arange(20_000))
    assert round_ball.isotropy > 0.99 and round_ball.effective_rank > 15.9
    assert abs(round_ball.mean_cosine) < 0.01
    line = np.outer(random.standard_normal(500), np.ones(16))
    found = geometry.geometry(line, np.arange(500))
    assert found.isotropy == pytest.approx(0, abs=1e-9)
    assert found.effective_rank == pytest.approx(1, abs=1e-3)
    same = geometry.geometry(np.full((500, 16), 3.0), np.arange(500))
    assert (same.isotropy, same.effective_rank) == (0, 0) and same.mean_cosine == pytest.approx(1)


def test_of_many_rows_some_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = np.random.default_rng(0).standard_normal((1000, 8))
    whole = geometry.geometry(layer, np.arange(0, 1000, 999 / 99).round().astype(int)[:100])
    monkeypatch.setattr(geometry, "_ROWS", 100)
    assert geometry.geometry(layer, np.arange(1000)) == pytest.approx(whole, rel=0.1)
