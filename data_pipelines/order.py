"""The order of the data: which record, and which part of it, at each place of a stream.

Place p of the training stream is in epoch p // N of a data set of N records. An epoch's order sorts
the records by a hash of (seed, epoch, record), and another hash of these draws the crop. Everything
is a function of the seed and the place, so nothing has to be saved or replayed.
"""

import functools
import threading
from typing import Protocol

import numpy as np

ORDER, _CROP, _INSTEAD, INSIDE = 0, 1, 2, 3  # streams of the hash


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """Hash integers, element by element, to uint64: SplitMix64's mixer after each word.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. NumPy's
    own generators may change their streams between versions; a run's data order must not.
    """
    state: np.ndarray = np.zeros(1, np.uint64)  # an array, since scalars warn when they wrap
    for word in words:
        state = (state ^ _as_uint64(word)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def _as_uint64(word: int | np.ndarray) -> np.uint64 | np.ndarray:
    return np.uint64(word & (2**64 - 1)) if isinstance(word, int) else word.astype(np.uint64)


def epoch_order(records: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits the records, int64 [records]."""
    return np.argsort(hash64(seed, ORDER, epoch, np.arange(records)), kind="stable")


def crop_starts(
    lengths: np.ndarray, samples: int, seed: int, epochs: np.ndarray, records: np.ndarray
) -> np.ndarray:
    """Return the first sample of each record's crop in its epoch, uniform over all possible ones.

    Args:
      lengths: samples of each of the records, int64 [rows].
      samples: of the crop; a record that is shorter is taken from its start, and repeated.
    """
    uniform = (hash64(seed, _CROP, epochs, records) >> np.uint64(11)) * 2.0**-53  # [0, 1)
    return (uniform * np.maximum(lengths - samples + 1, 1)).astype(np.int64)


class StreamPlan(Protocol):
    """Which record is at each place of a stream, and from which sample on."""

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (records, starts), int64; record -1 is none."""

    def instead(self, place: int, attempt: int) -> tuple[int, int]:
        """Return the (record, start) to try when the record at a place is damaged."""


class Shuffled:
    """The training stream: endless epochs of random crops, from records of given lengths."""

    def __init__(self, lengths: np.ndarray, seed: int, samples: int):
        self.lengths, self.seed, self.samples = lengths, seed, samples
        self.orders = functools.lru_cache(2)(epoch_order)  # a batch may lie in two epochs
        self.lock = threading.Lock()  # so that one thread sorts and the others wait

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, at = np.divmod(places, len(self.lengths))
        records = np.empty_like(places)
        for epoch in np.unique(epochs):
            with self.lock:
                order = self.orders(len(self.lengths), self.seed, int(epoch))
            records[epochs == epoch] = order[at[epochs == epoch]]
        return records, self._starts(epochs, records)

    def instead(self, place: int, attempt: int) -> tuple[int, int]:
        drawn = hash64(self.seed, _INSTEAD, place, attempt) % np.uint64(len(self.lengths))
        records = drawn.astype(np.int64)
        return records[0], self._starts(np.array([place // len(self.lengths)]), records)[0]

    def _starts(self, epochs: np.ndarray, records: np.ndarray) -> np.ndarray:
        return crop_starts(self.lengths[records], self.samples, self.seed, epochs, records)


class InOrder:
    """The stream of one plain pass: the start of every record, then none."""

    def __init__(self, records: int):
        self.records = records

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where(places < self.records, places, -1), np.zeros_like(places)

    def instead(self, place: int, attempt: int) -> tuple[int, int]:
        return -1, 0
