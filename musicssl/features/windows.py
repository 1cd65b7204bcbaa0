"""Windows that clips are cut into, and the rows of features that a window gives."""

from typing import NamedTuple

import numpy as np

from musicssl import audio

WHOLE = 0  # as the frames of a pool: all frames of a window


class Windows(NamedTuple):
    """Windows, in the order of their records.

    record: the record that each window is cut from, [w].
    start: its first sample in the record, [w].
    samples: how many samples of it are real audio, [w]; zeros follow.
    size: samples of a whole window.
    """

    record: np.ndarray
    start: np.ndarray
    samples: np.ndarray
    size: int


def cut(lengths: np.ndarray, seconds: float, sample_rate: int) -> Windows:
    """Cut records of `lengths` samples into windows without overlap.

    The last window of a record is kept if it has a second or more, and then filled with zeros; a
    record shorter than that is one window. None is longer than the longest record.
    """
    size = min(round(seconds * sample_rate), int(lengths.max()))
    whole, rest = np.divmod(lengths, size)
    count = np.maximum(whole + (rest >= sample_rate), 1)
    record = np.repeat(np.arange(len(lengths)), count)
    start = (np.arange(len(record)) - np.repeat(np.cumsum(count) - count, count)) * size
    return Windows(record, start, np.minimum(lengths[record] - start, size), size)


class Rows(NamedTuple):
    """The part of a record that each feature row stands for.

    record: [n]. begin, end: seconds from the start of the record, [n].
    """

    record: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def rows_in(windows: Windows, pool: int) -> np.ndarray:
    """Count the feature rows of each window [w]; the last row may have half a pool of frames."""
    of_window = frames(windows.samples)
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
    length = frames(windows.samples)[window]
    first = place * pool if pool else np.zeros_like(place)
    last = np.minimum(first + pool, length) if pool else length
    return Rows(windows.record[window], offset + first * hop, offset + last * hop)


def frames(samples: np.ndarray) -> np.ndarray:
    """Return how many encoder frames so many samples give; at least one."""
    return np.maximum((samples - audio.STEM_WINDOW) // audio.STEM_HOP + 1, 1)
