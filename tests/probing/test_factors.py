"""Scores by factor, by hand and against scipy's bootstrap; their picture."""

import numpy as np
import pytest
import scipy.stats

from musicssl.probing import evaluate
from musicssl.probing.labels import Labels


def labelled(y: np.ndarray, **levels: np.ndarray) -> Labels:
    number = np.arange(len(y))
    return Labels(number, y, number, y, number[:0], (), levels)


def test_levels_have_their_own_scores_and_chance() -> None:
    train = labelled(np.array([0, 0, 1, 2]), voices=np.array([1, 1, 2, 2]))
    test = labelled(np.array([0, 1, 2, 0]), voices=np.array([2, 10, 10, 2]))
    answers = np.array([[0, 1, 2, 2], [0, 0, 2, 0]])  # of two seeds
    by_factor = evaluate.by_level({"0": np.eye(3)[answers]}, train, test)
    assert list(by_factor) == ["all", "voices"]
    two, ten = by_factor["voices"]  # by number, not by text
    assert (two["level"], two["items"], two["sources"]["0"]["mean"]) == ("2", 2, 0.75)
    assert (ten["level"], ten["items"], ten["sources"]["0"]["mean"]) == ("10", 2, 0.75)
    assert two["chance"] == 0.5  # both have the label of half of the training items
    assert ten["chance"] == 0.25
    (whole,) = by_factor["all"]
    assert whole["sources"]["0"]["mean"] == 0.75
    assert whole["chance"] == pytest.approx(3 / 8)


def test_intervals_are_scipys_percentile_bootstrap() -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 4, 200)
    answers = np.where(random.random((1, 200)) < 0.6, y, (y + 1) % 4)
    of = labelled(y, octave=np.full(200, 4))
    (level,) = evaluate.by_level({"sum": np.eye(4)[answers]}, of, of)["octave"]
    score = level["sources"]["sum"]
    each = (answers == y).mean(0)
    wanted = scipy.stats.bootstrap((each,), np.mean, n_resamples=4000, method="percentile")
    np.testing.assert_allclose(score["interval"], wanted.confidence_interval, atol=0.012)
    assert score["mean"] == pytest.approx(each.mean())


def test_intervals_are_over_seeds_too() -> None:
    """Three seeds that are right about 90, 60 and 60 % of many items, which alone vary little."""
    y = np.zeros(5000, int)
    share = np.array([[0.9], [0.6], [0.6]])
    answers = (np.random.default_rng(0).random((3, 5000)) > share).astype(int)
    of = labelled(y, octave=y)
    (level,) = evaluate.by_level({"sum": np.eye(2)[answers]}, of, of)["octave"]
    low, high = level["sources"]["sum"]["interval"]
    assert (low, high) == (pytest.approx(0.6, abs=0.02), pytest.approx(0.9, abs=0.02))


def test_a_task_without_factors_has_none() -> None:
    of = labelled(np.array([0, 1]))
    assert evaluate.by_level({"0": np.zeros((1, 2, 2))}, of, of) == {}
