"""One task from features to scores: the grid, the choice on validation, the test with intervals."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from tqdm import tqdm

from musicssl.features import geometry, windows
from musicssl.features import rows as feature_rows
from musicssl.probing import grid, metrics, neighbours, ridge, search
from musicssl.probing.labels import Labels
from musicssl.probing.neighbours import FEW_SHOT, KNN
from musicssl.probing.schema import (
    PROTOCOL,
    DeformedResult,
    LayerGeometry,
    LayerResult,
    LevelResult,
    SeedScore,
    TaskResult,
)
from musicssl.probing.search import Outcome
from musicssl.probing.task_kinds import Answers, kind_of
from musicssl.probing.tasks import SPLITS, Task

SETTINGS = (  # results with different ones do not compare
    "kind", "standardise", "layers", "learning_rates", "seeds", "epochs", "batch_size", "limit",
)  # fmt: skip
RIDGE_SETTINGS = ("kind", "layers", "penalties", "limit")

GEOMETRY = "geometry"
ALL_LEVELS = "all"  # a factor with one level, which all items have
_LEVEL_DRAWS = 1000  # bootstrap samples of a level
ALSO = (KNN, FEW_SHOT, GEOMETRY)  # what config.also may ask of the features beside the probes


class Prepared(NamedTuple):
    """A split of a task: features [layers, n, d], the places of its rows, and its labels."""

    features: np.ndarray
    rows: windows.Rows
    labels: Labels


def evaluate(
    task: Task,
    splits: Mapping[str, Prepared],
    classes: Sequence[str],
    fps: float,
    config: ml_collections.ConfigDict,
    poll: Callable[[], None],
    also: Collection[str] = (),
    deformed: Mapping[str, Prepared] = MappingProxyType({}),
) -> TaskResult:
    """Fit a task's probes, choose among them on validation, and return the result of the test.

    Args:
      splits: by the names of SPLITS.
      classes: names of the outputs, none if there are no names.
      fps: encoder frames a second.
      config: the settings of probes.
      poll: called between pieces of work; what it raises ends the evaluation.
      also: what is asked of the features beside the probes, of ALSO.
      deformed: the test split, by the deformation of its audio.
    """
    begin = time.monotonic()
    kind = kind_of(task)
    outputs = task.outputs or len(classes) or _count_classes(splits)

    # Fit every probe, and choose a source of features by validation alone.
    is_ridge = config.kind == search.RIDGE
    fit = _ridge_outcomes if is_ridge else _trained_outcomes
    tests = [splits["test"], *deformed.values()]
    outcomes = fit(task, splits, tests, outputs, fps, config, poll)
    best = search.best(outcomes)
    seeds = range(len(best.outputs))

    # Score the outputs of all of them on the test split.
    train, test = splits["train"].labels, splits["test"].labels
    seed_scores = {}
    for outcome in tqdm(outcomes, desc=f"scores of {task.name}", delay=2):
        answers = [_answers(outcome, seed, splits["test"], fps) for seed in seeds]
        seed_scores[outcome.source] = [kind.score(answer) for answer in answers]
    results = {o.source: _layer_result(o, config, seed_scores[o.source]) for o in outcomes}

    # For the reported source, score samples of the test clips, the same for every seed.
    draws = []
    for seed in seeds:
        values = kind.resample(_answers(best, seed, splits["test"], fps))
        draws.append([float(np.float32(value)) for value in values])
    best_seed = int(best.validation[:, best.rate].argmax())
    outputs_of_sources = {outcome.source: outcome.outputs for outcome in outcomes}
    result: TaskResult = {
        "task": task.name,
        "title": task.title,
        "dataset": task.dataset,
        "score": kind.main_score,
        "chosen": {
            **results[best.source],
            "test_seeds": [scores[kind.main_score] for scores in seed_scores[best.source]],
            "interval": list(metrics.interval(metrics.over_seeds([draws]))),
            "draws": draws,
        },
        "test_items": _digest(test),
        "test_clips": test.records,
        "layers": list(results.values()),
        "factors": by_level(outputs_of_sources, train, test),
        "chance": kind.chance(task, train, test),
        "items": {name: splits[name].labels.scored for name in SPLITS},
        "published_items": task.sizes,
        "settings": {
            name: _json_value(config[name]) for name in (RIDGE_SETTINGS if is_ridge else SETTINGS)
        },
        "protocol": PROTOCOL,
        "classes": list(classes),
        "confusion": _confusion(task, best.outputs[best_seed], test, outputs),
        "unscored_classes": _unscored(task, test, classes),
        "untrained_classes": _untrained(task, train, test, classes),
        "seconds": round(time.monotonic() - begin, 1),
    }

    # What else was asked of the same features.
    parts = [(splits[name].features, splits[name].rows, splits[name].labels) for name in SPLITS]
    if KNN in also and neighbours.takes_neighbours(kind):
        result["knn"] = neighbours.knn(kind, parts, outputs, fps, poll, task.name)
    if FEW_SHOT in also and neighbours.takes_few_shots(kind):
        result["few_shot"] = neighbours.few_shot(kind, parts, outputs, fps, poll, task.name)
    if GEOMETRY in also:
        result["geometry"] = _geometry(splits["train"], task.name, poll)
    if deformed:
        result["deformed"] = _deformed(task, best, deformed, result, test, fps)
    return result


def _deformed(
    task: Task,
    best: Outcome,
    deformed: Mapping[str, Prepared],
    result: TaskResult,
    clean: Labels,
    fps: float,
) -> list[DeformedResult]:
    """Return the main score on each deformation of the test items, and its drop."""
    kind, chosen = kind_of(task), result["chosen"]
    whole = chosen["test"][kind.main_score]["mean"]
    told: list[DeformedResult] = []
    for number, (name, test) in enumerate(deformed.items()):
        answers = [
            Answers(outputs, test.labels, test.rows, fps) for outputs in best.deformed[number]
        ]
        mean = float(np.mean([kind.score(answer)[kind.main_score] for answer in answers]))
        # in single precision, like those of the undeformed test
        draws = np.stack([kind.resample(answer) for answer in answers]).astype(np.float32)
        difference = None
        own = test.labels
        same = own.scored == clean.scored
        if own.clips is not None and clean.clips is not None:  # the parts of clips may differ
            same = same and np.array_equal(own.labels, clean.labels)
            same = same and np.array_equal(own.clips, clean.clips)
        if same:
            difference = metrics.paired_probes(chosen["draws"], draws, whole - mean)
        told.append({
            "deformation": name,
            "mean": mean,
            "interval": list(metrics.interval(metrics.over_seeds([draws]))),
            "drop": whole - mean,
            "drop_interval": [difference.low, difference.high] if difference else None,
            "p": difference.p if difference else None,
        })  # fmt: skip
    return told


def _geometry(train: Prepared, name: str, poll: Callable[[], None]) -> list[LayerGeometry]:
    """Return the geometry of each layer's features of training items."""
    told: list[LayerGeometry] = []
    for number in tqdm(range(len(train.features)), desc=f"geometry of {name}", delay=2):
        poll()
        found = geometry.geometry(train.features[number], train.labels.rows)
        told.append({
            "source": str(number),
            "isotropy": found.isotropy,
            "effective_rank": found.effective_rank,
            "mean_cosine": found.mean_cosine,
        })  # fmt: skip
    return told


