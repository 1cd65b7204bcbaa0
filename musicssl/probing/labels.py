"""What the rows of a task's features are labelled with, and what ignoring the audio would score.

A row is a window, a part of one, or a frame; an item is what is scored: a record, or a row.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from musicssl.features import windows
from musicssl.probing import beats, metrics
from musicssl.probing.tasks import KINDS, Task

Record = Mapping[str, Any]
Part = Callable[[Record, float, float], np.ndarray | int]

DRUMS = 15  # of synth_music's instruments
THIRDS = (-1, 0, 1, 1, -1, 0, 0, 1, 1)  # N maj min dim sus4 7 maj7 min7 hdim7: 1 is minor


class Labels(NamedTuple):
    """Labels of a split's rows.

    rows: feature rows that take part, [n]. y: [n] or [n, c]. item: [n]. labels: of items.
    start: first of `rows` of each record, where crops are drawn. references: beat times of each
    record in seconds, for beat tasks. levels: of each factor of the task, for each item.
    """

    rows: np.ndarray
    y: np.ndarray
    item: np.ndarray
    labels: np.ndarray
    start: np.ndarray
    references: Sequence[np.ndarray]
    levels: Mapping[str, np.ndarray] = MappingProxyType({})


def labels(task: Task, records: Sequence[Record], rows: windows.Rows, fps: float) -> Labels:
    """The labels of feature rows, from the records' own and the rows' times.

    Args:
      records: of a split, in order. rows: of `windows.rows`. fps: encoder frames a second.

    Raises:
      ValueError: no record belongs to the task.
    """
    if task.kind == "beat":
        return _beat_labels(task, records, rows, fps)
    if task.label in PART_LABELS:
        y = _part_labels(PART_LABELS[task.label], records, rows)
        used = np.flatnonzero(y >= 0) if y.ndim == 1 else np.arange(len(y))
        y = y[used]
        return _checked(task, Labels(used, y, np.arange(len(y)), y, used[:0], ()))
    whole = np.stack([np.asarray(record[task.label]) for record in records])
    # A track without any tag of an MTG subset is not of that subset; elsewhere it counts.
    member = whole.any(1) if task.dataset == "mtg_jamendo" else np.ones(len(whole), bool)
    used = np.flatnonzero(member[rows.record])
    number = np.cumsum(member) - 1
    whole = whole.astype(np.float32 if whole.ndim == 2 else np.int32)
    if not task.by_item:
        y = whole[rows.record[used]]
        return _checked(task, Labels(used, y, np.arange(len(y)), y, used[:0], ()))
    item = number[rows.record[used]]
    levels = _levels(task, [r for r, belongs in zip(records, member, strict=True) if belongs])
    y, items = whole[rows.record[used]], whole[member]
    return _checked(task, Labels(used, y, item, items, used[:0], (), levels))


def _levels(task: Task, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """The level of each factor of the task in each record, numbers or text."""

    def plain(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    return {name: np.array([plain(record[name]) for record in records]) for name in task.factors}


def _checked(task: Task, found: Labels) -> Labels:
    if not len(found.rows):
        raise ValueError(f"{task.name}: no record of the split belongs to the task")
    return found


def _part_labels(of_part: Part, records: Sequence[Record], rows: windows.Rows) -> np.ndarray:
    """Labels of the parts of records that rows are, by a function of (record, begin, end)."""
    each = (
        of_part(records[r], begin, end)
        for r, begin, end in zip(rows.record, rows.begin, rows.end, strict=True)
    )
    return np.array(list(each))


def _sounding(record: Record, begin: float, end: float, share: float) -> np.ndarray:
    """Which notes, drums left out, sound for that share of the time: bool [notes]."""
    notes = record["notes"]
    overlap = np.minimum(notes["offset"], end) - np.maximum(notes["onset"], begin)
    return (overlap >= share * (end - begin)) & (notes["instrument"] != DRUMS)


def _instruments(record: Record, begin: float, end: float) -> np.ndarray:
    """Which of 16 instruments play a note that begins or goes on here: float32 [16]."""
    notes = record["notes"]
    here = (notes["onset"] < end) & (notes["offset"] > begin)
    return np.isin(np.arange(16), notes["instrument"][here]).astype(np.float32)


def _pitch_classes(record: Record, begin: float, end: float) -> np.ndarray:
    """Which pitch classes sound for at least a quarter of the time: float32 [12]."""
    heard = record["notes"]["pitch"][_sounding(record, begin, end, 0.25)] % 12
    return np.isin(np.arange(12), heard).astype(np.float32)


def _chord(record: Record, begin: float, end: float) -> int:
    """The chord at the middle: its root, 12 more if its third is minor; -1 for none or no third."""
    beat = np.searchsorted(record["beats"]["time"], (begin + end) / 2, side="right") - 1
    if beat < 0:
        return -1
    root, quality = int(record["chords"]["root"][beat]), int(record["chords"]["quality"][beat])
    third = THIRDS[quality]
    return -1 if third < 0 or root < 0 else root + 12 * third


def _polyphony(record: Record, begin: float, end: float) -> int:
    """How many different pitches sound at the middle, 7 for more."""
    notes = record["notes"]
    middle = (begin + end) / 2
    on = (notes["onset"] <= middle) & (middle < notes["offset"]) & (notes["instrument"] != DRUMS)
    return min(len(np.unique(notes["pitch"][on])), 7)


PART_LABELS = {
    "instruments": _instruments,
    "pitch_classes": _pitch_classes,
    "chord": _chord,
    "polyphony": _polyphony,
}


def _beat_labels(task: Task, records: Sequence[Record], rows: windows.Rows, fps: float) -> Labels:
    times = [
        np.sort(np.asarray(r["beats"]["time"] if task.label == "beats" else r[task.label], float))
        for r in records
    ]
    has = np.array([len(t) > 0 for t in times])
    used = np.flatnonzero(has[rows.record])
    y, start = np.zeros((len(used), 1), np.float32), []
    record = rows.record[used]
    exact = y.copy()
    for number in np.unique(record):
        here = np.flatnonzero(record == number)
        start.append(here[0])
        frame = np.round(rows.begin[used][here] * fps).astype(int)
        frames = int(frame[-1]) + 1
        y[here, 0] = beats.frame_targets(times[number], frames, fps, 1)[frame]
        exact[here, 0] = beats.frame_targets(times[number], frames, fps, 0)[frame]
    references = [times[number] for number in np.unique(record)]
    start = np.array(start, np.int32)
    return _checked(task, Labels(used, y, np.arange(len(y)), exact, start, references))


def beat_estimates(
    outputs: np.ndarray, found: Labels, rows: windows.Rows, fps: float
) -> list[np.ndarray]:
    """Beat times of each record from frame outputs [n, 1], before the sigmoid.

    Frames that no window holds (between two windows, one is cut off) have the activation of the
    nearest before them.
    """
    activations = 1 / (1 + np.exp(-outputs[:, 0].astype(np.float64)))
    ends = np.append(found.start[1:], len(outputs))
    estimates = []
    for first, end in zip(found.start, ends, strict=True):
        frame = np.round(rows.begin[found.rows[first:end]] * fps).astype(int)
        place = np.searchsorted(frame, np.arange(frame[-1] + 1), side="right") - 1
        estimates.append(beats.decode(activations[first:end][np.maximum(place, 0)], fps))
    return estimates


def chance(task: Task, train: Labels, test: Labels) -> dict[str, float]:
    """What the best answer that ignores the audio scores: chosen on train, scored on test.

    Tags and emotions: the training mean. Classes: the most frequent. Keys: the constant that
    scores best. Beats: a metronome at 120 a minute.
    """
    kind = KINDS[task.kind]
    if task.kind == "beat":
        metronome = [np.arange(0.25, r[-1] + 0.5, 0.5) for r in test.references]
        return beats.f_measures(test.references, metronome)
    if task.kind in ("tags", "emotion"):
        constant = np.broadcast_to(train.labels.mean(0), test.labels.shape)
    else:
        outputs = max(int(train.labels.max()), int(test.labels.max()), task.outputs - 1) + 1
        counts = np.bincount(train.labels, minlength=outputs)
        if task.kind == "key":
            counts = counts @ metrics.key_weights()
        constant = np.broadcast_to(counts, (len(test.labels), outputs))
    return {name: score(test.labels, constant) for name, score in kind.scores.items()}


NAMES = {  # of the classes that are defined here, and of those of emomusic
    "key": metrics.KEYS,
    "pitch_classes": metrics.TONICS,
    "chord": metrics.KEYS,
    "polyphony": ("0", "1", "2", "3", "4", "5", "6", "7+"),
    "beat_times": ("beat",),
    "beats": ("beat",),
    "emotion": ("arousal", "valence"),
}
