"""Probes by ridge regression in closed form: one pass over the training rows, no learning rate.

Features are standardised over the training rows, and labels are regressed on them by least squares
with a penalty: a class is a column of 0 and 1, and its answer is the column with the highest value
(one-hot least squares). The penalty of each source of features, and the source, are chosen on
validation. There is no initial value and no order, hence no seed: the same features give the same
scores.

Where outputs are read as log-odds, as the decoder of beats does, those of the regression are mapped
to them by a line that is fitted on validation (Platt, Probabilistic outputs for support vector
machines, 1999).

Axis letters: m layers, n rows, b rows of a block, d width of a layer, w width of all layers side
by side, p penalties, c outputs, i items.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from tqdm import tqdm

from musicssl.features.rows import Stored
from musicssl.probing.grid import Monitor
from musicssl.probing.search import Outcome

_BLOCK = 2**13  # rows that are read and multiplied at a time
_NEWTON_STEPS = 25  # at most, of a logistic fit of two numbers
_MOST_LOG_ODDS = 15.0  # of a calibrated output


class Part(NamedTuple):
    """A split of a task.

    x: features [1, m, n, d], of every layer that any source has.
    y: labels of the rows, [n] or [n, c].
    item: the item of each row, [n].
    labels: of the items, [i] or [i, c].
    """

    x: Stored
    y: np.ndarray
    item: np.ndarray
    labels: np.ndarray


class Moments(NamedTuple):
    """What ridge regression needs to know of the training rows, in float64.

    mean: of the features, [w], and `targets` of the outputs, [c].
    covariance: of the features, [w, w]; cross: of features and outputs, [w, c].
    """

    mean: np.ndarray
    targets: np.ndarray
    covariance: np.ndarray
    cross: np.ndarray


class Weights(NamedTuple):
    """A source's regressions: outputs are (x - mean) @ weights + bias.

    columns: of the features side by side that the source has, [w'].
    weights: [w', p, c]. bias: [c].
    """

    columns: np.ndarray
    weights: np.ndarray
    bias: np.ndarray


def search(
    parts: Sequence[Part],
    outputs: int,
    monitor: Monitor,
    sources: Mapping[str, Sequence[int]],
    penalties: Sequence[float],
    log_odds: bool,
    name: str,
    poll: Callable[[], None],
) -> list[Outcome]:
    """Regress the labels on every source with every penalty; return the outcome of each source.

    Args:
      parts: of training, validation and test, and further ones of deformed test items.
      outputs: c.
      sources: by name, the numbers of the layers that are taken, among those of the parts.
      penalties: on squared weights, where the error is the mean over rows; of equal validation
        scores the first wins.
      log_odds: whether outputs are calibrated.
      name: of the task, for progress bars.
      poll: called between pieces of work; what it raises ends the search.
    """
    train, validation, *tests = parts
    seen = moments(train.x, _targets(train.y, outputs), poll, name)
    fits = {}
    for source, layers in sources.items():
        poll()
        fits[source] = solve(seen, _columns(layers, train.x.shape[3]), penalties)

    # Choose the penalty of every source.
    scores, lines = {}, {}
    for source, values in _predict(validation, seen.mean, fits, poll, name).items():
        lines[source] = np.tile([1.0, 0.0], (*values.shape[1:], 1))  # [p, c, 2]
        if log_odds:
            lines[source] = _platt(values, validation.y)
        values = _calibrated(values, lines[source], log_odds)
        score = functools.partial(_score, jax.jit(monitor), validation)
        scores[source] = np.array([[score(values[:, p]) for p in range(len(penalties))]])
    chosen = {source: int(score.mean(0).argmax()) for source, score in scores.items()}

    # Predict the test splits with it.
    kept = {}
    for source, fit in fits.items():
        best = chosen[source]
        kept[source] = fit._replace(weights=fit.weights[:, best : best + 1])
    answers: dict[str, list[np.ndarray]] = {source: [] for source in fits}
    for test in tests:
        for source, values in _predict(test, seen.mean, kept, poll, name).items():
            best = chosen[source]
            values = _calibrated(values, lines[source][best : best + 1], log_odds)[:, 0]
            answers[source].append(_over_items(test, values)[None])
    return [
        Outcome(source, scores[source], chosen[source], first, 0, further)
        for source, (first, *further) in answers.items()
    ]


def _columns(layers: Sequence[int], width: int) -> np.ndarray:
    """Return the places of some layers' features, where all layers stand side by side."""
    return np.concatenate([np.arange(layer * width, (layer + 1) * width) for layer in layers])


def _targets(y: np.ndarray, outputs: int) -> np.ndarray:
    """Return what is regressed on the features: float32 [n, c]."""
    if y.ndim == 2:
        return np.asarray(y, np.float32)
    return np.eye(outputs, dtype=np.float32)[y]


def moments(
    x: Stored, targets: np.ndarray, poll: Callable[[], None] = lambda: None, name: str = ""
) -> Moments:
    """Return means and covariances of features [1, m, n, d] and targets [n, c], in one pass.

    All of it is computed in float64: features of an untrained encoder are so alike that in float32
    a weak penalty would not outweigh the error of their products.
    """
    n = len(targets)
    pilot = _side_by_side(x.read(np.arange(min(n, _BLOCK)))).mean(0, dtype=np.float64)  # [w]
    width, outputs = len(pilot), targets.shape[1]
    total, square = np.zeros(width), np.zeros((width, width))
    cross = np.zeros((width, outputs))
    for rows in _blocks(n, name, "ridge"):
        poll()
        block = _side_by_side(x.read(rows)) - pilot  # so that no large mean hides what varies
        total += block.sum(0)
        square += block.T @ block
        cross += block.T @ targets[rows].astype(np.float64)

    # Shift from the pilot to the mean.
    mean, of_targets = total / n, targets.mean(0, dtype=np.float64)
    covariance = square / n - np.outer(mean, mean)
    return Moments(pilot + mean, of_targets, covariance, cross / n - np.outer(mean, of_targets))


def _side_by_side(x: np.ndarray) -> np.ndarray:
    """Put the layers of features [1, m, b, d] side by side: float32 [b, w]."""
    _, m, b, d = x.shape
    return x[0].astype(np.float32).swapaxes(0, 1).reshape(b, m * d)


def _blocks(n: int, name: str, what: str) -> list[np.ndarray]:
    """Return the numbers of n rows in blocks, behind a progress bar."""
    blocks = [np.arange(begin, min(begin + _BLOCK, n)) for begin in range(0, n, _BLOCK)]
    return tqdm(blocks, desc=f"{what} of {name}", unit=" blocks", delay=2)


def solve(seen: Moments, columns: np.ndarray, penalties: Sequence[float]) -> Weights:
    """Solve the regressions on some columns of the features, standardised, for each penalty.

    A penalty is scikit-learn's `Ridge(alpha)` over the number of rows. A column that is constant
    has no weight.
    """
    covariance, cross = seen.covariance[np.ix_(columns, columns)], seen.cross[columns]
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    varies = deviation > 1e-6 * np.maximum(np.abs(seen.mean[columns]), 1e-6)
    inverse = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    correlation = covariance * np.outer(inverse, inverse)
    cross = cross * inverse[:, None]

    weights = []
    for penalty in penalties:
        factor = scipy.linalg.cho_factor(correlation + penalty * np.eye(len(columns)))
        weights.append(scipy.linalg.cho_solve(factor, cross) * inverse[:, None])
    return Weights(columns, np.stack(weights, 1), seen.targets)


def _predict(
    part: Part,
    mean: np.ndarray,
    fits: Mapping[str, Weights],
    poll: Callable[[], None],
    name: str,
) -> dict[str, np.ndarray]:
    """Return the outputs of every source, of each penalty: {source: float32 [n, p, c]}."""
    outputs: dict[str, list[np.ndarray]] = {source: [] for source in fits}
    flat = {}  # weights [w', p * c]
    for source, fit in fits.items():
        flat[source] = fit.weights.reshape(len(fit.columns), -1).astype(np.float32)
    centre = np.asarray(mean, np.float32)
    for rows in _blocks(len(part.item), name, "answers"):
        poll()
        x = _side_by_side(part.x.read(rows)) - centre
        for source, fit in fits.items():
            values = (x[:, fit.columns] @ flat[source]).reshape(-1, *fit.weights.shape[1:])
            outputs[source].append(values + fit.bias.astype(np.float32))
    return {source: np.concatenate(blocks) for source, blocks in outputs.items()}


def _platt(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fit log-odds of labels y [n, c] as a line in outputs [n, p, c]: slope and offset [p, c, 2].

    Newton's method on the logistic loss, of all models at once.
    """
    x = values.astype(np.float64)
    centre, spread = x.mean(0), np.maximum(x.std(0), 1e-12)
    x = (x - centre) / spread
    target = y[:, None, :].astype(np.float64)
    line = np.zeros((*x.shape[1:], 2))
    for _ in range(_NEWTON_STEPS):
        odds = np.clip(line[..., 0] * x + line[..., 1], -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
        share = 1 / (1 + np.exp(-odds))
        error, curve = share - target, share * (1 - share)
        slope = np.stack([(error * x).mean(0), error.mean(0)], -1)
        bend = np.empty((*x.shape[1:], 2, 2))
        bend[..., 0, 0] = (curve * x * x).mean(0) + 1e-9
        bend[..., 0, 1] = bend[..., 1, 0] = (curve * x).mean(0)
        bend[..., 1, 1] = curve.mean(0) + 1e-9
        change = np.linalg.solve(bend, slope[..., None])[..., 0]
        line -= change
        if np.abs(change).max() < 1e-6:
            break
    line[..., 0] /= spread
    line[..., 1] -= line[..., 0] * centre
    return line


def _calibrated(values: np.ndarray, line: np.ndarray, log_odds: bool) -> np.ndarray:
    """Map outputs [n, p, c] to log-odds by the lines [p, c, 2], where these are wanted."""
    if not log_odds:
        return values
    odds = values * line[..., 0] + line[..., 1]
    return np.clip(odds, -_MOST_LOG_ODDS, _MOST_LOG_ODDS).astype(np.float32)


def _over_items(part: Part, values: np.ndarray) -> np.ndarray:
    """Average outputs [n, c] over the rows of each item: [i, c]."""
    count = np.bincount(part.item, minlength=len(part.labels))
    sums = [np.bincount(part.item, column, len(part.labels)) for column in values.T]
    return (np.stack(sums, 1) / np.maximum(count, 1)[:, None]).astype(np.float32)


def _score(monitor: Monitor, part: Part, values: np.ndarray) -> float:
    """Return the validation score of outputs [n, c]; one that is not defined is the lowest."""
    score = float(monitor(jnp.asarray(part.labels), jnp.asarray(_over_items(part, values))))
    return score if np.isfinite(score) else -np.inf
