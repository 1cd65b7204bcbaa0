"""Scores at each level of a factor: the same question with more notes, lower, or out of tune.

They are of tasks whose items have one label each. Axis letters: s seeds, i items, c classes.
"""

from collections.abc import Mapping

import numpy as np

from musicssl.probing import metrics
from musicssl.probing.labels import Labels
from musicssl.probing.schema import LevelResult

ALL = "all"  # a factor of one level
_DRAWS = 1000  # of the bootstrap


def by_level(
    outputs: Mapping[str, np.ndarray], train: Labels, test: Labels
) -> dict[str, list[LevelResult]]:
    """Return the accuracy of every source at every level of every factor.

    Args:
      outputs: of each source for the test items, [s, i, c].

    Returns:
      By factor, the results of its levels in ascending order; `ALL` is the first factor. Means are
      over seeds and items, intervals are of the percentile bootstrap over the level's items and the
      seeds. It is empty for a task without factors.
    """
    if not test.levels:
        return {}

    # Of each test item: whether each seed answers rightly, and the share of random answers that do.
    right = {}
    for source, values in outputs.items():
        right[source] = values.argmax(-1) == test.labels  # [s, i]
    answers, counts = np.unique(train.labels, return_counts=True)
    share = dict(zip(answers, counts / counts.sum(), strict=True))
    chance = np.array([share.get(label, 0.0) for label in test.labels])  # [i]

    by_factor: dict[str, list[LevelResult]] = {}
    for factor, levels in {ALL: np.full(len(chance), ALL), **test.levels}.items():
        names = np.unique(levels)
        by_factor[factor] = [_level(name, levels == name, right, chance) for name in names]
    return by_factor


def _level(
    name: str | int, here: np.ndarray, right: Mapping[str, np.ndarray], chance: np.ndarray
) -> LevelResult:
    """Return the result of the items that are `here`, at a level: bool [i]."""
    result: LevelResult = {
        "level": str(name),
        "items": int(here.sum()),
        "chance": float(chance[here].mean()),
        "sources": {},
    }
    for source, all_items in right.items():
        at_level = all_items[:, here]
        result["sources"][source] = {
            "mean": float(at_level.mean()),
            "interval": _interval(at_level),
        }
    return result


def _interval(right: np.ndarray) -> list[float]:
    """Return the 95 % interval of the mean of seeds and items, bool [s, i]."""
    items = right.shape[1]
    drawn = np.random.default_rng(0).integers(0, items, (_DRAWS, items))
    of_seeds = np.stack([seed[drawn].mean(1) for seed in right])  # [s, draws]
    return list(metrics.interval(metrics.mean_of_drawn(of_seeds)))
