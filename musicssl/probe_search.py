"""The search over a task's grid: train every probe, choose by validation alone, predict the test.

On an accelerator all models of a source (a layer or the sum) advance in one program.
On a CPU each core trains one model at a time: then its parameters and moments stay in the cache,
and early stopping frees the core.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from musicssl import probe_grid
from musicssl.probe_grid import Fitted, Monitor, Protocol, Split

SUM = "sum"
BLOCK = 2**16  # rows in float32 at a time


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


def rows_of(features: np.ndarray, source: str, rows: np.ndarray) -> np.ndarray:
    """A source's features [1, m, n, d] from [layers, all rows, d], which may be memory-mapped."""
    layers = range(1, len(features)) if source == SUM else [int(source)]
    if len(rows) == features.shape[1]:
        chosen = [features[i] for i in layers]
    else:
        chosen = [features[i][rows] for i in layers]
    return (chosen[0][None] if len(chosen) == 1 else np.stack(chosen))[None]


def standardised(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features [1, m, n, d] of splits, each layer and channel at zero mean and unit variance.

    Mean and variance are the first split's, which is what is trained on.
    """
    moments = [_moments(layer) for layer in parts[0][0]]
    return [np.stack([_scaled(x, *m) for x, m in zip(part[0], moments, strict=True)])[None]
            for part in parts]  # fmt: skip


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[i : i + BLOCK].astype(np.float32) for i in range(0, len(x), BLOCK))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of x [n, d]; 1 of a constant one."""
    mean = sum(block.sum(0, dtype=np.float64) for block in _blocks(x)) / len(x)
    square = sum(np.square(block - mean).sum(0) for block in _blocks(x)) / len(x)
    return mean.astype(np.float32), np.sqrt(np.where(square > 0, square, 1)).astype(np.float32)


def _scaled(x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return np.concatenate([((block - mean) / deviation).astype(x.dtype) for block in _blocks(x)])


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
    apart = jax.default_backend() == "cpu"
    jobs = list(itertools.product(range(len(seeds)), range(len(rates))))
    total = len(sources) * (len(jobs) if apart else 1)
    outcomes = []
    with tqdm(total=total, desc=f"probes of {name}", unit=" fits", delay=2) as bar:
        for source in sources:
            train, validation, test = load(source)

            def one(job, train=train, validation=validation):
                s, r = job
                found = _fit(protocol, monitor, train, validation, rates[[r]], seeds[[s]])
                bar.update()
                return found

            if apart:
                fitted = _joined(_spread(one, jobs), len(seeds))
            else:
                fitted = _fit(protocol, monitor, train, validation, rates, seeds)
                fitted = fitted._replace(epochs=fitted.epochs * len(jobs))
                bar.update()
            outcomes.append(_outcome(source, fitted, test))
    return outcomes


def _fit(protocol, monitor, train, validation, rates, seeds) -> Fitted:
    return jax.device_get(probe_grid.fit(protocol, monitor, train, validation, rates, seeds))


def _spread(one: Callable, jobs: list[tuple[int, int]]) -> list[Fitted]:
    """Runs the jobs on every core; the first by itself, since it may have to compile."""
    first = one(jobs[0])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return [first, *pool.map(one, jobs[1:])]


def _joined(parts: list[Fitted], seeds: int) -> Fitted:
    """Single models, seeds outermost, as one Fitted [1, s, r]."""

    def stack(*leaves: np.ndarray) -> np.ndarray:
        joined = np.stack([leaf[0, 0, 0] for leaf in leaves])
        return joined.reshape(1, seeds, -1, *joined.shape[1:])

    params, scores, epochs = (jax.tree.map(stack, *(part[i] for part in parts)) for i in range(3))
    return Fitted(params, scores, epochs, sum(int(part.epochs) for part in parts))


def _outcome(source: str, fitted: Fitted, test: Split) -> Outcome:
    validation = np.asarray(fitted.score[0])
    rate = int(validation.mean(0).argmax())
    params = jax.tree.map(lambda p: p[:, :, rate : rate + 1], fitted.params)
    outputs = np.asarray(probe_grid.predict(params, test))[0, :, 0]
    return Outcome(source, validation, rate, outputs, int(fitted.epochs))


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The source with the best mean validation score."""
    return max(outcomes, key=lambda outcome: outcome.score)
