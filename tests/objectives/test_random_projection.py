"""The random-projection quantiser against NumPy, and what it is made of."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicssl.objectives import kmeans, random_projection
from musicssl.objectives.random_projection import Fit, Settings, State
from tests.support.clustered import frames


def settings(**changes: object) -> Settings:
    given = {"name": "mel", "clusters": 64, "seed": 1337, "dimensions": 16}
    return Settings(**given | changes)


def batches(features: np.ndarray, size: int = 500) -> Iterator[np.ndarray]:
    for start in range(0, len(features), size):
        yield features[start : start + size].reshape(-1, 10, features.shape[-1])


def fitted(features: np.ndarray, state: State | None = None, **changes: object) -> State:
    fit = Fit(settings(**changes), state)
    while not fit.finished:
        for batch in batches(features):
            fit.add(batch)
        fit.end_pass()
    return fit.state


def codes_by_definition(state: State, features: np.ndarray) -> np.ndarray:
    """BEST-RQ's equation: the row nearest to A x where all have length 1, in float64."""
    standard = (features - features.mean(0)) / features.std(0)
    projected = standard @ state.projection.astype(np.float64)
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    rows = state.codebook / np.linalg.norm(state.codebook, axis=1, keepdims=True)
    return np.square(projected[:, None] - rows).sum(-1).argmin(1)


def test_codes_are_those_of_best_rq() -> None:
    features = frames(4_000, width=40).astype(np.float64) * np.linspace(0.1, 9, 40) + 50
    state = fitted(features.astype(np.float32))
    wanted = codes_by_definition(state, features)
    labels = jax.jit(random_projection.assign)(
        state.quantizer, features.astype(np.float32).reshape(4, 1000, 40)
    )
    assert labels.shape == (4, 1000) and labels.dtype == jnp.int32
    assert np.mean(labels.reshape(-1) != wanted) < 2e-3  # two rows as near as rounding can tell
    np.testing.assert_array_equal(state.counts, np.bincount(labels.reshape(-1), minlength=64))
    assert len(np.unique(labels)) > 48


def test_mean_and_deviation_are_those_of_all_frames() -> None:
    """Far from 0, in batches that differ, where squares of float32 would have no digits left."""
    features = frames(3_250, width=12).astype(np.float64)
    features += np.linspace(0, 2000, 12) + np.repeat(np.arange(13), 250)[:, None]
    features[:, 3] = 7
    state = fitted(features.astype(np.float32))
    np.testing.assert_allclose(state.mean, features.mean(0), rtol=1e-6)
    deviation = features.std(0)
    deviation[3] = 1
    np.testing.assert_allclose(state.deviation, deviation, rtol=1e-3)


def test_a_draw_is_a_function_of_seed_and_name() -> None:
    projection, codebook = random_projection.draw(settings(), 300)
    assert projection.shape == (300, 16) and codebook.shape == (64, 16)
    assert projection.std() == pytest.approx(np.sqrt(2 / 316), rel=0.05)  # Xavier's
    np.testing.assert_allclose(np.linalg.norm(codebook, axis=1), 1, rtol=1e-6)
    again, _ = random_projection.draw(settings(), 300)
    np.testing.assert_array_equal(again, projection)
    for changes in ({"seed": 1}, {"name": "mel_2"}):
        other, _ = random_projection.draw(settings(**changes), 300)
        assert abs(np.corrcoef(other.ravel(), projection.ravel())[0, 1]) < 0.1


def test_normalisation_puts_more_codes_to_use() -> None:
    """The paper calls it critical."""
    features = frames(4_000, width=40) + np.linspace(0, 30, 40, dtype=np.float32)
    state = fitted(features)
    plain = {"mean": np.zeros(40, np.float32), "deviation": np.ones(40, np.float32)}
    labels = random_projection.assign(state.quantizer | plain, features)
    without = kmeans.perplexity(np.bincount(labels, minlength=64))
    assert kmeans.perplexity(state.counts) > 4 * without


def test_a_fit_goes_on_from_its_state() -> None:
    features = frames(1_000)
    fit = Fit(settings())
    for batch in batches(features):
        fit.add(batch)
    fit.end_pass()
    assert fit.state.passes == 0 and not fit.finished
    whole = fitted(features)
    assert whole.passes == 1
    for ours, theirs in zip(fitted(features, fit.state), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_unusable_input_is_refused() -> None:
    fit = Fit(settings())
    with pytest.raises(ValueError, match="gave no features: check the data set"):
        fit.end_pass()
    features = frames(100)
    features[3, 5] = np.nan
    fit.add(features)
    with pytest.raises(ValueError, match="NaN or infinity: check the audio"):
        fit.end_pass()
