"""Published scores that the table shows beside ours, x 100, and chance on published test labels.

What is here was read in a primary source; where it was not, a comment says so. The results of
arXiv:2307.05161 itself were not found, so none is shown as that paper's. Rows are from MARBLE's
constrained track (arXiv:2306.10548v1, tables 3 and 4). Its protocol is followed here, with the
deviations that README.md beside this file names.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from musicssl import host

MARBLE = "MARBLE, arXiv:2306.10548v1, tables 3 and 4"
DEVIATIONS = "musicssl/probing/README.md names where the tasks differ from its code"
# What MARBLE's constrained track trains, by leaves of configs/probe.py; 0 is told in words.
_GRID: dict[str, Any] = {
    "kind": "mlp",
    "standardise": False,
    "layers": "all",
    "learning_rates": [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2],
    "epochs": 0,
    "batch_size": 64,
    "limit": 0,
}
_WORDS = {"epochs": "the task's", "limit": "all"}
COLUMNS = (  # (task, score) of the values of a row
    ("magnatagatune", "roc_auc"),
    ("magnatagatune", "ap"),
    ("giantsteps_key", "weighted"),
    ("gtzan_genre", "accuracy"),
    ("gtzan_beat", "f"),
    ("emomusic", "r2_valence"),
    ("emomusic", "r2_arousal"),
    ("nsynth_instrument", "accuracy"),
    ("nsynth_pitch", "accuracy"),
    ("vocalset_technique", "accuracy"),
    ("vocalset_singer", "accuracy"),
    ("mtg_instrument", "roc_auc"),
    ("mtg_instrument", "ap"),
    ("mtg_moodtheme", "roc_auc"),
    ("mtg_moodtheme", "ap"),
    ("mtg_genre", "roc_auc"),
    ("mtg_genre", "ap"),
    ("mtg_top50", "roc_auc"),
    ("mtg_top50", "ap"),
)


class _PublishedRow(NamedTuple):
    """A published model: values in the order of COLUMNS, None where nothing is reported."""

    model: str
    values: tuple[float | None, ...]
    source: str = MARBLE


_ROWS = (
    _PublishedRow(
        "MusiCNN",
        (90.3, 37.8, 14.4, 73.5, None, 44.4, 68.8, 72.6, 64.1, 70.3, 57.0, 74.0, 17.2, 74.0, 12.6,
         86.0, 17.5, 82.0, 27.5),
    ),
    _PublishedRow(
        "Music2Vec 95M",
        (90.0, 36.2, 50.6, 74.1, 68.2, 52.1, 71.0, 69.3, 93.1, 71.1, 81.4, 76.1, 19.2, 76.7, 14.3,
         87.1, 18.8, 83.0, 29.2),
    ),
    _PublishedRow(
        "MERT-v1-95M",
        (91.0, 39.3, 63.5, 74.8, 88.3, 55.5, 76.3, 70.7, 92.6, 74.2, 83.7, 77.5, 19.4, 76.4, 13.4,
         87.1, 18.8, 83.0, 29.0),
    ),
)  # fmt: skip


# Chance levels that are not of counted labels. R2 of the mean is 0. NSynth's test split has 843
# notes of basses, the most frequent family of the training split, among 4,096 (arXiv:1704.01279, as
# quoted: not read in its examples.json). We found no published labels of GTZAN-Rhythm, of NSynth's
# pitches or of VocalSet's 3 s chunks.
_STATED = {"emomusic": ("r2", 0.0), "nsynth_instrument": ("accuracy", 843 / 4096)}
_COUNTED = {"giantsteps_key": "weighted", "gtzan_genre": "accuracy"}  # of tags it is the AP


def chance(task: str) -> tuple[str, float] | None:
    """Return the best answer's score without audio, on published test labels: its name and value.

    It is None for a task whose published labels are not known.
    """
    counted = host.published_chance(task)
    if counted is None:
        return _STATED.get(task)
    return _COUNTED.get(task, "ap"), counted


def apart(settings: Mapping[str, Any] | None) -> str:
    """Return in words how the settings of a result differ from MARBLE's grid; "" if they do not.

    Args:
      settings: of a TaskResult; None where an earlier version wrote none.
    """
    if settings is None:
        return "its settings are not known"
    changed = []
    for name, value in _GRID.items():
        if settings.get(name, value) != value:
            changed.append(f"{name} {settings[name]} instead of {_WORDS.get(name, value)}")
    return ", ".join(changed)


def scores(task: str) -> list[tuple[str, str, dict[str, float]]]:
    """Return (model, source, {score: value}) of models with scores of the task, as fractions."""
    models = []
    for row in _ROWS:
        values = {}
        for (name, score), value in zip(COLUMNS, row.values, strict=True):
            if name == task and value is not None:
                values[score] = value / 100
        if values:
            models.append((row.model, row.source, values))
    return models
