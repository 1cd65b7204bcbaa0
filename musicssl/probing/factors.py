"""Scores at each level of a factor: the same question with more notes, lower, or out of tune.

Of tasks whose items have one label each. Axis letters: s seeds, i items, c classes.
"""

from collections.abc import Mapping

import numpy as np

from musicssl.probing.labels import Labels

ALL = "all"  # a factor of one level
DRAWS = 1000  # of the bootstrap


def by_level(outputs: Mapping[str, np.ndarray], train: Labels, test: Labels) -> dict[str, list]:
    """Accuracy of every source at every level of every factor, of plain values for JSON.

    Args:
      outputs: of each source for the test items, [s, i, c].

    Returns:
      {factor: [{"level", "items", "chance", "sources": {source: {"mean", "interval"}}}]}, levels
      in ascending order; `ALL` is the first factor. mean: over seeds and items. interval: 95 %, by
      the percentile bootstrap over the level's items. chance: of answers drawn at random, each as
      often as training items have it. Nothing, for a task without factors.
    """
    if not test.levels:
        return {}
    right = {
        source: (values.argmax(-1) == test.labels).mean(0)  # [i]
        for source, values in outputs.items()
    }
    answers, counts = np.unique(train.labels, return_counts=True)
    share = dict(zip(answers, counts / counts.sum(), strict=True))
    drawn = np.array([share.get(label, 0.0) for label in test.labels])  # [i]
    return {
        factor: [_level(level, levels == level, right, drawn) for level in np.unique(levels)]
        for factor, levels in {ALL: np.full(len(drawn), ALL), **test.levels}.items()
    }


def _level(
    level: str | int, here: np.ndarray, right: Mapping[str, np.ndarray], drawn: np.ndarray
) -> dict:
    return {
        "level": str(level),
        "items": int(here.sum()),
        "chance": float(drawn[here].mean()),
        "sources": {
            source: {"mean": float(each[here].mean()), "interval": _interval(each[here])}
            for source, each in right.items()
        },
    }


def _interval(each: np.ndarray) -> list[float]:
    """95 % interval of the mean of items [i]."""
    drawn = np.random.default_rng(0).integers(0, len(each), (DRAWS, len(each)))
    return np.percentile(each[drawn].mean(1), [2.5, 97.5]).tolist()
