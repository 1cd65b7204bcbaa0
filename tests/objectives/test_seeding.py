"""Greedy k-means++, beside scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import kmeans_plusplus

from musicssl.objectives import kmeans, seeding
from tests.support.clustered import frames, inertia


def test_seeds_are_as_good_as_those_of_scikit_learn() -> None:
    features = frames(5_000, groups=300)
    ours, theirs = [], []
    for seed in range(4):
        codebook, total = seeding.plus_plus(seed, 0, features, clusters=100)
        np.testing.assert_allclose(total / len(features), inertia(codebook, features), rtol=1e-4)
        assert len(np.unique(codebook, axis=0)) == 100
        ours.append(total / len(features))
        seeds, _ = kmeans_plusplus(features, 100, random_state=seed)
        theirs.append(inertia(seeds, features))
    assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_seeds_find_every_one_of_far_groups() -> None:
    centres = 100 * np.eye(30, dtype=np.float32)
    sample = np.repeat(centres, 20, axis=0) + frames(600, width=30) / 100
    codebook, _ = seeding.plus_plus(0, 0, sample, clusters=30)
    assert set(kmeans.assign(centres, codebook).tolist()) == set(range(30))


def test_compiled_seeding_does_not_grow_with_the_clusters() -> None:
    sample = jax.ShapeDtypeStruct((4_000, 39), jnp.float32)
    texts = [seeding.plus_plus.lower(0, 0, sample, clusters=k).as_text() for k in (500, 2000)]
    assert "while" in texts[0]
    assert abs(len(texts[0]) - len(texts[1])) < 0.01 * len(texts[0])


def drawn_from(numbers: np.ndarray, size: int) -> np.ndarray:
    """A sample of that size of a stream of numbers [n, 1], which come by the thousand."""
    sample = seeding.Sample(0, size)
    for start in range(0, len(numbers), 1_000):
        sample.add(numbers[start : start + 1_000].reshape(-1, 10, 1))
    return sample.frames()[:, 0]


def test_the_sample_is_spread_over_the_whole_stream() -> None:
    numbers = np.arange(20_000, dtype=np.float32)[:, None]
    drawn = drawn_from(numbers, 2_000)
    assert len(np.unique(drawn)) == 2_000
    batches = np.bincount((drawn // 1_000).astype(int), minlength=20)
    assert batches.min() > 60  # 100 expected, standard deviation below 10
    assert batches.max() < 140
    everything = drawn_from(numbers, 30_000)
    np.testing.assert_array_equal(np.sort(everything), numbers[:, 0])
