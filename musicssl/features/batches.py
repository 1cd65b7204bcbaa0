"""Batches of windows, filled ahead of the encoder that processes them."""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from musicssl.features import windows

AHEAD = 4  # batches that are read before they are needed
Batch = TypeVar("Batch")
_OPEN = 8  # batches that are filled at the same time: more lengths than that are rare


class WindowBatch(NamedTuple):
    """Windows that are padded to one length, as `extract` and plug-ins take them.

    numbers: of the windows; the rest of the arrays is filling.
    is_whole: whether no window is padded.
    sound: int16 [b, n].
    mean, scale: what is subtracted from each window, and what it is multiplied by, [b].
    samples: of each window, [b].
    """

    numbers: list[int]
    is_whole: bool
    sound: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    samples: np.ndarray

    def arrays(self, frames: windows.Frames) -> tuple[np.ndarray, ...]:
        """Return the arguments of `extract`'s program after the parameters."""
        return self.sound, self.mean, self.scale, self.samples, frames.count(self.samples)

    def heard(self) -> np.ndarray:
        """Return the encoder's input: float32 [windows, n], 0 after the end of each window."""
        count = len(self.numbers)
        x = self.sound[:count].astype(np.float32)
        x /= 32768
        if self.mean.any() or (self.scale != 1).any():
            x -= self.mean[:count, None]
            x *= self.scale[:count, None]
        for clip, samples in zip(x, self.samples, strict=False):
            clip[samples:] = 0
        return x


def batches(
    normalize: bool,
    cut: windows.Windows,
    read: Callable[[int], np.ndarray],
    waiting: Sequence[int],
    batch: int,
    exact: bool = False,
) -> Iterator[WindowBatch]:
    """Fill batches with the waiting windows, one for each length; each record is read once.

    Args:
      normalize: whether the audio should have mean 0 and variance 1.
      exact: whether no window is padded, unless it is too short for one frame. Otherwise a batch
        may hold windows that are padded to the same length.
    """
    padded, is_whole = windows.padded(cut), cut.samples == cut.size
    if exact:
        padded, is_whole = np.maximum(cut.samples, cut.frames.window), np.full(len(is_whole), True)

    @functools.lru_cache(1)  # windows are in the order of their records
    def record(number: int) -> tuple[np.ndarray, float, float]:
        sound = read(number)
        by_record = normalize and not cut.standardised_alone  # as in MARBLE, for most tasks
        return sound, *(standard(sound) if by_record else (0.0, 1.0))

    filling: dict[tuple[int, bool], WindowBatch] = {}
    for window in waiting:
        kind = int(padded[window]), bool(is_whole[window])
        if kind not in filling:
            if len(filling) == _OPEN:
                yield filling.pop(next(iter(filling)))
            filling[kind] = _empty_batch(*kind, batch)
        numbers, _, sound, mean, scale, samples = filling[kind]
        i, start = len(numbers), cut.start[window]

        # Put the window into the next row.
        of_record, mean[i], scale[i] = record(int(cut.record[window]))
        heard = of_record[start : start + cut.samples[window]]
        if normalize and cut.standardised_alone:
            mean[i], scale[i] = standard(heard)
        sound[i, : len(heard)], samples[i] = heard, len(heard)
        numbers.append(window)
        if len(numbers) == batch:
            yield filling.pop(kind)
    yield from filling.values()


def standard(sound: np.ndarray) -> tuple[float, float]:
    """Return the mean of int16 audio, and the factor that then makes its variance 1."""
    x = sound.astype(np.float32) / 32768
    return float(x.mean()), float(1 / np.sqrt(x.var() + 1e-7))


def _empty_batch(size: int, is_whole: bool, batch: int) -> WindowBatch:
    """Return a batch, filled up with silence."""
    return WindowBatch(
        [],
        is_whole,
        np.zeros((batch, size), np.int16),
        np.zeros(batch, np.float32),
        np.ones(batch, np.float32),
        np.full(batch, size, np.int32),
    )


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Fill AHEAD batches before they are needed, in a thread."""
    filling: collections.deque[Future[Batch | None]] = collections.deque()
    with ThreadPoolExecutor(1) as pool:
        while True:
            filling.append(pool.submit(next, batches, None))
            if len(filling) > AHEAD:
                filled = filling.popleft().result()
                if filled is None:
                    return
                yield filled
