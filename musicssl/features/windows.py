"""Windows that clips are cut into, and the rows of features that a window gives."""

from typing import NamedTuple

import numpy as np

from musicssl import audio

WHOLE = 0  # as the frames of a pool: all frames of a window
_PARTS = 4  # of a whole window: shorter ones are padded to one, two, three or all of them


class Windows(NamedTuple):
    """Windows, in the order of their records.

    record: the record that each window is cut from, [w].
    start: its first sample in the record, [w].
    samples: how many it has, [w]: `size`, or fewer at the end of a record.
    size: samples of a whole window.
    standardised_alone: whether a window's mean and variance are its own, not those of its record,
      for an encoder that takes audio of mean 0 and variance 1.
    """

    record: np.ndarray
    start: np.ndarray
    samples: np.ndarray
    size: int
    standardised_alone: bool = False


def cut(
    lengths: np.ndarray, seconds: float, sample_rate: int, standardised_alone: bool = False
) -> Windows:
    """Cut records of `lengths` samples into windows without overlap.

    The last window of a record is kept if it has a second or more, at its own length; a record
    shorter than that is one window. None is longer than the longest record.
    """
    size = min(round(seconds * sample_rate), int(lengths.max()))
    whole, rest = np.divmod(lengths, size)
    count = np.maximum(whole + (rest >= sample_rate), 1)
    record = np.repeat(np.arange(len(lengths)), count)
    start = (np.arange(len(record)) - np.repeat(np.cumsum(count) - count, count)) * size
    samples = np.minimum(lengths[record] - start, size)
    return Windows(record, start, samples, size, standardised_alone)


def padded(windows: Windows) -> np.ndarray:
    """Return how many samples each window is padded to [w], so that few programs hear them all."""
    part = -(-windows.size // _PARTS)
    parts = np.minimum(-(-windows.samples // part) * part, windows.size)
    return np.maximum(parts, audio.STEM_WINDOW)


class Rows(NamedTuple):
    """The part of a record that each feature row stands for.

    record: [n]. begin, end: seconds from the start of the record, [n].
    """

    record: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def rows_in(windows: Windows, pool: int) -> np.ndarray:
    """Count the feature rows of each window [w]; the last row may have half a pool of frames."""
    of_window = audio.frame_counts(windows.samples)
    if pool == WHOLE:
        return np.ones_like(of_window)
    return np.maximum((of_window + pool // 2) // pool, 1)


def rows(windows: Windows, pool: int, sample_rate: int) -> Rows:
    """Return the rows that `extract.extract` writes, in its order."""
    count = rows_in(windows, pool)
    window = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(window)) - np.repeat(np.cumsum(count) - count, count)

    # Times, in seconds: a window begins at `offset`, and a row `first` frames later.
    hop = audio.STEM_HOP / sample_rate
    offset = windows.start[window] / sample_rate
    length = audio.frame_counts(windows.samples)[window]
    first = place * pool if pool else np.zeros_like(place)
    last = np.minimum(first + pool, length) if pool else length
    return Rows(windows.record[window], offset + first * hop, offset + last * hop)
