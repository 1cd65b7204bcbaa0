"""Published scores that the table shows beside ours, x 100, each row with its source.

Only what was read in a primary source is here. The results of arXiv:2307.05161 itself were not
found, so none is shown as that paper's. Rows are from MARBLE's constrained track
(arXiv:2306.10548v1, tables 3 and 4), whose protocol is the one followed here.
"""

from typing import NamedTuple

MARBLE = "MARBLE, arXiv:2306.10548v1, tables 3 and 4"
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


class Row(NamedTuple):
    """A published model: values in the order of COLUMNS, None where nothing is reported."""

    model: str
    values: tuple[float | None, ...]
    source: str = MARBLE


ROWS = (
    Row(
        "MusiCNN",
        (90.3, 37.8, 14.4, 73.5, None, 44.4, 68.8, 72.6, 64.1, 70.3, 57.0, 74.0, 17.2, 74.0, 12.6,
         86.0, 17.5, 82.0, 27.5),
    ),
    Row(
        "Music2Vec 95M",
        (90.0, 36.2, 50.6, 74.1, 68.2, 52.1, 71.0, 69.3, 93.1, 71.1, 81.4, 76.1, 19.2, 76.7, 14.3,
         87.1, 18.8, 83.0, 29.2),
    ),
    Row(
        "MERT-v1-95M",
        (91.0, 39.3, 63.5, 74.8, 88.3, 55.5, 76.3, 70.7, 92.6, 74.2, 83.7, 77.5, 19.4, 76.4, 13.4,
         87.1, 18.8, 83.0, 29.0),
    ),
)  # fmt: skip


def scores(task: str) -> list[tuple[str, str, dict[str, float]]]:
    """(model, source, {score: value}) of the rows that have the task; values as fractions."""
    found = []
    for row in ROWS:
        values = {
            score: value / 100
            for (name, score), value in zip(COLUMNS, row.values, strict=True)
            if name == task and value is not None
        }
        if values:
            found.append((row.model, row.source, values))
    return found
