"""Reads several data sets as one, each with its share of the places of a stream.

Places come in cycles. The weights are whole numbers, and their sum is the length of a cycle. In a
cycle every data set has as many places as its weight; a hash of (seed, cycle) decides which. The
n-th of a data set's places holds what place n of that data set alone would hold. So the record and
the crop at a place are functions of the seed and the place, as they are for one data set, and the
shares are exact in every cycle.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

import numpy as np

from data_pipelines.order import Shuffled, hash64
from data_pipelines.record_index import Damaged
from data_pipelines.records import Dataset

_MIX = 4  # a stream of the hash, in addition to those of `order`
_MOST = 10_000  # places in a cycle


def parse(text: str) -> dict[str, int]:
    """Return the weights of a mixture such as "synth_music:1,music_folder:4", in lowest terms.

    Raises:
      ValueError: a data set has no weight above 0 or is named twice, or weights are too far apart.
    """
    weights: dict[str, Fraction] = {}
    for part in text.split(","):
        name, colon, weight = part.strip().rpartition(":")
        try:
            share = Fraction(weight) if colon and name else Fraction(0)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if share <= 0:
            raise ValueError(
                f"{part.strip()!r} is not a data set and a weight: write NAME:WEIGHT, separated by "
                "commas, with weights above 0"
            )
        if name in weights:
            raise ValueError(f"{name} is named twice: add up its weights")
        weights[name] = share

    # Whole numbers, as small as they can be.
    scale = lcm(*(share.denominator for share in weights.values()))
    whole = {name: int(share * scale) for name, share in weights.items()}
    common = gcd(*whole.values())
    whole = {name: weight // common for name, weight in whole.items()}
    if sum(whole.values()) > _MOST:
        raise ValueError(
            f"the weights come to {':'.join(map(str, whole.values()))}, which add up to more than "
            f"{_MOST}: round them"
        )
    return whole


class Part(NamedTuple):
    """A data set of a mixture, its weight, and the number of its first record in the mixture."""

    dataset: Dataset
    weight: int
    first: int


class Mixture:
    """The records of several data sets, one after another, read as a `records.Dataset` is."""

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[int]):
        """Put data sets together.

        Raises:
          ValueError: their sample rates differ.
        """
        rates = {dataset.directory: dataset.sample_rate for dataset in datasets}
        if len(set(rates.values())) > 1:
            told = ", ".join(f"{directory} {rate} Hz" for directory, rate in rates.items())
            raise ValueError(f"sample rates differ: {told}; build them at one rate")
        lengths = [len(dataset) for dataset in datasets]
        firsts = np.cumsum([0, *lengths])[:-1].tolist()
        self.parts = [Part(*part) for part in zip(datasets, weights, firsts, strict=True)]
        self.samples = np.concatenate([dataset.samples for dataset in datasets])
        self.directory = " + ".join(dataset.directory for dataset in datasets)
        self.split, self.sample_rate = datasets[0].split, datasets[0].sample_rate
        self.is_far = any(dataset.is_far for dataset in datasets)

    def __len__(self) -> int:
        return len(self.samples)

    def part_of(self, record: int) -> tuple[Dataset, int]:
        """Return the data set that a record is from, and its number there."""
        firsts = [part.first for part in self.parts]
        part = self.parts[int(np.searchsorted(firsts, record, side="right")) - 1]
        return part.dataset, record - part.first

    def damage(self, record: int, what: str) -> Damaged:
        """Return the error that says what is wrong with a record."""
        dataset, number = self.part_of(record)
        return dataset.damage(number, what)

    def read(
        self,
        record: int,
        start: int,
        out: np.ndarray,
        closed: threading.Event | None = None,
        held: Callable[[int, int, int], bytes | memoryview | None] | None = None,
    ) -> None:
        """Fill `out` as `Dataset.read` does; no record of a mixture is `held` in memory."""
        dataset, number = self.part_of(record)
        del held  # its numbers are those of one data set
        dataset.read(number, start, out, closed)


class Mixed:
    """The training stream of a mixture: random crops, each data set in epochs of its own."""

    def __init__(self, mixture: Mixture, seed: int, samples: int):
        self.parts, self.seed = mixture.parts, seed
        self.plans = [Shuffled(part.dataset.samples, seed, samples) for part in self.parts]
        weights = [part.weight for part in self.parts]
        self.ends = np.cumsum(weights)
        self.size = int(self.ends[-1])
        self.cycles = functools.lru_cache(1024)(self._cycle)

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (records, starts), int64."""
        which, own = self._own(places)
        records, starts = np.empty_like(places), np.empty_like(places)
        for number, (part, plan) in enumerate(zip(self.parts, self.plans, strict=True)):
            here = which == number
            if here.any():
                numbers, starts[here] = plan(own[here])
                records[here] = numbers + part.first
        return records, starts

    def instead(self, place: int, attempt: int) -> tuple[int, int]:
        """Return another record of the same data set, and the start of its crop."""
        which, own = self._own(np.array([place]))
        record, start = self.plans[which[0]].instead(int(own[0]), attempt)
        return record + self.parts[which[0]].first, start

    def _own(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each place's data set, and the place in that one's own stream."""
        cycles, at = np.divmod(places, self.size)
        ranks = np.empty_like(places)
        for cycle in np.unique(cycles).tolist():
            here = cycles == cycle
            ranks[here] = self.cycles(cycle)[at[here]]
        which = np.searchsorted(self.ends, ranks, side="right")
        weights = np.diff(self.ends, prepend=0)
        return which, cycles * weights[which] + ranks - (self.ends - weights)[which]

    def _cycle(self, cycle: int) -> np.ndarray:
        """Return the ranks of a cycle's places, by which the weights allot them to data sets."""
        drawn = hash64(self.seed, _MIX, cycle, np.arange(self.size))
        return np.argsort(np.argsort(drawn, kind="stable"), kind="stable")
