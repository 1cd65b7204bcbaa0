"""Windows that clips are cut into, and the rows of features that a window gives.

A row stands for a whole window, for a part of it, or for a frame. Parts have the same times for
every encoder, so that their labels are the same too. They are groups of ticks of 20 ms, the frames
of wav2vec 2.0 at 16 kHz, and a row averages the frames that begin in its part.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from musicssl import audio

WHOLE, FRAMES = 0, 1  # special numbers of ticks in a pool: all of a window; every frame by itself
TICKS = audio.SAMPLE_RATE / audio.STEM_HOP  # per second
_PARTS = 4  # of a whole window: a shorter one is padded to one, two, three or all of these


@dataclasses.dataclass(frozen=True)
class Frames:
    """An encoder's frames: one every `hop` samples, the first of which needs `window` samples.

    Any sequence of convolutions and strides amounts to one such pair. If the encoder pads its
    input, `window` is less than `hop`, and may be negative.
    """

    window: int
    hop: int

    def count(self, samples: np.ndarray) -> np.ndarray:
        """Return how many frames clips of `samples` samples have, at least one."""
        return ((samples - self.window) // self.hop + 1).clip(1)


STEM = Frames(audio.STEM_WINDOW, audio.STEM_HOP)


class Windows(NamedTuple):
    """Windows, in the order of their records.

    record: the record that each window is cut from, [w].
    start: its first sample in the record, [w].
    samples: how many it has, [w]: `size`, or fewer at the end of a record.
    size: samples in a whole window.
    standardised_alone: whether a window is standardised by its own mean and variance, not by those
      of its record, for an encoder that takes audio of mean 0 and variance 1.
    sample_rate: in Hz.
    frames: of the encoder that processes them.
    """

    record: np.ndarray
    start: np.ndarray
    samples: np.ndarray
    size: int
    standardised_alone: bool = False
    sample_rate: int = audio.SAMPLE_RATE
    frames: Frames = STEM


def cut(
    lengths: np.ndarray,
    seconds: float,
    sample_rate: int,
    standardised_alone: bool = False,
    frames: Frames = STEM,
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
    return Windows(record, start, samples, size, standardised_alone, sample_rate, frames)


def alike(
    windows: Windows, sums: np.ndarray, others: Windows, their_sums: np.ndarray
) -> np.ndarray:
    """Return which of the others each window sounds like, [w]; -1 for none.

    Args:
      sums, their_sums: checksums of the records that the windows are cut from, [records].
    """

    def places(cut: Windows, of_records: np.ndarray) -> list[tuple[int, int, int]]:
        columns = of_records[cut.record], cut.start, cut.samples
        return list(zip(*(column.tolist() for column in columns), strict=True))

    if windows.size != others.size:
        return np.full(len(windows.record), -1)
    numbers = {place: number for number, place in enumerate(places(others, their_sums))}
    return np.array([numbers.get(place, -1) for place in places(windows, sums)])


def padded(windows: Windows) -> np.ndarray:
    """Return how many samples each window is padded to [w], so that few programs are needed."""
    part = -(-windows.size // _PARTS)
    parts = np.minimum(-(-windows.samples // part) * part, windows.size)
    return np.maximum(parts, windows.frames.window)


class Rows(NamedTuple):
    """The part of a record that each feature row stands for.

    record: [n]. begin, end: seconds from the start of the record, [n].
    """

    record: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def rows_in(windows: Windows, pool: int) -> np.ndarray:
    """Count the feature rows of each window [w]; the last row may have half a pool of ticks."""
    if pool == WHOLE:
        return np.ones_like(windows.samples)
    if pool == FRAMES:
        return windows.frames.count(windows.samples)
    return np.maximum((_ticks(windows) + pool // 2) // pool, 1)


def _ticks(windows: Windows) -> np.ndarray:
    """Count the ticks of each window [w]: the frames that it has at 16 kHz."""
    return audio.frame_counts(windows.samples * audio.SAMPLE_RATE // windows.sample_rate)


def rows(windows: Windows, pool: int, sample_rate: int) -> Rows:
    """Return the rows that `extract.extract` writes, in its order."""
    count = rows_in(windows, pool)
    window = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(window)) - np.repeat(np.cumsum(count) - count, count)

    # Times, in seconds: a window begins at `offset`, and a row `first` frames or ticks later.
    in_frames = pool == FRAMES
    hop = windows.frames.hop / sample_rate if in_frames else audio.STEM_HOP / audio.SAMPLE_RATE
    offset = windows.start[window] / sample_rate
    length = (windows.frames.count(windows.samples) if in_frames else _ticks(windows))[window]
    first = place * pool if pool else np.zeros_like(place)
    last = np.minimum(first + pool, length) if pool else length
    return Rows(windows.record[window], offset + first * hop, offset + last * hop)


def parts(pool: int, rows: int, frames: int, frame_rate: float) -> list[tuple[int, int]]:
    """Return which frames each of a window's rows averages: the first, and the one after the last.

    A row in which no frame begins gets the frame that is current when the row begins.

    Args:
      frames: of the window.
    """
    if pool == WHOLE:
        return [(0, frames)]
    each = 1.0 if pool == FRAMES else pool * frame_rate / TICKS
    edges = [int(each * i + 0.5) for i in range(rows + 1)]
    first = [min(edge, frames - 1) for edge in edges]
    return [(a, max(min(b, frames), a + 1)) for a, b in zip(first, edges[1:], strict=False)]
