"""Scores of the 13 tasks: library implementations for what is reported, jitted ones for training.

What a report says comes from scikit-learn and mir_eval. Early stopping needs a score of every model
after every epoch, so that each score has a jitted counterpart here; tests compare it with the
library's value. Axis letters: i items (files or windows), c classes.
"""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mir_eval
import numpy as np
import numpy.typing as npt
import sklearn.metrics
from tqdm import tqdm

Score = Callable[[np.ndarray, np.ndarray], float]

_SEEDS = 1  # separates the random numbers that draw seeds from those that draw items


def scorable(labels: np.ndarray) -> np.ndarray:
    """Return which classes of multi-hot labels [i, c] have positives and negatives: bool [c].

    Raises:
      ValueError: no class has both, so that there is nothing to average.
    """
    positives = labels.sum(0)
    known = (positives > 0) & (positives < len(labels))
    if not known.any():
        raise ValueError(
            f"no class has both positives and negatives among {len(labels)} items: "
            "take more items, or another task"
        )
    return known


def roc_auc(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Average the area under the ROC curve over the classes that are `scorable`."""
    known = scorable(labels)
    return float(sklearn.metrics.roc_auc_score(labels[:, known], outputs[:, known]))


def average_precision(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Average the average precision ("PR-AUC") over the classes that are `scorable`."""
    known = scorable(labels)
    return float(sklearn.metrics.average_precision_score(labels[:, known], outputs[:, known]))


def accuracy(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Return the share of items [i] whose label is the highest of the outputs [i, c]."""
    return float(sklearn.metrics.accuracy_score(labels, outputs.argmax(-1)))


def r2(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Return the coefficient of determination, the plain mean over the columns of [i, c]."""
    return float(sklearn.metrics.r2_score(labels, outputs))


def r2_arousal(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Return the R2 of the first column, which is arousal in the emotion task."""
    return r2(labels[:, 0], outputs[:, 0])


def r2_valence(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Return the R2 of the second column, which is valence in the emotion task."""
    return r2(labels[:, 1], outputs[:, 1])


def key_score(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Return the weighted key score of published tables: ascending fifths only (mir_eval 0.8)."""
    return _key_score(labels, outputs, False)


def key_score_descending(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Return the weighted key score that gives 0.5 for a fifth below too (MIREX since 2017)."""
    return _key_score(labels, outputs, True)


def _key_score(labels: np.ndarray, outputs: np.ndarray, descending: bool) -> float:
    table = key_weights(descending)
    return float(table[labels, outputs.argmax(-1)].mean())


TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = (*(f"{tonic} major" for tonic in TONICS), *(f"{tonic} minor" for tonic in TONICS))


@functools.cache
def key_weights(descending: bool = False) -> np.ndarray:
    """Return mir_eval's score of every reference (row) and estimate (column): [24, 24].

    Keys are in the order of KEYS, C major to B major and then C minor to B minor. What a fifth
    below the reference scores is set here, since mir_eval plans to change its default.
    """
    pairs = itertools.product(KEYS, KEYS)
    scores = [mir_eval.key.weighted_score(reference, estimate) for reference, estimate in pairs]
    table = np.array(scores).reshape(len(KEYS), len(KEYS))

    # Fifths below: the estimate's tonic is 5 semitones above the reference's, in the same mode.
    tonic, minor = np.arange(24) % 12, np.arange(24) // 12
    below = (tonic[None] - tonic[:, None]) % 12 == 5
    table[below & (minor[None] == minor[:, None])] = 0.5 if descending else 0.0
    return table


# Tempo: classes of one beat a minute, as in Schreiber and Müller (ISMIR 2018), and the two
# accuracies of Gouyon et al. (IEEE TASLP 14, 2006), within 4 %.
TEMPI = np.arange(30, 286)
_TEMPO_TOLERANCE = 0.04
_OCTAVES = (1, 2, 3, 1 / 2, 1 / 3)


def tempo_class(tempi: np.ndarray) -> np.ndarray:
    """Return the class of tempi in beats a minute: beyond TEMPI, the first or the last."""
    return np.clip(np.round(tempi) - TEMPI[0], 0, len(TEMPI) - 1).astype(np.int32)


def tempo_accuracy(tempi: np.ndarray, outputs: np.ndarray) -> float:
    """Return the share of items [i] whose tempo is within 4 % of the highest output's [i, c]."""
    return _tempo_accuracy(tempi, outputs, (1,))


def tempo_accuracy_octaves(tempi: np.ndarray, outputs: np.ndarray) -> float:
    """Return the same, with twice, three times, half and a third of the tempo right as well."""
    return _tempo_accuracy(tempi, outputs, _OCTAVES)


def _tempo_accuracy(tempi: np.ndarray, outputs: np.ndarray, factors: Sequence[float]) -> float:
    right = tempi[:, None] * np.array(factors)  # [i, factors]
    apart = np.abs(TEMPI[outputs.argmax(-1)][:, None] - right)
    return float((apart <= _TEMPO_TOLERANCE * right).any(1).mean())


# Monitors: labels and outputs [i, ...] as above, jitted and vmapped by the grid.


def monitor_accuracy(labels: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return `accuracy`, in JAX."""
    return jnp.mean(outputs.argmax(-1) == labels)


def monitor_r2(labels: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return `r2`, in JAX."""
    residual = jnp.square(labels - outputs).sum(0)
    spread = jnp.square(labels - labels.mean(0)).sum(0)
    return jnp.mean(1 - residual / spread)


def monitor_key(labels: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return `key_score`, in JAX."""
    return jnp.asarray(key_weights(), jnp.float32)[labels, outputs.argmax(-1)].mean()


def monitor_tempo(labels: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return `tempo_accuracy`, in JAX."""
    estimate = jnp.asarray(TEMPI, jnp.float32)[outputs.argmax(-1)]
    return jnp.mean(jnp.abs(estimate - labels) <= _TEMPO_TOLERANCE * labels)


def monitor_roc_auc(labels: jax.Array, outputs: jax.Array) -> jax.Array:
    """Return `roc_auc`, in JAX: by class, from the mean rank of its positives; ties share ranks."""
    items = len(labels)
    ordered = jnp.sort(outputs, 0)  # [i, c]
    rank = jax.vmap(_mid_rank, (1, 1), 1)(ordered, outputs)  # [i, c]
    positives = labels.sum(0).astype(jnp.float32)
    negatives = items - positives
    area = (labels * rank).sum(0) / positives - (positives + 1) / 2
    return _over_scorable(area / negatives, positives, negatives)


def _mid_rank(ordered: jax.Array, values: jax.Array) -> jax.Array:
    """Return the rank of each value, from 1; the mean of the first and the last where it ties."""
    below = jnp.searchsorted(ordered, values, side="left")
    through = jnp.searchsorted(ordered, values, side="right")
    return (below + through + 1) / 2


def _over_scorable(scores: jax.Array, positives: jax.Array, negatives: jax.Array) -> jax.Array:
    """Average over the classes that have positives and negatives."""
    known = (positives > 0) & (negatives > 0)
    return jnp.where(known, scores, 0).sum() / known.sum()


def bootstrap(
    score: Score,
    labels: np.ndarray,
    outputs: np.ndarray,
    clips: np.ndarray | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> np.ndarray:
    """Score `draws` samples of the test clips, drawn with replacement: [draws].

    A clip comes with all of its items, since items of one clip are alike: drawn one by one they
    would seem to tell more than they do (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 3.8). The samples depend on the seed and the clips alone, so that
    draw i of two probes is of the same items: see `over_seeds` and `paired`. A score that is not
    defined, for lack of positives of any class, is NaN.

    Args:
      clips: the clip that each item is of, [i]; None where every item is a clip.
    """
    samples = _samples(np.arange(len(labels)) if clips is None else clips, seed, draws)
    if score in _OF_SAMPLES:
        return _OF_SAMPLES[score](labels, outputs, samples)
    values = np.full(draws, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that a sample lacks
        for i, chosen in enumerate(tqdm(samples, desc="bootstrap", total=draws, delay=2)):
            with contextlib.suppress(ValueError):
                values[i] = score(labels[chosen], outputs[chosen])
    return values


def _samples(clips: np.ndarray, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Yield the numbers of the items of as many clips as there are, drawn with replacement."""
    random = np.random.default_rng(seed)
    order = np.argsort(clips, kind="stable")  # items, clip after clip
    _, start, size = np.unique(clips[order], return_index=True, return_counts=True)
    for _ in range(draws):
        drawn = random.integers(0, len(size), len(size))
        ends = np.cumsum(size[drawn])
        place = np.arange(ends[-1]) - np.repeat(ends - size[drawn], size[drawn])
        yield order[np.repeat(start[drawn], size[drawn]) + place]


# Scores of many samples at once: scikit-learn, which takes one after another, needs minutes.


_Samples = Iterable[np.ndarray]  # the numbers of the items of each, [items of the sample]


def _accuracies(labels: np.ndarray, outputs: np.ndarray, samples: _Samples) -> np.ndarray:
    """Return `accuracy` of each sample of items: [draws]."""
    right = outputs.argmax(-1) == labels
    return np.array([right[chosen].mean() for chosen in samples])


def _key_scores(labels: np.ndarray, outputs: np.ndarray, samples: _Samples) -> np.ndarray:
    """Return `key_score` of each sample of items: [draws]."""
    scores = key_weights()[labels, outputs.argmax(-1)]
    return np.array([scores[chosen].mean() for chosen in samples])


def _areas(labels: np.ndarray, outputs: np.ndarray, samples: _Samples) -> np.ndarray:
    """Return `roc_auc` of each sample of items: [draws].

    A sample is described by how often it has each item. For each class, items are sorted by their
    outputs, and the area is the share of pairs of a positive and a negative that are in order; a
    tie counts as half a pair.
    """
    items, classes = labels.shape
    counts = np.stack([np.bincount(chosen, minlength=items) for chosen in samples])  # [draws, i]
    areas = np.full((len(counts), classes), np.nan)
    for c in tqdm(range(classes), desc="bootstrap", unit=" classes", delay=2):
        order = np.argsort(outputs[:, c], kind="stable")
        value, positive = outputs[order, c], labels[order, c] > 0
        first_of_ties = np.flatnonzero(np.diff(value, prepend=np.nan) != 0)
        sampled = counts[:, order]
        positives = np.add.reduceat(sampled * positive, first_of_ties, axis=1)
        negatives = np.add.reduceat(sampled * ~positive, first_of_ties, axis=1)
        below = negatives.cumsum(1) - negatives
        pairs = positives.sum(1) * negatives.sum(1)
        known = pairs > 0
        in_order = (positives * (2 * below + negatives)).sum(1)
        areas[known, c] = in_order[known] / (2 * pairs[known])

    # The mean over classes that have positives and negatives; NaN where none has.
    known = np.isfinite(areas)
    count = known.sum(1)
    total = np.where(known, areas, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


_OF_SAMPLES: dict[Score, Callable[[np.ndarray, np.ndarray, _Samples], np.ndarray]] = {
    accuracy: _accuracies,
    key_score: _key_scores,
    roc_auc: _areas,
}


# Of each training run: `bootstrap`'s values of each of its probe seeds, [s, draws].
Draws = Sequence[npt.ArrayLike]


def over_seeds(runs: Draws, stream: int = 0) -> np.ndarray:
    """Draw seeds with each sample of test clips: the mean score of the seeds drawn, [draws].

    Seeds are those of the probe or, if there are several training runs, the runs: then a run counts
    with the mean of its probe seeds, whose spread is a part of that between runs (Davison and
    Hinkley, section 3.8). Of n seeds n - 1 are drawn with replacement, so that the variance of
    their mean is on average the right one for the mean of n (Rao and Wu, JASA 83, 1988, pages 231
    to 241). A single seed has no spread to be drawn.

    Args:
      stream: which of several independent sequences of seeds is drawn.
    """
    seeds = [np.asarray(run, float) for run in runs]  # [s, draws] each
    values = seeds[0] if len(runs) == 1 else np.stack([run.mean(0) for run in seeds])
    return mean_of_drawn(values, stream)


def mean_of_drawn(values: np.ndarray, stream: int = 0) -> np.ndarray:
    """Return the mean, in each column of [n, draws], of n - 1 rows drawn with replacement."""
    n, draws = values.shape
    random = np.random.default_rng([_SEEDS, stream])
    chosen = random.integers(0, n, (max(n - 1, 1), draws))
    return np.take_along_axis(values, chosen, 0).mean(0)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of `bootstrap`'s values, without those not defined."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class Difference(NamedTuple):
    """One encoder's mean score less another's, on the same test items.

    low, high: the 95 % interval.
    p: of the two-sided test.
    """

    mean: float
    low: float
    high: float
    p: float


def paired(ours: Draws, theirs: Draws, mean: float) -> Difference:
    """Test two encoders' scores on the same test items against each other.

    Each sample of test clips is the same for both, and seeds are drawn for each by itself. p is
    twice the smaller share of samples at or beyond no difference, counted so that it is never 0
    (Davison and Hinkley, 1997, section 4.2).

    Args:
      mean: the difference of the means over all seeds.
    """
    return _difference(over_seeds(ours, 1) - over_seeds(theirs, 2), mean)


def paired_probes(ours: npt.ArrayLike, theirs: npt.ArrayLike, mean: float) -> Difference:
    """Test scores [s, draws] of the same probes, on the same test items in two forms, as `paired`.

    A probe seed is drawn for both at once.
    """
    return _difference(over_seeds([np.asarray(ours, float) - np.asarray(theirs, float)]), mean)


def _difference(differences: np.ndarray, mean: float) -> Difference:
    """Return the interval and p that follow from the differences of bootstrap samples."""
    differences = differences[np.isfinite(differences)]
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * float(tail + 1) / (len(differences) + 1))
    low, high = interval(differences)
    return Difference(mean, low, high, p)
