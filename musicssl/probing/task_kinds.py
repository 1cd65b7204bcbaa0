"""The kinds of tasks: everything in which a class, a tag, a key, an emotion and a beat differ.

A kind says how a split is labelled, what a probe is trained with, and how answers are scored. A
further kind is an entry of `KINDS`; no other module asks which kind a task is of.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from musicssl.features import windows
from musicssl.probing import beats, grid, labels, metrics
from musicssl.probing.labels import Labels, Record
from musicssl.probing.tasks import Task


class Answers(NamedTuple):
    """What one probe answers about a test split, and what is needed to score it.

    outputs: of the split's items, [i, c]. labels: of the split. rows: of the split's features.
    fps: encoder frames a second.
    """

    outputs: np.ndarray
    labels: Labels
    rows: windows.Rows
    fps: float


@dataclasses.dataclass(frozen=True)
class Kind:
    """What tasks of one kind are labelled, trained and scored with.

    loss: of `grid.Protocol`.
    monitor: gives the score that decides early stopping and the choice of a layer, from the
      validation split's labels, its feature rows and encoder frames a second.
    score_names: the names of all scores; the first is the one that is reported.
    label: gives a split its labels, from (task, records, feature rows, encoder frames a second).
    score: gives every score of a probe's answers.
    resample: gives the main score of bootstrap samples of the test clips: [draws].
    chance: gives every score of the best answer that ignores the audio, which is chosen on the
      labels of training items and scored on those of test items.
    crop_seconds: what a probe trains on of each clip; 0 for single rows.
    one_class: an item has exactly one class, so that a table of confusions can be drawn.
    tags: an item has any number of classes, and scores are averages over classes.
    log_odds: scores read outputs as log-odds, not by their order alone.
    """

    loss: str
    monitor: Callable[[Labels, windows.Rows, float], grid.Monitor]
    score_names: tuple[str, ...]
    label: Callable[[Task, Sequence[Record], windows.Rows, float], Labels]
    score: Callable[[Answers], dict[str, float]]
    resample: Callable[[Answers], np.ndarray]
    chance: Callable[[Task, Labels, Labels], dict[str, float]]
    crop_seconds: int = 0
    one_class: bool = False
    tags: bool = False
    log_odds: bool = False

    @property
    def main_score(self) -> str:
        """Return the name of the score that is reported first."""
        return self.score_names[0]


def kind_of(task: Task) -> Kind:
    """Return the kind of a task."""
    return KINDS[task.kind]


# Kinds whose items have labels: each score is a function of the labels and the outputs.

_Constant = Callable[[Task, Labels, Labels], np.ndarray]


def _item_kind(
    loss: str,
    monitor: grid.Monitor,
    scores: Mapping[str, metrics.Score],
    constant: _Constant,
    draws: int = 1000,
    one_class: bool = False,
    tags: bool = False,
) -> Kind:
    """Return a kind whose scores compare the labels of items with outputs.

    Args:
      scores: by name, the one that is reported first.
      constant: gives the outputs [i, c] of the best answer that ignores the audio.
      draws: of the bootstrap.
    """
    main = next(iter(scores))

    # This function scores everything: the outputs of probes and those of chance.
    def score_outputs(truth: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        return {name: score(truth, outputs) for name, score in scores.items()}

    def score(answers: Answers) -> dict[str, float]:
        return score_outputs(answers.labels.labels, answers.outputs)

    def resample(answers: Answers) -> np.ndarray:
        own = answers.labels
        return metrics.bootstrap(scores[main], own.labels, answers.outputs, own.clips, draws=draws)

    def chance(task: Task, train: Labels, test: Labels) -> dict[str, float]:
        return score_outputs(test.labels, constant(task, train, test))

    return Kind(
        loss, lambda *_: monitor, tuple(scores), labels.item_labels, score, resample, chance,
        one_class=one_class, tags=tags,
    )  # fmt: skip


def _training_mean(task: Task, train: Labels, test: Labels) -> np.ndarray:
    return np.broadcast_to(train.labels.mean(0), test.labels.shape)


def _class_counts(task: Task, train: Labels, test: Labels) -> np.ndarray:
    """Count the training items of each class: [c]."""
    classes = max(int(train.labels.max()), int(test.labels.max()), task.outputs - 1) + 1
    return np.bincount(train.labels, minlength=classes)


def _most_frequent_class(task: Task, train: Labels, test: Labels) -> np.ndarray:
    counts = _class_counts(task, train, test)
    return np.broadcast_to(counts, (len(test.labels), len(counts)))


def _best_constant_key(task: Task, train: Labels, test: Labels) -> np.ndarray:
    worth = _class_counts(task, train, test) @ metrics.key_weights()
    return np.broadcast_to(worth, (len(test.labels), len(worth)))


# Beats: a row is a frame, but what is scored are the beat times decoded from a record's frames.


def _beat_kind(tempi: beats.Tempi, period: float) -> Kind:
    """Return a kind whose items are the beats, or downbeats, of a record.

    Args:
      tempi: that are decoded.
      period: in seconds, of the metronome that ignores the audio.
    """

    def monitor(own: Labels, rows: windows.Rows, fps: float) -> grid.Monitor:
        return labels.beat_monitor(own, rows, fps, tempi)

    def score(answers: Answers) -> dict[str, float]:
        estimates = labels.beat_estimates(*answers, tempi)
        return beats.f_measures(answers.labels.references, estimates)

    def resample(answers: Answers) -> np.ndarray:
        """Draw records with replacement, and return the F-measure at 70 ms of each sample."""
        estimates = labels.beat_estimates(*answers, tempi)
        pairs = list(zip(answers.labels.references, estimates, strict=True))
        hits = np.array([beats.matches(r, e, beats.TOLERANCE) for r, e in pairs])
        sizes = np.array([len(r) + len(e) for r, e in pairs])

        def f_measure(hits: np.ndarray, sizes: np.ndarray) -> float:
            return 2 * hits.sum() / sizes.sum()

        return metrics.bootstrap(f_measure, hits, sizes, draws=1000)

    def chance(task: Task, train: Labels, test: Labels) -> dict[str, float]:
        """Score a metronome at 120 beats a minute."""
        ends = [times[-1] + period for times in test.references]
        metronome = [np.arange(period / 2, end, period) for end in ends]
        return beats.f_measures(test.references, metronome)

    names = ("f", "f_20ms", "f_mean")
    return Kind(
        "bce",
        monitor,
        names,
        labels.beat_labels,
        score,
        resample,
        chance,
        crop_seconds=10,
        log_odds=True,
    )


# Tempo: a window has a class of tempo, but what is scored are the tempi of records.


def _best_constant_tempo(task: Task, train: Labels, test: Labels) -> np.ndarray:
    tempi = np.eye(len(metrics.TEMPI))
    worth = [metrics.tempo_accuracy(train.labels, tempi[[c]]) for c in range(len(tempi))]
    return np.broadcast_to(tempi[np.argmax(worth)], (len(test.labels), len(tempi)))


KINDS = {
    "tags": _item_kind(
        "bce",
        metrics.monitor_roc_auc,
        {"roc_auc": metrics.roc_auc, "ap": metrics.average_precision},
        _training_mean,
        draws=200,
        tags=True,
    ),
    "class": _item_kind(
        "ce",
        metrics.monitor_accuracy,
        {"accuracy": metrics.accuracy},
        _most_frequent_class,
        one_class=True,
    ),
    "key": _item_kind(
        "ce",
        metrics.monitor_key,
        {
            "weighted": metrics.key_score,
            "accuracy": metrics.accuracy,
            "weighted_descending": metrics.key_score_descending,
        },
        _best_constant_key,
        one_class=True,
    ),
    "emotion": _item_kind(
        "mse",
        metrics.monitor_r2,
        {"r2": metrics.r2, "r2_arousal": metrics.r2_arousal, "r2_valence": metrics.r2_valence},
        _training_mean,
    ),
    "tempo": dataclasses.replace(
        _item_kind(
            "ce",
            metrics.monitor_tempo,
            {
                "accuracy": metrics.tempo_accuracy,
                "accuracy_octaves": metrics.tempo_accuracy_octaves,
            },
            _best_constant_tempo,
        ),
        label=labels.tempo_labels,
    ),
    "beat": _beat_kind(beats.BEATS, 0.5),
    "downbeat": _beat_kind(beats.DOWNBEATS, 2.0),
}
