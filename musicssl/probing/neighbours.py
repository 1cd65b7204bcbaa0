"""Answers without training, beside the probes: nearest neighbours, and means of 8 items a class.

Both look at single layers, at the mean of an item's feature rows, with each channel at zero mean
and unit variance over the training items, and each item at length 1. The layer, and how many
neighbours are asked, are chosen on validation; the test is scored as the probes' is.

Axis letters: i items, d width, c outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from musicssl.features import windows
from musicssl.probing import metrics
from musicssl.probing.labels import Labels
from musicssl.probing.schema import BesideResult, SeedScore
from musicssl.probing.task_kinds import Answers, Kind

KNN, FEW_SHOT = "knn", "few_shot"
NEIGHBOURS = (1, 5, 10, 20, 50)
SHOTS, DRAWS = 8, 10
_BLOCK = 256  # items whose neighbours are looked for together

Splits = Sequence[tuple[np.ndarray, windows.Rows, Labels]]  # train, validation, test; [l, n, d]


class _Items(NamedTuple):
    """The items of a layer's three splits: features [i, d] of length 1."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def takes_neighbours(kind: Kind) -> bool:
    """Return whether nearest neighbours answer tasks of a kind: not frames, which are too many."""
    return not kind.crop_seconds


def takes_few_shots(kind: Kind) -> bool:
    """Return whether tasks of a kind have items of exactly one class."""
    return kind.one_class


def knn(
    kind: Kind, splits: Splits, outputs: int, fps: float, poll: Callable[[], None], name: str
) -> BesideResult:
    """Score nearest neighbours by cosine: the mean of what the k nearest items are labelled with.

    Args:
      outputs: c.
      fps: encoder frames a second.
      poll: called before each layer; what it raises ends the work.
      name: of the task, for the progress bar.
    """
    features, _, train = splits[0]
    targets = _targets(kind, train, outputs)
    best: _Best | None = None
    for layer in tqdm(range(len(features)), desc=f"neighbours of {name}", delay=2):
        poll()
        items = _items(splits, layer)
        ks = sorted({min(k, len(targets)) for k in NEIGHBOURS})
        found = nearest(items.train, targets, items.validation, ks)
        values = {k: _main(kind, found[k], splits[1], fps) for k in ks}
        k = max(ks, key=lambda k: values[k])
        if best is None or values[k] > best.validation:
            answers = nearest(items.train, targets, items.test, [k])[k]
            best = _Best(str(layer), values[k], k, [answers])
    return _result(kind, best, splits[2], fps)


def few_shot(
    kind: Kind, splits: Splits, outputs: int, fps: float, poll: Callable[[], None], name: str
) -> BesideResult:
    """Score the nearest of class means of SHOTS training items, drawn DRAWS times.

    A class with fewer items has all of them. Arguments are those of `knn`.
    """
    train = splits[0][2]
    classes = _targets(kind, train, outputs).argmax(1)
    draws = [drawn(classes, draw) for draw in range(DRAWS)]
    best: _Best | None = None
    for layer in tqdm(range(len(splits[0][0])), desc=f"few shots of {name}", delay=2):
        poll()
        items = _items(splits, layer)
        centres = [class_means(items.train[own], classes[own], outputs) for own in draws]
        values = [_main(kind, nearness(items.validation, x), splits[1], fps) for x in centres]
        value = float(np.mean(values))
        if best is None or value > best.validation:
            answers = [nearness(items.test, x) for x in centres]
            best = _Best(str(layer), value, SHOTS, answers)
    return _result(kind, best, splits[2], fps)


class _Best(NamedTuple):
    """The layer that does best on validation.

    number: of neighbours or of shots. answers: of the test items, [i, c] of each draw.
    """

    source: str
    validation: float
    number: int
    answers: list[np.ndarray]