def _trained_outcomes(
    task: Task,
    splits: Mapping[str, Prepared],
    tests: Sequence[Prepared],
    outputs: int,
    fps: float,
    config: ml_collections.ConfigDict,
    poll: Callable[[], None],
) -> list[Outcome]:
    """Train a task's grid of probes; return the outcome of each source of features."""
    protocol = _protocol(task, outputs, fps, config)
    sources = chosen_sources(len(splits["train"].features), config.layers, config.kind)
    load = _loader([splits["train"], splits["validation"], *tests], config, poll)
    monitor = _monitor(task, splits, fps)
    rates, seeds = config.learning_rates, config.seeds
    return search.search(protocol, monitor, load, sources, rates, seeds, task.name)


def _ridge_outcomes(
    task: Task,
    splits: Mapping[str, Prepared],
    tests: Sequence[Prepared],
    outputs: int,
    fps: float,
    config: ml_collections.ConfigDict,
    poll: Callable[[], None],
) -> list[Outcome]:
    """Solve a task's ridge regressions; return the outcome of each source of features."""
    layers = len(splits["train"].features)
    sources = chosen_sources(layers, config.layers, config.kind)
    own = {source: feature_rows.layers_of(source, layers) for source in sources}
    needed = sorted({layer for numbers in own.values() for layer in numbers})

    def part(split: Prepared) -> ridge.Part:
        features, _, labels = split
        x = feature_rows.Stored(tuple(features[layer] for layer in needed), labels.rows)
        return ridge.Part(x, labels.y, labels.item, labels.labels)

    return ridge.search(
        [part(split) for split in (splits["train"], splits["validation"], *tests)],
        outputs,
        _monitor(task, splits, fps),
        {source: [needed.index(layer) for layer in numbers] for source, numbers in own.items()},
        config.penalties,
        kind_of(task).log_odds,
        task.name,
        poll,
    )


