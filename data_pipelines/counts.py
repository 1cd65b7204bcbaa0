"""The label counts of the published test splits: from them follow the scores of chance.

`test_counts*.tsv` beside a builder holds where its counts are from, and for each class or tag the
number of test items that have it, and the number of all test items.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mir_eval

# Most frequent classes of the training splits, from the same sources: 95 of 923 tracks are in
# C minor, 48 of 443 clips are classical.
_FREQUENT = {"giantsteps_key": "C minor", "gtzan_genre": "classical"}
TABLES = {
    "magnatagatune": "magnatagatune/test_counts.tsv",
    "giantsteps_key": "giantsteps_key/test_counts.tsv",
    "gtzan_genre": "gtzan/test_counts.tsv",
    "mtg_instrument": "mtg_jamendo/test_counts_instrument.tsv",
    "mtg_moodtheme": "mtg_jamendo/test_counts_moodtheme.tsv",
    "mtg_genre": "mtg_jamendo/test_counts_genre.tsv",
    "mtg_top50": "mtg_jamendo/test_counts_top50.tsv",
}


class Counts(NamedTuple):
    """How many test items have each class or tag, how many there are, and the source of both."""

    positives: dict[str, int]
    items: int
    source: str


def read(task: str) -> Counts:
    """Return the counts of one of TABLES."""
    source, _, *lines = (Path(__file__).parent / TABLES[task]).read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    (items,) = {int(row[2]) for row in rows}
    return Counts({row[0]: int(row[1]) for row in rows}, items, source.removeprefix("# "))


def chance(task: str) -> float:
    """Return the score of an answer given without listening, a baseline for test scores.

    For tags it is the average precision of a constant answer, which is the mean share of items
    that have a tag; for genres and keys it is the accuracy, or weighted score, of always answering
    the class that is most frequent in training.
    """
    counts = read(task)
    if task not in _FREQUENT:
        return sum(counts.positives.values()) / len(counts.positives) / counts.items
    score: Callable[[str, str], float] = (
        mir_eval.key.weighted_score if task == "giantsteps_key" else _accuracy
    )
    answer = _FREQUENT[task]
    return sum(n * score(name, answer) for name, n in counts.positives.items()) / counts.items


def _accuracy(reference: str, answer: str) -> float:
    return float(reference == answer)
