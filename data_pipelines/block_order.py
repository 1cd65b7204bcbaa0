"""The order "blocks": batches from neighbouring records read in one request, for remote data.

A bucket takes tens of milliseconds to answer a request, and charges for each one, so whole blocks
are read: runs of up to RECORDS records of the shards. The rows of every batch are divided among at
most LANES lanes, each a run of rows; a host that has a lane's rows needs that lane's blocks and no
others. The blocks of an epoch, in the order of a hash, are given to the lanes in windows of BLOCKS
blocks, one window after another in the order in which the lanes come to need them. A lane visits
the records of its window in the order of a hash, then again in another order, until what was read
has been used up; each visit draws another crop by a hash.

So the record and the crop at a place are functions of the seed and the place alone, as in the order
"shuffled", and every block is in exactly one window of an epoch. Lanes reach the ends of their
windows at different steps, because they begin at different places of their first windows.
"""

import functools
from typing import NamedTuple

import numpy as np

from data_pipelines.order import INSIDE, Shuffled, epoch_order, hash64

# These define the order: to change one is to change the batches of every run that uses it.
LANES = 64
BLOCKS = 2  # in a window
RECORDS = 20  # in a block, or one fewer: 19 MB of 30 s at 16 kHz
_READ, _USED = 3, 2  # at most 3 samples are read for every 2 that crops use


def visits(longest: int, samples: int) -> int:
    """Return how many crops are taken of a record while it is in memory."""
    return max(1, -(-_USED * longest // (_READ * samples)))


class Window(NamedTuple):
    """What a lane is given at one time.

    blocks: int64 [BLOCKS]. records: int64 [visits, slots], in the order in which they are taken.
    """

    blocks: np.ndarray
    records: np.ndarray


class Blocks(Shuffled):
    """The stream of training crops in blocks, from records of given lengths in samples."""

    def __init__(self, lengths: np.ndarray, seed: int, samples: int, batch_size: int):
        super().__init__(lengths, seed, samples)
        self.batch_size = batch_size
        self.count = max(-(-len(lengths) // RECORDS), 1)  # of blocks
        self.visits = visits(int(lengths.max()), samples)
        self.slots = BLOCKS * RECORDS  # of a visit to a window's records
        self.size = self.visits * self.slots  # places of a window
        self.lanes = min(LANES, batch_size)
        numbers = np.arange(self.lanes + 1)
        first = -(-numbers * batch_size // self.lanes)  # row of each lane
        self.first, self.rows = first[:-1], np.diff(first)  # int64 [lanes]
        self.phase = numbers[:-1] * self.size // self.lanes  # place of the window it begins in
        self.orders = functools.lru_cache(3)(epoch_order)
        self.windows = functools.lru_cache(4 * LANES)(self._window)

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps, rows = np.divmod(places, self.batch_size)
        lanes = rows * self.lanes // self.batch_size
        windows, at = np.divmod(self._reached(lanes, steps) + rows - self.first[lanes], self.size)
        numbers = self._numbers(lanes, windows)
        records = np.empty_like(places)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            records[here] = self.windows(number).records.ravel()[at[here]]
        return records, self._starts(places, records)

    def instead(self, place: int, attempt: int) -> tuple[int, int]:
        record, _ = super().instead(place, attempt)
        return record, self._starts(np.array([place]), np.array([record]))[0]

    def needed(self, rows: np.ndarray, first: int, last: int) -> list[int]:
        """Return the blocks that some rows need in steps first to last, soonest first.

        The blocks of one more window follow: they can be read while the last window is used.
        """
        lanes = np.unique(rows * self.lanes // self.batch_size)
        begin = self._reached(lanes, np.full_like(lanes, first)) // self.size
        end = (self._reached(lanes, np.full_like(lanes, last + 1)) + self.size - 1) // self.size
        blocks: dict[int, None] = {}
        for ahead in range(int((end - begin).max()) + 1):
            soon = begin + ahead <= end
            numbers = self._numbers(lanes[soon], begin[soon] + ahead)
            for number in np.sort(numbers).tolist():
                blocks |= dict.fromkeys(self.windows(number).blocks.tolist())
        return list(blocks)

    def block_of(self, record: int) -> int:
        """Return the block that a record is in."""
        return ((record + 1) * self.count - 1) // len(self.lengths)

    def records_of(self, block: int) -> range:
        """Return the records of a block."""
        records = len(self.lengths)
        return range(block * records // self.count, (block + 1) * records // self.count)

    def _reached(self, lanes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return the place, in the lane's own stream, at which a step begins."""
        return steps * self.rows[lanes] + self.phase[lanes]

    def _numbers(self, lanes: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """Number the windows of all lanes by the time at which they begin, int64 [pairs].

        The time of a lane's window w is (w * size - phase) / rows in steps; before it come all
        windows of other lanes that begin earlier, or at that time in a lane before this one.
        """
        mine, others = lanes[:, None], np.arange(self.lanes)  # [pairs, 1], [lanes]
        begins = windows[:, None] * self.size - self.phase[mine]
        above = begins * self.rows[others] + self.phase[others] * self.rows[mine]  # [pairs, lanes]
        below = self.size * self.rows[mine]
        earlier = np.where(others < mine, above // below + 1, -(-above // below))
        return np.maximum(earlier, 0).sum(axis=1)

    def _window(self, number: int) -> Window:
        epochs, at = np.divmod(number * BLOCKS + np.arange(BLOCKS), self.count)
        blocks = np.empty(BLOCKS, np.int64)
        for i, epoch in enumerate(epochs.tolist()):
            with self.lock:
                blocks[i] = self.orders(self.count, self.seed, epoch)[at[i]]
        there = np.concatenate([np.array(self.records_of(block)) for block in blocks.tolist()])
        taken = np.empty((self.visits, self.slots), np.int64)
        for visit in range(self.visits):
            drawn = hash64(self.seed, INSIDE, number, visit, np.arange(len(there)))
            order = there[np.argsort(drawn, kind="stable")]
            taken[visit] = np.resize(order, self.slots)  # repeated where blocks are not full
        return Window(blocks, taken)