def _monitor(task: Task, splits: Mapping[str, Prepared], fps: float) -> grid.Monitor:
    validation = splits["validation"]
    return kind_of(task).monitor(validation.labels, validation.rows, fps)


def _protocol(
    task: Task, outputs: int, fps: float, config: ml_collections.ConfigDict
) -> grid.Protocol:
    kind = kind_of(task)
    return grid.Protocol(
        loss=kind.loss,
        outputs=outputs,
        hidden={"mlp": 512, "linear": 0}[config.kind],
        batch=config.batch_size,
        epochs=config.epochs or task.epochs,
        plateau=task.plateau,
        patience=task.patience,
        crop=round(kind.crop_seconds * fps),
    )


def _loader(
    prepared: Sequence[Prepared], config: ml_collections.ConfigDict, poll: Callable[[], None]
) -> search.Load:
    """Return the function that gives the grid a source's splits, the one to train on first."""

    def load(source: str) -> list[grid.Split]:
        poll()
        parts = [
            feature_rows.stored(split.features, source, split.labels.rows) for split in prepared
        ]
        if config.standardise:
            scale = parts[0].moments()
            parts = [dataclasses.replace(part, scale=scale) for part in parts]

        # What does not fit in memory is read from disk during training.
        gibibytes = sum(math.prod(part.shape) for part in parts) * 2 / 2**30
        fits = gibibytes <= config.memory_gib

        def grid_split(number: int) -> grid.Split:
            part, labels = parts[number], prepared[number].labels
            x = part.whole() if fits else part
            return grid.split_of(x, labels.y, labels.item, labels.labels, labels.start)

        # One after another, since for a moment each split is in memory twice.
        return [grid_split(number) for number in range(len(prepared))]

    return load


def _json_value(value: Any) -> Any:
    """Return a setting as it is after a round trip through JSON."""
    return list(value) if isinstance(value, tuple) else value


def chosen_sources(layers: int, wanted: str, kind: str) -> list[str]:
    """Return the sources that a kind of probe is asked for, of an encoder of so many layers.

    A baseline has one source, which is returned whatever is asked for.

    Raises:
      ValueError: there is no such layer.
    """
    sources = search.sources_of(layers, kind)
    if wanted == "all" or layers == 1:
        return sources
    chosen = str(wanted).split(",")
    if unknown := [name for name in chosen if name not in sources]:
        raise ValueError(f"there is no {unknown[0]!r}: use some of {','.join(sources)}")
    return chosen


def _count_classes(splits: Mapping[str, Prepared]) -> int:
    labels = [split.labels.labels for split in splits.values()]
    if labels[0].ndim == 2:
        return labels[0].shape[1]
    return 1 + max(int(y.max()) for y in labels)


def _answers(outcome: Outcome, seed: int, test: Prepared, fps: float) -> Answers:
    return Answers(outcome.outputs[seed], test.labels, test.rows, fps)


