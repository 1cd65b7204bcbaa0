"""What the rows of a task's features are labelled with.

A row is a window, a part of one, or a frame; an item is what is scored: a record, or a row. A
record is a clip, track, recording or note of the data set.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from musicssl.features import windows
from musicssl.probing import beats, metrics
from musicssl.probing.tasks import Task

Record = Mapping[str, Any]
Part = Callable[[Record, float, float], np.ndarray | int]

DRUMS = 15  # of synth_music's instruments
THIRDS = (-1, 0, 1, 1, -1, 0, 0, 1, 1)  # N maj min dim sus4 7 maj7 min7 hdim7: 1 is minor


class Labels(NamedTuple):
    """Labels of a split's feature rows, and of the items that are scored.

    rows: numbers of the feature rows that take part, [n].
    y: labels of these rows, [n] or [n, c].
    item: the item that each row belongs to, [n].
    labels: of the items, [i] or [i, c].
    start: the first of `rows` of each record, of beat tasks and of tasks that are trained on whole
      records of several rows; else empty.
    references: of beat tasks, the beat times of each record in seconds.
    levels: of each factor of the task, its level in each item.
    clips: the record that each item belongs to, [i], if several items may share one; None if
      records are scored.
    """

    rows: np.ndarray
    y: np.ndarray
    item: np.ndarray
    labels: np.ndarray
    start: np.ndarray
    references: Sequence[np.ndarray]
    levels: Mapping[str, np.ndarray] = MappingProxyType({})
    clips: np.ndarray | None = None

    @property
    def scored(self) -> int:
        """Count what is scored: records of a beat task, else items."""
        return len(self.references) or len(self.labels)

    @property
    def records(self) -> int:
        """Count the records that the scored items belong to."""
        return self.scored if self.clips is None else len(np.unique(self.clips))


def item_labels(task: Task, records: Sequence[Record], rows: windows.Rows, fps: float) -> Labels:
    """Return the labels of feature rows, from the records' own labels and the rows' times.

    Args:
      records: of a split, in order.
      rows: of `windows.rows`.
      fps: encoder frames a second.

    Raises:
      ValueError: no record belongs to the task.
    """
    del fps
    if task.label in PART_LABELS:
        y = _part_labels(PART_LABELS[task.label], records, rows)
        used = np.flatnonzero(y >= 0) if y.ndim == 1 else np.arange(len(y))
        return _row_labels(task, used, y[used], rows.record)

    # A track without a tag of an MTG subset is not in that subset; in other data sets it counts.
    whole = np.stack([np.asarray(record[task.label]) for record in records])
    member = np.ones(len(whole), bool)
    if task.dataset == "mtg_jamendo":
        member = np.asarray(whole.any(1))
    used = np.flatnonzero(member[rows.record] & _taken(task, rows))
    whole = whole.astype(np.float32 if whole.ndim == 2 else np.int32)
    y = whole[rows.record[used]]
    if not task.by_item:
        return _row_labels(task, used, y, rows.record)

    # Items are the records that belong to the task, renumbered.
    number = np.cumsum(member) - 1
    item = number[rows.record[used]]
    members = [record for record, belongs in zip(records, member, strict=True) if belongs]
    levels = _factor_levels(task, members)
    several = task.trained_whole and len(item) > len(members)
    start = np.flatnonzero(np.diff(item, prepend=-1)) if several else used[:0]
    return _checked(task, Labels(used, y, item, whole[member], start, (), levels))


def _taken(task: Task, rows: windows.Rows) -> np.ndarray:
    """Return which rows a task takes, bool [n]: all, or, without rests, those of whole windows.

    A record that is shorter than a window keeps its only row.
    """
    length = rows.end - rows.begin
    return task.rests | (length > length.max() - 1e-6) | (rows.begin == 0)


def _row_labels(task: Task, used: np.ndarray, y: np.ndarray, record: np.ndarray) -> Labels:
    """Return labels where every row that takes part is an item by itself.

    Args:
      used: numbers of these rows.
      y: their labels.
      record: of all rows.
    """
    number = np.arange(len(y))
    return _checked(task, Labels(used, y, number, y, used[:0], (), clips=record[used]))


def _factor_levels(task: Task, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the level of each factor of the task in each record, as numbers or text."""
    levels = {}
    for name in task.factors:
        values = [record[name] for record in records]
        levels[name] = np.array([v.decode() if isinstance(v, bytes) else v for v in values])
    return levels


def _checked(task: Task, labels: Labels) -> Labels:
    if not len(labels.rows):
        raise ValueError(f"{task.name}: no record of the split belongs to the task")
    return labels


def _part_labels(label_part: Part, records: Sequence[Record], rows: windows.Rows) -> np.ndarray:
    """Label rows, which are parts of records, by a function of (record, begin, end)."""
    parts = zip(rows.record, rows.begin, rows.end, strict=True)
    return np.array([label_part(records[record], begin, end) for record, begin, end in parts])


def _sounding(record: Record, begin: float, end: float, share: float) -> np.ndarray:
    """Return which notes sound for that share of the time, drums left out: bool [notes]."""
    notes = record["notes"]
    overlap = np.minimum(notes["offset"], end) - np.maximum(notes["onset"], begin)
    return (overlap >= share * (end - begin)) & (notes["instrument"] != DRUMS)


def _instruments(record: Record, begin: float, end: float) -> np.ndarray:
    """Return which of 16 instruments play a note that begins or goes on here: float32 [16]."""
    notes = record["notes"]
    here = (notes["onset"] < end) & (notes["offset"] > begin)
    return np.isin(np.arange(16), notes["instrument"][here]).astype(np.float32)


