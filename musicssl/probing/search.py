"""The search over a task's grid: train every probe, choose by validation alone, predict the test.

On an accelerator all models of a source (a layer or the sum) advance in one program.
On a CPU each core trains one model at a time: then its parameters and moments stay in the cache,
and early stopping frees the core.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from musicssl.features.rows import CONCAT, SUM, Stored
from musicssl.probing import grid
from musicssl.probing.grid import Fitted, Monitor, Protocol, Split


class Outcome(NamedTuple):
    """The outcome of a source of features, at the learning rate that does best on validation.

    For ridge regression, which has no seeds, s is 1 and penalties take the place of learning rates.

    source: "0" to "12", "sum" or "concat".
    validation: the score of each seed and learning rate, [s, r].
    rate: the index of the learning rate with the best mean validation score.
    outputs: of the test items at this rate, [s, i, c].
    epochs: of training, summed over all models.
    deformed: of the test items of every further split, in the same way.
    """

    source: str
    validation: np.ndarray
    rate: int
    outputs: np.ndarray
    epochs: int
    deformed: Sequence[np.ndarray] = ()

    @property
    def score(self) -> float:
        """Return the mean validation score over the seeds, at the rate chosen."""
        return float(self.validation[:, self.rate].mean())


RIDGE = "ridge"  # the kind of probe that is not trained but solved: see ridge.py

Load = Callable[[str], Sequence[Split]]
Group = tuple[np.ndarray, np.ndarray]  # learning rates and seeds


def sources_of(layers: int, kind: str) -> list[str]:
    """Return each layer and, if there are several, what a kind of probe makes of all of them.

    A probe that is trained weighs the blocks and adds them up (layer 0 is no block); ridge
    regression takes all layers side by side.
    """
    sources = [str(layer) for layer in range(layers)]
    if kind == RIDGE:
        return [*sources, CONCAT] if layers > 1 else sources
    return [*sources, SUM] if layers > 2 else sources


def search(
    protocol: Protocol,
    monitor: Monitor,
    load: Load,
    sources: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    name: str,
) -> list[Outcome]:
    """Train the grid of a task, and return the outcome of each source.

    Args:
      load: from a source's name to its training, validation and test splits, and further ones of
        deformed test items.
      sources: names of layers, or "sum".
      rates, seeds: every pair of them is trained.
      name: for the progress bar.
    """
    rate_array, seed_array = np.array(rates, np.float32), np.array(seeds)
    total = len(sources) * len(rates) * len(seeds)
    outcomes = []
    with tqdm(total=total, desc=f"probes of {name}", unit=" fits", delay=2) as bar:
        for source in sources:
            train, validation, *tests = load(source)

            # Train every group of models, and put their results together.
            def fit(group: Group, train=train, validation=validation) -> Fitted:
                group_rates, group_seeds = group
                fitted = grid.fit(protocol, monitor, train, validation, group_rates, group_seeds)
                bar.update(len(group_rates) * len(group_seeds))
                return jax.device_get(fitted)

            parts = _fit_groups(fit, groups(train, rate_array, seed_array))
            fitted = _joined(parts, len(seeds))
            outcomes.append(_outcome(source, fitted, tests))
    return outcomes


def groups(train: Split, rates: np.ndarray, seeds: np.ndarray) -> list[Group]:
    """Divide a grid into what is trained together, seeds outermost."""
    if isinstance(train.x, Stored):  # what is read from disk is shared by all rates
        return [(rates, seeds[[s]]) for s in range(len(seeds))]
    if jax.default_backend() == "cpu":
        pairs = itertools.product(range(len(seeds)), range(len(rates)))
        return [(rates[[r]], seeds[[s]]) for s, r in pairs]
    return [(rates, seeds)]


def _fit_groups(fit: Callable[[Group], Fitted], parts: list[Group]) -> list[Fitted]:
    """Train groups, single models on every core; the first by itself, since it may compile."""
    first = fit(parts[0])
    with ThreadPoolExecutor(at_once(parts, cores())) as pool:
        return [first, *pool.map(fit, parts[1:])]


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS does not say which cores it gives
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at_once(parts: list[Group], available: int) -> int:
    """Return how many groups are trained side by side: a single model takes a core, others all."""
    rates, _ = parts[0]
    return min(available, len(parts)) if len(rates) == 1 else 1


def _joined(parts: list[Fitted], seeds: int) -> Fitted:
    """Put the models of all groups together, as one Fitted [1, s, r]."""

    def join(*leaves: np.ndarray) -> np.ndarray:
        models = np.concatenate([leaf.reshape(-1, *leaf.shape[3:]) for leaf in leaves])
        return models.reshape(1, seeds, -1, *models.shape[1:])

    params = jax.tree.map(join, *(part.params for part in parts))
    scores = join(*(np.asarray(part.score) for part in parts))
    epochs = join(*(np.asarray(part.epoch) for part in parts))
    trained = sum(int(part.epochs) * part.score.size for part in parts)
    return Fitted(params, scores, epochs, trained)


def _outcome(source: str, fitted: Fitted, tests: Sequence[Split]) -> Outcome:
    """Choose the learning rate on validation, and predict the test splits with it."""
    validation = np.asarray(fitted.score[0])
    rate = int(validation.mean(0).argmax())
    params = jax.tree.map(lambda p: p[:, :, rate : rate + 1], fitted.params)
    outputs, *deformed = (np.asarray(grid.predict(params, test))[0, :, 0] for test in tests)
    return Outcome(source, validation, rate, outputs, int(fitted.epochs), deformed)


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the best mean validation score."""
    return max(outcomes, key=lambda outcome: outcome.score)
