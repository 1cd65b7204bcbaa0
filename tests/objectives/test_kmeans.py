from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from musicssl.objectives import kmeans
from musicssl.objectives.kmeans import Settings, State
from tests.support import commands
from tests.support.clustered import frames, inertia


def settings(clusters: int, **changes: int | float) -> Settings:
    values = {"seed": 0, "sample": 4_000, "restarts": 2, "polish": 5, "passes": 10}
    return Settings(clusters=clusters, **(values | {"tolerance": 0.0} | changes))


def stream(features: np.ndarray, batch: int = 1_000) -> Callable[[int], Iterator[np.ndarray]]:
    """A `next_pass` over [n, f] in batches of [rows, 10, f], as clips come."""

    def next_pass(index: int) -> Iterator[np.ndarray]:
        for start in range(0, len(features), batch):
            yield features[start : start + batch].reshape(-1, 10, features.shape[-1])

    return next_pass


def begun(codebook: np.ndarray) -> State:
    return State(codebook, np.zeros(len(codebook), np.int64), np.zeros(0), finished=False)


@pytest.mark.parametrize("count", [40, 1024, 2000])  # less than a block, whole blocks, neither
def test_assign_gives_the_nearest_row(count: int) -> None:
    features, codebook = frames(count), frames(37, seed=1)
    nearest = scipy.spatial.distance.cdist(features, codebook).argmin(1)
    labels = jax.jit(kmeans.assign)(codebook, features.reshape(4, count // 4, -1))
    assert labels.shape == (4, count // 4)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels.reshape(-1), nearest)
    assert len(np.unique(labels)) > 10


@pytest.mark.parametrize("clusters", [1, 2, 3, 35, 36, 37, 100, 2000])
def test_the_argmin_of_cpus_is_argmin(clusters: int) -> None:
    values = np.random.default_rng(0).standard_normal((3, 50, clusters)).astype(np.float32)
    ours = jax.jit(kmeans._argmin_on_cpu)(values)
    np.testing.assert_array_equal(ours, values.argmin(-1))
    assert not np.any(kmeans._argmin_on_cpu(np.full((4, clusters), np.inf)) >= clusters)


def test_a_pass_is_lloyds() -> None:
    features = frames(3_000)
    first = features[:40]
    state = kmeans.fit(stream(features), settings(40, passes=1), state=begun(first))
    labels = scipy.spatial.distance.cdist(features, first).argmin(1)
    means = [features[labels == row].mean(0, dtype=np.float64) for row in range(40)]
    np.testing.assert_allclose(state.codebook, means, atol=1e-4)
    np.testing.assert_allclose(state.inertia, [inertia(first, features)], rtol=1e-5)
    np.testing.assert_array_equal(state.counts, np.bincount(labels, minlength=40))


def test_passes_end_where_those_of_scikit_learn_end() -> None:
    features = frames(3_000)
    state = kmeans.fit(stream(features), settings(20, passes=300), state=begun(features[:20]))
    theirs = KMeans(20, init=features[:20], n_init=1, max_iter=300, tol=0).fit(features)
    np.testing.assert_allclose(state.codebook, theirs.cluster_centers_, atol=1e-3)
    assert 2 < state.passes < 300


def test_inertia_is_no_higher_than_that_of_mini_batches() -> None:
    features = frames(8_000, groups=300)
    ours = kmeans.fit(stream(features), settings(50)).codebook
    with threadpool_limits(1):  # its threads spin where cores are shared
        theirs = MiniBatchKMeans(50, batch_size=2_000, n_init=3, random_state=0).fit(features)
    assert inertia(ours, features) <= inertia(theirs.cluster_centers_, features)


def test_a_fit_resumes_to_the_same_bits_from_every_state() -> None:
    features, states = frames(4_000), []
    wanted = settings(50, passes=4)
    whole = kmeans.fit(stream(features), wanted, on_pass=states.append)
    assert whole.finished
    assert [state.passes for state in states] == [0, 1, 2, 3, 4]
    for begun in states:
        resumed = kmeans.fit(stream(features), wanted, state=begun)
        for ours, theirs in zip(resumed, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_passes_are_asked_for_by_number() -> None:
    features, asked = frames(2_000), []

    def next_pass(index: int) -> Iterator[np.ndarray]:
        asked.append(index)
        return stream(features)(index)

    kmeans.fit(next_pass, settings(10, passes=3))
    assert asked == [0, 1, 2, 3]


def test_the_tolerance_ends_the_fit() -> None:
    state = kmeans.fit(stream(frames(4_000)), settings(50, passes=50, tolerance=0.01))
    gains = 1 - state.inertia[1:] / state.inertia[:-1]
    assert state.passes < 50
    assert gains[-1] <= 0.01
    assert (gains[:-1] > 0.01).all()


def test_rows_without_frames_are_put_to_use() -> None:
    features = frames(4_000)
    far = np.full((10, features.shape[1]), 1e4, np.float32)
    started = np.concatenate([features[:30], far])
    once = kmeans.fit(stream(features), settings(40, passes=1), state=begun(started))
    assert once.usage == 0.75
    often = kmeans.fit(stream(features), settings(40, passes=10), state=begun(started))
    assert often.usage == 1
    fewer = kmeans.fit(stream(features), settings(30, passes=10), state=begun(features[:30]))
    assert often.inertia[-1] < 0.95 * fewer.inertia[-1]


def test_identical_frames_give_one_used_row() -> None:
    silence = np.full((500, 13), -15.9, np.float32)
    state = kmeans.fit(stream(silence), settings(8))
    assert state.usage == 1 / 8
    assert state.perplexity == 1
    np.testing.assert_allclose(state.inertia, 0, atol=1e-6)


def test_usage_and_perplexity_are_those_of_the_counts() -> None:
    state = State(np.zeros((4, 2)), np.array([2, 1, 1, 0]), np.zeros(0), finished=False)
    assert state.usage == 0.75
    np.testing.assert_allclose(state.perplexity, 2**1.5)


def test_unusable_input_is_refused() -> None:
    features = frames(500)
    with pytest.raises(ValueError, match="500 frames, fewer than the 501 clusters"):
        kmeans.fit(stream(features), settings(501))
    with pytest.raises(ValueError, match="gave no features"):
        kmeans.fit(stream(features[:0]), settings(10))
    with pytest.raises(ValueError, match="sample of 4000 frames cannot seed 4001"):
        settings(4_001)
    with pytest.raises(ValueError, match="restarts of k-means is 0"):
        settings(10, restarts=0)
    with pytest.raises(ValueError, match="has 20 clusters and the settings ask for 10"):
        kmeans.fit(stream(features), settings(10), state=begun(features[:20]))
    with pytest.raises(ValueError, match="features of 13 values do not fit a codebook of 12"):
        kmeans.fit(stream(features), settings(10), state=begun(features[:10, :12]))
    features[250, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        kmeans.fit(stream(features), settings(10))
    with pytest.raises(ValueError, match="NaN or infinity"):
        kmeans.fit(stream(features), settings(10), state=begun(features[:10]))


ON_EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from musicssl.objectives import kmeans
from tests.objectives import test_random_projection as random
from tests.objectives.test_kmeans import frames, settings, stream

features = frames(4_000)
alone = kmeans.fit(stream(features, batch=800), settings(40))
drawn, batches = random.fitted(features), random.batches
mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
with jax.set_mesh(mesh):
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    sharded = lambda i: (jax.device_put(x, rows) for x in stream(features, batch=800)(i))
    together = kmeans.fit(sharded, settings(40))
    totals = (np.zeros((40, 14), np.float32), np.zeros(40, np.int32))
    batch = next(sharded(0))
    labels = jax.jit(kmeans.assign)
    text = labels.lower(alone.codebook, batch).compile().as_text()
    assert "all-" not in text
    assert labels(alone.codebook, batch).sharding.is_equivalent_to(rows, 2)
    text = kmeans._accumulate.lower(totals, alone.codebook, batch).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text
    random.batches = lambda x: (jax.device_put(y, rows) for y in batches(x, 800))
    measured = random.fitted(features)
np.testing.assert_allclose(measured.mean, drawn.mean, rtol=1e-4)
np.testing.assert_allclose(measured.deviation, drawn.deviation, rtol=1e-4)
assert abs(measured.counts - drawn.counts).sum() < 8
np.testing.assert_allclose(together.codebook, alone.codebook, atol=1e-3)
np.testing.assert_allclose(together.inertia, alone.inertia, rtol=1e-5)
print("same on", jax.device_count())
"""


def test_eight_devices_find_the_same_codebook() -> None:
    output, errors = commands.Process(exec, ON_EIGHT_DEVICES, {}, devices=8).communicate()
    assert output.strip() == "same on 8", errors
