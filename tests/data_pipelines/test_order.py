import numpy as np
import pytest

from data_pipelines import order

MASK = 2**64 - 1


def splitmix(seed: int) -> int:
    """First output of SplitMix64, with Python's own integers."""
    z = (seed + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def chained(*words: int) -> int:
    state = 0
    for word in words:
        state = splitmix(state ^ word)
    return state


def test_hash_is_splitmix64():
    # The outputs of the reference program for these two seeds.
    assert order.hash64(0) == 0xE220A8397B1DCDAF
    assert order.hash64(1234567) == 6457827717110365317
    assert [splitmix(0), splitmix(1234567)] == [0xE220A8397B1DCDAF, 6457827717110365317]
    values = np.array([0, 1, 2**40, 2**62])
    expected = [chained(MASK, 3, int(value)) for value in values]
    assert order.hash64(-1, 3, values).tolist() == expected


@pytest.mark.parametrize("records", [1, 2, 7, 1000])
def test_epoch_order_sorts_all_records_by_their_hash(records):
    for seed, epoch in [(0, 0), (0, 1), (5, 0)]:
        keys = [chained(seed, order.ORDER, epoch, record) for record in range(records)]
        expected = sorted(range(records), key=keys.__getitem__)
        assert order.epoch_order(records, seed, epoch).tolist() == expected


def test_the_order_of_a_seed_never_changes():
    """A change here changes what every run that goes on would read."""
    assert order.epoch_order(10, 1, 0).tolist() == [3, 1, 9, 6, 2, 4, 7, 8, 0, 5]
    starts = order.crop_starts(np.full(4, 480_000), 80_000, 1, np.arange(4), np.arange(4))
    assert starts.tolist() == [314684, 353387, 262117, 144514]


def test_epochs_and_seeds_have_unrelated_orders():
    orders = [order.epoch_order(5000, *key) for key in [(1, 0), (1, 1), (2, 0), (2, 1)]]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.06  # 4 sigma of 5000 pairs
            assert (first == second).sum() < 10  # 1 is expected


def test_crop_starts_are_uniform_over_all_that_fit():
    records = np.arange(40_000)
    starts = order.crop_starts(np.full(40_000, 109), 100, 3, records // 7, records)
    counts = np.bincount(starts)
    assert len(counts) == 10  # 0 ... 109 - 100
    assert ((counts - 4000) ** 2 / 4000).sum() < 33.7  # chi-square, 9 degrees, p = 0.0001


def test_records_no_longer_than_the_crop_start_at_their_beginning():
    starts = order.crop_starts(np.array([100, 99, 1, 0]), 100, 3, np.zeros(4, int), np.arange(4))
    assert starts.tolist() == [0, 0, 0, 0]


def test_places_cross_epochs_as_they_would_one_by_one():
    plan = order.Shuffled(np.arange(1000, 1007), seed=9, samples=500)
    places = np.arange(3, 40)
    records, starts = plan(places)
    single = [plan(np.array([place])) for place in places]
    np.testing.assert_array_equal(records, np.concatenate([record for record, _ in single]))
    np.testing.assert_array_equal(starts, np.concatenate([start for _, start in single]))
    for epoch in range(1, 5):
        at = records[epoch * 7 - 3 : epoch * 7 + 4]
        assert sorted(at) == list(range(7))


def test_one_pass_in_order_ends_with_no_record():
    records, starts = order.InOrder(5)(np.arange(3, 8))
    assert records.tolist() == [3, 4, -1, -1, -1]
    assert not starts.any()
