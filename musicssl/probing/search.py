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

from musicssl.features.rows import SUM, Stored
from musicssl.probing import grid
from musicssl.probing.grid import Fitted, Monitor, Protocol, Split


class Outcome(NamedTuple):
    """What a source came to, at the learning rate of its best mean validation score.

    source: "0" to "12", or "sum". validation: [s, r]. rate: index of the rate chosen.
    outputs: of the test items, [s, i, c]. epochs: of training, summed over all models.
    """

    source: str
    validation: np.ndarray
    rate: int
    outputs: np.ndarray
    epochs: int

    @property
    def score(self) -> float:
        """Mean validation score over the seeds, at the rate chosen."""
        return float(self.validation[:, self.rate].mean())


Load = Callable[[str], tuple[Split, Split, Split]]


def sources_of(layers: int) -> list[str]:
    """Each layer by itself, and their sum where there are blocks to sum (layer 0 is left out)."""
    return [str(i) for i in range(layers)] + ([SUM] if layers > 2 else [])


def search(
    protocol: Protocol,
    monitor: Monitor,
    load: Load,
    sources: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    name: str,
) -> list[Outcome]:
    """Trains the grid of a task.

    Args:
      load: a source's name to its training, validation and test splits.
      name: for the progress bar.
    """
    rates, seeds = np.array(rates, np.float32), np.array(seeds)
    models, outcomes = len(rates) * len(seeds), []
    total = len(sources) * models
    with tqdm(total=total, desc=f"probes of {name}", unit=" fits", delay=2) as bar:
        for source in sources:
            train, validation, test = load(source)

            def fit(group: Group, train=train, validation=validation) -> Fitted:
                rates, seeds = group
                found = grid.fit(protocol, monitor, train, validation, rates, seeds)
                bar.update(len(rates) * len(seeds))
                return jax.device_get(found)

            fitted = _joined(_spread(fit, groups(train, rates, seeds)), len(seeds))
            outcomes.append(_outcome(source, fitted, test))
    return outcomes


Group = tuple[np.ndarray, np.ndarray]


def groups(train: Split, rates: np.ndarray, seeds: np.ndarray) -> list[Group]:
    """Learning rates and seeds that are trained together, seeds outermost."""
    if isinstance(train.x, Stored):  # what is read from disk is shared by all rates
        return [(rates, seeds[[s]]) for s in range(len(seeds))]
    if jax.default_backend() == "cpu":
        pairs = itertools.product(range(len(seeds)), range(len(rates)))
        return [(rates[[r]], seeds[[s]]) for s, r in pairs]
    return [(rates, seeds)]


def _spread(fit: Callable[[Group], Fitted], parts: list[Group]) -> list[Fitted]:
    """Runs single models on every core; the first by itself, since it may have to compile."""
    first = fit(parts[0])
    mine = getattr(os, "sched_getaffinity", None)  # macOS does not say which cores it gives
    cores = len(mine(0)) if mine else os.cpu_count() or 1
    with ThreadPoolExecutor(at_once(parts, cores)) as pool:
        return [first, *pool.map(fit, parts[1:])]


def at_once(parts: list[Group], cores: int) -> int:
    """Groups that are trained side by side: single models on a core each, others in turn."""
    rates, _ = parts[0]
    return min(cores, len(parts)) if len(rates) == 1 else 1


def _joined(parts: list[Fitted], seeds: int) -> Fitted:
    """The models of all groups as one Fitted [1, s, r]."""

    def join(*leaves: np.ndarray) -> np.ndarray:
        models = np.concatenate([leaf.reshape(-1, *leaf.shape[3:]) for leaf in leaves])
        return models.reshape(1, seeds, -1, *models.shape[1:])

    params, scores, epochs = (jax.tree.map(join, *(part[i] for part in parts)) for i in range(3))
    return Fitted(params, scores, epochs, sum(int(p.epochs) * p.score.size for p in parts))


def _outcome(source: str, fitted: Fitted, test: Split) -> Outcome:
    validation = np.asarray(fitted.score[0])
    rate = int(validation.mean(0).argmax())
    params = jax.tree.map(lambda p: p[:, :, rate : rate + 1], fitted.params)
    outputs = np.asarray(grid.predict(params, test))[0, :, 0]
    return Outcome(source, validation, rate, outputs, int(fitted.epochs))


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The source with the best mean validation score."""
    return max(outcomes, key=lambda outcome: outcome.score)