def _pitch_classes(record: Record, begin: float, end: float) -> np.ndarray:
    """Return which pitch classes sound for at least a quarter of the time: float32 [12]."""
    heard = record["notes"]["pitch"][_sounding(record, begin, end, 0.25)] % 12
    return np.isin(np.arange(12), heard).astype(np.float32)


def _chord(record: Record, begin: float, end: float) -> int:
    """Return the chord at the middle: its root, plus 12 for a minor third; -1 without a third."""
    beat = np.searchsorted(record["beats"]["time"], (begin + end) / 2, side="right") - 1
    if beat < 0:
        return -1
    root, quality = int(record["chords"]["root"][beat]), int(record["chords"]["quality"][beat])
    third = THIRDS[quality]
    return -1 if third < 0 or root < 0 else root + 12 * third


def _polyphony(record: Record, begin: float, end: float) -> int:
    """Count the different pitches that sound at the middle; 7 stands for 7 or more."""
    notes = record["notes"]
    middle = (begin + end) / 2
    on = (notes["onset"] <= middle) & (middle < notes["offset"]) & (notes["instrument"] != DRUMS)
    return min(len(np.unique(notes["pitch"][on])), 7)


PART_LABELS: dict[str, Part] = {
    "instruments": _instruments,
    "pitch_classes": _pitch_classes,
    "chord": _chord,
    "polyphony": _polyphony,
}


def tempo_labels(task: Task, records: Sequence[Record], rows: windows.Rows, fps: float) -> Labels:
    """Return the labels of windows, which are classes of tempo, and the tempi of records.

    A record's tempo follows from the median distance of its beats. Records with fewer than two
    beats take no part. Arguments and errors are those of `item_labels`.
    """
    del fps
    tempi = np.zeros(len(records))
    for number, record in enumerate(records):
        distances = np.diff(_beat_times(task, record))
        tempi[number] = 60 / np.median(distances) if len(distances) else 0
    used = np.flatnonzero(tempi[rows.record] > 0)
    item = (np.cumsum(tempi > 0) - 1)[rows.record[used]]
    y = metrics.tempo_class(tempi[rows.record[used]])
    labels = tempi[tempi > 0].astype(np.float32)
    return _checked(task, Labels(used, y, item, labels, used[:0], ()))


def beat_labels(task: Task, records: Sequence[Record], rows: windows.Rows, fps: float) -> Labels:
    """Return the labels of frames, 1 for a beat, and the beat times of records.

    Rows of records without beats take no part. Frames beside a beat count as beats, since frames
    are not what is scored. Arguments and errors are those of `item_labels`.
    """
    times = [_beat_times(task, record) for record in records]

    # Only records with beats take part.
    has_beats = np.array([len(t) > 0 for t in times])
    used = np.flatnonzero(has_beats[rows.record])
    record = rows.record[used]

    # Mark the frames of beats, record by record.
    y = np.zeros((len(used), 1), np.float32)
    starts = []
    for number in np.unique(record):
        here = np.flatnonzero(record == number)
        starts.append(here[0])
        frame = np.round(rows.begin[used][here] * fps).astype(int)
        frames = int(frame[-1]) + 1
        y[here, 0] = beats.frame_targets(times[number], frames, fps, 1)[frame]

    references = [times[number] for number in np.unique(record)]
    start = np.array(starts, np.int32)
    return _checked(task, Labels(used, y, np.arange(len(y)), y, start, references))


def _beat_times(task: Task, record: Record) -> np.ndarray:
    times = record["beats"]["time"] if task.label == "beats" else record["beat_times"]
    if task.label == "downbeat_times":
        times = times[np.asarray(record["bar_positions"]) == 1]
    return np.sort(np.asarray(times, float))


def beat_estimates(
    outputs: np.ndarray,
    labels: Labels,
    rows: windows.Rows,
    fps: float,
    tempi: beats.Tempi = beats.BEATS,
) -> list[np.ndarray]:
    """Return the beat times of each record from frame outputs [n, 1], before the sigmoid."""
    clips = [outputs[own, 0] for own in _frame_places(labels, rows, fps)]
    return beats.decode(clips, fps, tempi)


def beat_monitor(
    labels: Labels, rows: windows.Rows, fps: float, tempi: beats.Tempi = beats.BEATS
) -> beats.Monitor:
    """Return what scores a split's frame outputs by the beats that are decoded from them."""
    return beats.monitor(labels.references, _frame_places(labels, rows, fps), fps, tempi)


def _frame_places(labels: Labels, rows: windows.Rows, fps: float) -> list[np.ndarray]:
    """Return, for each record, the place of each of its frames among the rows of the labels.

    A frame that is in no window (one is cut off between two windows) has the place of the nearest
    frame before it.
    """
    places = []
    for first, end in zip(labels.start, np.append(labels.start[1:], len(labels.rows)), strict=True):
        frame = np.round(rows.begin[labels.rows[first:end]] * fps).astype(int)
        place = np.searchsorted(frame, np.arange(frame[-1] + 1), side="right") - 1
        places.append(first + np.maximum(place, 0))
    return places


CLASS_NAMES = {  # of the classes that are defined here, and of those of emomusic
    "key": metrics.KEYS,
    "pitch_classes": metrics.TONICS,
    "chord": metrics.KEYS,
    "polyphony": ("0", "1", "2", "3", "4", "5", "6", "7+"),
    "beat_times": ("beat",),
    "downbeat_times": ("downbeat",),
    "beats": ("beat",),
    "emotion": ("arousal", "valence"),
}
