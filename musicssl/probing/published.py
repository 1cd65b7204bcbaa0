"""Published scores that the table shows beside ours, x 100, and label counts of test splits.

What is here was read in a primary source; where it was not, a comment says so. The results of
arXiv:2307.05161 itself were not found, so none is shown as that paper's. Rows are from MARBLE's
constrained track (arXiv:2306.10548v1, tables 3 and 4), whose protocol is the one followed here.

The counts tell what can be scored without the audio. We found no published counts of GTZAN-Rhythm,
of NSynth's pitches, of VocalSet's 3 s chunks, or by tag of MagnaTagATune and MTG-Jamendo.
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


class _ClassCounts(NamedTuple):
    """The classes of a data set.

    items: of each class in the test split, in the task's order.
    answer: the number of the class that is most frequent in the training split.
    """

    items: tuple[int, ...]
    answer: int
    source: str


TEST_COUNTS = {
    "gtzan_genre": _ClassCounts(
        (31, 31, 30, 29, 27, 27, 30, 27, 26, 32), 1,
        "coreyker/dnn-mgr, gtzan/test_filtered.txt and train_filtered.txt (48 classical of 443)",
    ),
    "giantsteps_key": _ClassCounts(
        (15, 1, 10, 9, 10, 9, 5, 8, 5, 11, 5, 5,
         53, 25, 40, 36, 48, 73, 31, 62, 29, 54, 28, 32), 12,
        "hendriks73/directional_cnns, annotations/giantsteps-key.tsv: the 604 annotations of "
        "GiantSteps/giantsteps-key-dataset",
    ),
    "nsynth_instrument": _ClassCounts(
        (843, 269, 180, 652, 766, 202, 502, 235, 306, 0, 141), 0,
        "NSynth (arXiv:1704.01279), as quoted: not read in its examples.json",
    ),
}  # fmt: skip
# Mean share of test items that have a tag: the AP of any constant. Moods and themes: 7,564 labels
# of 56 tags and 4,231 tracks, from the most popular tag's precision .079887 and recall .044685
# (MTG/mtg-jamendo-dataset, results/mediaeval2019/baseline_popular_results.tsv). The others were
# computed from the split files of that repository and of jordipons/musicnn-training.
TAG_SHARES = {
    "magnatagatune": 0.0531,
    "mtg_instrument": 0.0609,
    "mtg_moodtheme": 7564 / (56 * 4231),
    "mtg_genre": 0.0277,
    "mtg_top50": 0.0614,
}


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