def _layer_result(
    outcome: Outcome,
    config: ml_collections.ConfigDict,
    seed_scores: Sequence[Mapping[str, float]],
) -> LayerResult:
    result: LayerResult = {
        "source": outcome.source,
        "validation": outcome.score,
        "test": _over_seeds(seed_scores),
    }
    if config.kind == search.RIDGE:
        result["penalty"] = float(config.penalties[outcome.rate])
    else:
        result["learning_rate"] = float(config.learning_rates[outcome.rate])
    return result


def _over_seeds(seed_scores: Sequence[Mapping[str, float]]) -> dict[str, SeedScore]:
    """Return mean and standard deviation over the seeds of each score."""
    statistics: dict[str, SeedScore] = {}
    for name in seed_scores[0]:
        values = [scores[name] for scores in seed_scores]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        statistics[name] = {"mean": float(np.mean(values)), "sd": spread}
    return statistics


def _digest(labels: Labels) -> str:
    """Return a digest of the test items: two encoders compare only on the same ones."""
    parts = labels.references or [labels.labels]
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in parts)).hexdigest()


def _confusion(
    task: Task, answers: np.ndarray, test: Labels, outputs: int
) -> list[list[int]] | None:
    """Count test items by label (row) and answer (column), where an item has one class.

    Args:
      answers: outputs of the probe seed that did best on validation, [i, c].
    """
    if not kind_of(task).one_class:
        return None
    table = np.zeros((outputs, outputs), int)
    np.add.at(table, (test.labels, answers.argmax(-1)), 1)
    return table.tolist()


def _unscored(task: Task, test: Labels, classes: Sequence[str]) -> list[str]:
    """Name the tags that no test item has or every one has: macro averages leave them out."""
    if not kind_of(task).tags:
        return []
    numbers = np.flatnonzero(~metrics.scorable(test.labels))
    return _named(numbers.tolist(), classes)


def _untrained(task: Task, train: Labels, test: Labels, classes: Sequence[str]) -> list[str]:
    """Name the classes of test items that no training item has: they cannot be learnt."""
    kind = kind_of(task)
    if not kind.one_class and not kind.tags:
        return []
    absent = _present(test.labels) - _present(train.labels)
    return _named(sorted(absent), classes)


def _named(numbers: Sequence[int], classes: Sequence[str]) -> list[str]:
    return [classes[i] if i < len(classes) else str(i) for i in numbers]


def _present(labels: np.ndarray) -> set[int]:
    """Return the classes that any item has."""
    classes = np.flatnonzero(labels.any(0)) if labels.ndim == 2 else np.unique(labels)
    return set(classes.tolist())


def by_level(
    outputs: Mapping[str, np.ndarray], train: Labels, test: Labels
) -> dict[str, list[LevelResult]]:
    """Return the accuracy of every source at every level of every factor.

    Args:
      outputs: of each source for the test items, [s, i, c].

    Returns:
      By factor, the results of its levels in ascending order; `ALL_LEVELS` is the first factor.
      Means are over seeds and items, intervals are of the percentile bootstrap over the level's
      items and the seeds. It is empty for a task without factors.
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
    for factor, levels in {ALL_LEVELS: np.full(len(chance), ALL_LEVELS), **test.levels}.items():
        names = np.unique(levels)
        by_factor[factor] = [_level(name, levels == name, right, chance) for name in names]
    return by_factor


def _level(
    name: str | int, here: np.ndarray, right: Mapping[str, np.ndarray], chance: np.ndarray
) -> LevelResult:
    """Return the result at a level, of the items that `here`, bool [i], marks."""
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
            "interval": _level_interval(at_level),
        }
    return result


def _level_interval(right: np.ndarray) -> list[float]:
    """Return the 95 % interval of the mean of seeds and items, bool [s, i]."""
    items = right.shape[1]
    drawn = np.random.default_rng(0).integers(0, items, (_LEVEL_DRAWS, items))
    of_seeds = np.stack([seed[drawn].mean(1) for seed in right])  # [s, draws]
    return list(metrics.interval(metrics.mean_of_drawn(of_seeds)))
