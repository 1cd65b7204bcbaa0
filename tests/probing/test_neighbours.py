"""Nearest neighbours and class means against scikit-learn's."""

import numpy as np
import pytest
import sklearn.neighbors
import sklearn.preprocessing

from musicssl.features import windows
from musicssl.probing import labels, metrics, neighbours
from musicssl.probing.task_kinds import KINDS, Answers

pytestmark = pytest.mark.usefixtures("few_draws")
CLASSES, WIDTH = 5, 12
SIZES = (90, 40, 60)


def rows(count: int) -> windows.Rows:
    number = np.arange(count)
    return windows.Rows(number, number * 0.0, number * 0.0 + 1)


def splits(multi: bool = False) -> list:
    """Two layers, noise and one with the classes; each item has two rows."""
    made = []
    for number, size in enumerate(SIZES):
        random = np.random.default_rng(number)
        y = random.integers(0, CLASSES, size).astype(np.int32)
        centres = 0.8 * np.random.default_rng(9).standard_normal((CLASSES, WIDTH))
        x = random.standard_normal((2, 2 * size, WIDTH))
        x[1] += centres[np.repeat(y, 2)]
        item = np.repeat(np.arange(size), 2)
        if multi:
            y = (centres[y] + random.standard_normal((size, WIDTH)) > 0.7).astype(np.float32)
        own = labels.Labels(np.arange(2 * size), y[item], item, y, item[:0], ())
        made.append((x.astype(np.float16), rows(2 * size), own))
    return made


def by_hand(made: list, layer: int) -> list[np.ndarray]:
    """Items of each split, standardised and normalised by scikit-learn."""
    means = [x[layer].astype(np.float64).reshape(-1, 2, WIDTH).mean(1) for x, _, _ in made]
    scaler = sklearn.preprocessing.StandardScaler().fit(means[0])
    return [sklearn.preprocessing.normalize(scaler.transform(x)) for x in means]


def nothing() -> None:
    pass


def test_neighbours_are_scikit_learns() -> None:
    made = splits()
    kind = KINDS["class"]
    result = neighbours.knn(kind, made, CLASSES, 50, nothing, "a")
    scores = {}
    for layer in (0, 1):
        train, validation, test = by_hand(made, layer)
        for k in neighbours.NEIGHBOURS:
            model = sklearn.neighbors.KNeighborsClassifier(k, metric="cosine", algorithm="brute")
            model.fit(train, made[0][2].labels)
            own = [
                model.score(x, part[2].labels)
                for x, part in ((validation, made[1]), (test, made[2]))
            ]
            scores[str(layer), k] = own
    best = max(score for score, _ in scores.values())
    assert result["validation"] == pytest.approx(best)
    validation, test_score = scores[result["source"], result["number"]]
    assert (validation, result["source"]) == (pytest.approx(best), "1")
    assert result["test"]["accuracy"]["mean"] == pytest.approx(test_score)
    low, high = result["interval"]
    assert low < test_score < high


def test_neighbours_of_tags_are_scikit_learns_regression() -> None:
    made = splits(multi=True)
    train, _, test = by_hand(made, 1)
    targets = made[0][2].labels
    found = neighbours.nearest(train, targets, test, [1, 10])
    for k in (1, 10):
        model = sklearn.neighbors.KNeighborsRegressor(k, metric="cosine", algorithm="brute")
        np.testing.assert_allclose(found[k], model.fit(train, targets).predict(test), atol=1e-6)
    result = neighbours.knn(KINDS["tags"], made, WIDTH, 50, nothing, "a")
    answers = neighbours.nearest(*_float32(made, result["source"]), [result["number"]])
    wanted = metrics.roc_auc(made[2][2].labels, answers[result["number"]])
    assert result["test"]["roc_auc"]["mean"] == pytest.approx(wanted, abs=1e-6)


def _float32(made: list, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train, _, test = by_hand(made, int(source))
    return train.astype(np.float32), made[0][2].labels, test.astype(np.float32)


def test_class_means_are_scikit_learns_nearest_centroids() -> None:
    made = splits()
    result = neighbours.few_shot(KINDS["class"], made, CLASSES, 50, nothing, "a")
    y = made[0][2].labels
    values = []
    train, _, test = by_hand(made, int(result["source"]))
    for draw in range(neighbours.DRAWS):
        chosen = neighbours.drawn(y, draw)
        assert np.bincount(y[chosen]).tolist() == [8] * CLASSES
        assert len({*chosen.tolist()}) == 8 * CLASSES
        model = sklearn.neighbors.NearestCentroid().fit(train[chosen], y[chosen])
        values.append(model.score(test, made[2][2].labels))
    told = result["test"]["accuracy"]
    assert told["mean"] == pytest.approx(np.mean(values))
    assert told["sd"] == pytest.approx(np.std(values, ddof=1)) and told["sd"] > 0
    assert result["source"] == "1" and result["number"] == 8
    assert result["interval"][0] < told["mean"] < result["interval"][1]


def test_a_class_without_training_items_is_never_answered() -> None:
    means = neighbours.class_means(np.eye(3, dtype=np.float32), np.array([0, 0, 2]), 4)
    found = neighbours.nearness(np.eye(3, dtype=np.float32), means)
    assert np.isneginf(found[:, [1, 3]]).all() and np.isfinite(found[:, [0, 2]]).all()
    few = np.array([0] * 3 + [1] * 20)
    assert np.bincount(few[neighbours.drawn(few, 0)]).tolist() == [3, 8]


def test_it_takes_the_kinds_that_it_can_answer() -> None:
    assert [n for n, kind in KINDS.items() if not neighbours.takes_neighbours(kind)] == [
        "beat", "downbeat",
    ]  # fmt: skip
    assert [n for n, kind in KINDS.items() if neighbours.takes_few_shots(kind)] == ["class", "key"]


def test_neighbours_answer_tempo_by_its_classes() -> None:
    tempi = np.array([100.0, 100, 160, 160], np.float32)
    number = np.arange(4)
    own = labels.Labels(number, metrics.tempo_class(tempi), number, tempi, number[:0], ())
    x = np.array([[[1, 0], [1, 0.1], [0, 1], [0.1, 1]]], np.float16)
    made = [(x, rows(4), own)] * 3
    result = neighbours.knn(KINDS["tempo"], made, 256, 50, nothing, "a")
    assert result["test"]["accuracy"]["mean"] == 1
    assert Answers(x, own, rows(4), 50).labels is own