def _result(
    kind: Kind, best: _Best | None, test: tuple[np.ndarray, windows.Rows, Labels], fps: float
) -> BesideResult:
    assert best is not None  # there is a layer
    answers = [Answers(outputs, test[2], test[1], fps) for outputs in best.answers]
    scores = [kind.score(answer) for answer in answers]
    draws = [kind.resample(answer) for answer in answers]
    told: dict[str, SeedScore] = {}
    for name in scores[0]:
        values = [score[name] for score in scores]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        told[name] = {"mean": float(np.mean(values)), "sd": spread}
    return {
        "source": best.source,
        "number": best.number,
        "validation": best.validation,
        "test": told,
        "interval": list(metrics.interval(metrics.over_seeds([np.stack(draws)]))),
    }


def _main(
    kind: Kind,
    outputs: np.ndarray,
    split: tuple[np.ndarray, windows.Rows, Labels],
    fps: float,
) -> float:
    return kind.score(Answers(outputs, split[2], split[1], fps))[kind.main_score]


def _targets(kind: Kind, labels: Labels, outputs: int) -> np.ndarray:
    """Return what each item is labelled with: float32 [i, c], one-hot where it has one class."""
    first = np.flatnonzero(np.diff(labels.item, prepend=-1))
    y = labels.y[first]
    return np.eye(outputs, dtype=np.float32)[y] if kind.loss == "ce" else y.astype(np.float32)


def _items(splits: Splits, layer: int) -> _Items:
    """Return a layer's items, standardised by the training items, each of length 1."""
    means = [item_means(features[layer], labels) for features, _, labels in splits]
    centre, scale = means[0].mean(0), means[0].std(0)
    standard = [(x - centre) / np.where(scale > 0, scale, 1) for x in means]
    train, validation, test = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in standard
    )
    return _Items(train, validation, test)


def item_means(layer: np.ndarray, labels: Labels) -> np.ndarray:
    """Return the mean of each item's rows of features [all rows, d]: float32 [i, d]."""
    first = np.flatnonzero(np.diff(labels.item, prepend=-1))
    ends = np.append(first[1:], len(labels.item))
    out = np.empty((len(first), layer.shape[1]), np.float32)
    for begin in range(0, len(first), _BLOCK):
        own = slice(begin, begin + _BLOCK)
        lowest = first[own][0]
        x = layer[labels.rows[lowest : ends[own][-1]]].astype(np.float32)
        out[own] = np.add.reduceat(x, first[own] - lowest, axis=0)
        out[own] /= (ends[own] - first[own])[:, None]
    return out


def nearest(
    train: np.ndarray, targets: np.ndarray, x: np.ndarray, ks: Sequence[int]
) -> Mapping[int, np.ndarray]:
    """Return the mean targets of the k nearest training items of each item, for each k: [i, c].

    Args:
      train, x: of length 1, [n, d] and [i, d].
      targets: of the training items, [n, c].
    """
    most = max(ks)
    found = {k: np.empty((len(x), targets.shape[1]), np.float32) for k in ks}
    for begin in range(0, len(x), _BLOCK):
        likeness = x[begin : begin + _BLOCK] @ train.T  # [block, n]
        order = np.argpartition(-likeness, most - 1, 1)[:, :most]
        by_rank = np.argsort(-np.take_along_axis(likeness, order, 1), 1, kind="stable")
        order = np.take_along_axis(order, by_rank, 1)  # the nearest first
        for k in ks:
            found[k][begin : begin + _BLOCK] = targets[order[:, :k]].mean(1)
    return found


def drawn(classes: np.ndarray, draw: int) -> np.ndarray:
    """Return the numbers of SHOTS items of each class, or all of a smaller one."""
    random = np.random.default_rng(draw)
    order = random.permutation(len(classes))
    chosen = [order[classes[order] == c][:SHOTS] for c in np.unique(classes)]
    return np.concatenate(chosen)


def class_means(x: np.ndarray, classes: np.ndarray, outputs: int) -> np.ndarray:
    """Return the mean of each class's items [i, d], NaN for classes without one: [c, d]."""
    means = np.full((outputs, x.shape[1]), np.nan, np.float32)
    for c in np.unique(classes):
        means[c] = x[classes == c].mean(0)
    return means


def nearness(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return minus the squared distance of items [i, d] to class means [c, d]: [i, c]."""
    square = (x**2).sum(1)[:, None] - 2 * x @ means.T + (means**2).sum(1)
    return np.where(np.isnan(square), -np.inf, -square)
