"""The order "blocks", beside a plain queue of windows, and what it promises."""

import collections
import itertools
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines import block_order
from data_pipelines.block_order import Blocks

LENGTHS = np.full(1013, 480_000)
SAMPLES = 82_000  # 5.1 s


@pytest.fixture
def small(monkeypatch):
    """Fewer lanes and smaller blocks than runs have, so that epochs end soon."""
    monkeypatch.setattr(block_order, "LANES", 6)
    monkeypatch.setattr(block_order, "RECORDS", 3)


def queued(plan: Blocks, steps: int) -> list[list[int]]:
    """The numbers of the windows that the rows of each step are in, by a queue of lanes.

    Whichever lane comes to the end of its window first takes the next one; of several, the first.
    """
    lanes = range(plan.lanes)
    batch = range(plan.batch_size)
    rows = collections.Counter(row * plan.lanes // plan.batch_size for row in batch)
    free = [Fraction(-int(plan.phase[lane]), rows[lane]) for lane in lanes]  # in steps
    numbers = itertools.count()
    windows: list[list[tuple[Fraction, int]]] = [[] for _ in lanes]
    while min(free) <= steps:
        lane = min(lanes, key=lambda x: (free[x], x))
        windows[lane].append((free[lane], next(numbers)))
        free[lane] += Fraction(plan.size, rows[lane])
    found = []
    for step in range(steps):
        found.append([])
        for lane in lanes:
            for i in range(rows[lane]):
                time = step + Fraction(i, rows[lane])
                found[-1].append(max(number for begin, number in windows[lane] if begin <= time))
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 6, 13, 24, 50])
def test_windows_are_those_of_a_queue(small, batch_size):
    plan, steps = Blocks(LENGTHS, 1, SAMPLES, batch_size), 60
    places = np.arange(steps * batch_size)
    records, starts = plan(places)
    assert (starts >= 0).all() and (starts <= LENGTHS[records] - SAMPLES).all()
    for place, number in enumerate(itertools.chain.from_iterable(queued(plan, steps))):
        window = plan.windows(number)
        assert records[place] in window.records
        assert plan.block_of(records[place]) in window.blocks


@pytest.mark.parametrize("records", [1, 2, 7, 60, 61, 1013])
def test_an_epoch_has_every_record_as_often_as_it_is_visited(small, records):
    plan = Blocks(LENGTHS[:records], 3, SAMPLES, 24)
    assert plan.visits == 4 and plan.size == 24
    blocks = [plan.records_of(block) for block in range(plan.count)]
    assert list(itertools.chain.from_iterable(blocks)) == list(range(records))
    assert all(1 <= len(block) <= 3 for block in blocks)
    assert all(plan.block_of(record) == i for i, block in enumerate(blocks) for record in block)
    windows = [plan.windows(number) for number in range(plan.count)]  # two epochs
    taken = np.concatenate([window.blocks for window in windows])
    for epoch in np.split(taken, 2):
        assert sorted(epoch) == list(range(plan.count))
    visited = np.bincount(np.concatenate([w.records.ravel() for w in windows]), minlength=records)
    assert visited.min() >= 2 * 4
    if records > 100:
        assert visited.max() <= 3 * 4 and visited.mean() < 8.2
        assert not np.array_equal(taken[: plan.count], taken[plan.count :])


def test_batches_are_the_same_for_any_hosts_and_any_start():
    whole = Blocks(LENGTHS, 1, SAMPLES, 752)(np.arange(20 * 752))
    rows = np.arange(752) + 752 * np.arange(20)[:, None]  # [steps, rows]
    for hosts in (2, 8, 16):
        for host in (0, hosts - 1):
            mine = rows[7:, host * 752 // hosts : (host + 1) * 752 // hosts].ravel()
            part = Blocks(LENGTHS, 1, SAMPLES, 752)(mine)
            np.testing.assert_array_equal(part, [x[mine] for x in whole])


def test_other_seeds_and_epochs_are_other_orders():
    places = np.arange(3 * 64 * 160)
    first, second = (Blocks(LENGTHS, seed, SAMPLES, 64)(places) for seed in (1, 2))
    assert (first[0] != second[0]).mean() > 0.99
    crops = collections.defaultdict(set)
    for record, start in zip(*first, strict=True):
        crops[record].add(int(start))
    assert min(map(len, crops.values())) > 10  # of some thirty visits, each a crop of its own


def test_the_order_stays_what_it_is():
    """Runs go on under later versions of this code, with the batches that they began with."""
    records, starts = Blocks(LENGTHS, 1, SAMPLES, 752)(np.arange(752) + 752 * 400_000)
    assert records[:6].tolist() == [818, 669, 663, 827, 658, 672]
    assert starts[:6].tolist() == [240513, 304514, 82665, 229071, 4694, 241960]


def test_neighbours_in_a_batch_are_of_many_blocks():
    plan = Blocks(np.full(24_000, 480_000), 1, SAMPLES, 752)
    records, _ = plan(np.arange(752) + 752 * 1000)
    assert len({plan.block_of(int(record)) for record in records}) > 110  # of 128 in its windows
    assert len(set(records.tolist())) > 700


@pytest.mark.parametrize(("seconds", "expected"), [(5.125, 4), (29.925, 1), (10, 2), (30, 1)])
def test_what_is_read_is_used(seconds, expected):
    """At most 1.5 samples are read for one in a crop."""
    samples = int(16_000 * seconds)
    assert block_order.visits(480_000, samples) == expected
    assert 1.5 * expected * samples >= 480_000


@pytest.mark.parametrize("hosts", [1, 4, 16])
def test_what_is_needed_is_known_before(hosts):
    plan = Blocks(LENGTHS, 1, SAMPLES, 752)
    rows = np.arange(752 // hosts)
    lanes = 64 // hosts
    needed = plan.needed(rows, 50, 51)
    assert len(needed) <= (2 * lanes + lanes // 4 + 1) * block_order.BLOCKS
    for step in range(50, 64):  # a window is 13.6 steps
        records, _ = plan(step * 752 + rows)
        blocks = {plan.block_of(int(record)) for record in records}
        first = needed[: (lanes + lanes // 8 + 2) * block_order.BLOCKS] if step == 50 else needed
        assert blocks <= set(first)
