"""One task from features to scores: the grid, the choice on validation, the test with intervals."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from tqdm import tqdm

from musicssl.features import rows as feature_rows
from musicssl.features import windows
from musicssl.probing import beats, factors, grid, labels, metrics, search
from musicssl.probing.search import Outcome
from musicssl.probing.tasks import KINDS, SPLITS, Task

CROP_SECONDS = 10  # that a beat probe trains on
DRAWS = 1000  # of the beat task's bootstrap
SETTINGS = (  # without which results do not compare
    "kind", "standardise", "layers", "learning_rates", "seeds", "epochs", "batch_size", "limit",
)  # fmt: skip


class Prepared(NamedTuple):
    """A split of a task: features [layers, n, d], its rows' places and labels."""

    features: np.ndarray
    rows: windows.Rows
    found: labels.Labels


def evaluate(
    task: Task,
    splits: Mapping[str, Prepared],
    classes: Sequence[str],
    fps: float,
    config: ml_collections.ConfigDict,
    poll: Callable[[], None],
) -> dict[str, Any]:
    """The result of a task, of plain Python values for JSON: see README on results.json.

    poll: called before each source is trained; what it raises ends the evaluation.
    """
    begin = time.monotonic()
    kind = KINDS[task.kind]
    outputs = task.outputs or len(classes) or _classes_seen(splits)
    protocol = grid.Protocol(
        loss=kind.loss,
        outputs=outputs,
        hidden={"mlp": 512, "linear": 0}[config.kind],
        batch=config.batch_size,
        epochs=config.epochs or task.epochs,
        plateau=task.plateau,
        patience=task.patience,
        crop=round(CROP_SECONDS * fps) if task.kind == "beat" else 0,
    )

    def load(source: str) -> tuple[grid.Split, ...]:
        poll()
        parts = [feature_rows.stored(s.features, source, s.found.rows) for s in each]
        if config.standardise:
            scale = parts[0].moments()
            parts = [dataclasses.replace(part, scale=scale) for part in parts]
        held = sum(math.prod(part.shape) for part in parts) * 2 / 2**30 <= config.memory_gib
        pairs = zip(parts, each, strict=True)  # one at a time: for a moment each is there twice
        return tuple(_grid_split(p.whole() if held else p, s.found) for p, s in pairs)

    each = [splits[name] for name in SPLITS]
    wanted = sources(len(splits["train"].features), config.layers)
    rates, seeds = config.learning_rates, config.seeds
    found = search.search(protocol, kind.monitor, load, wanted, rates, seeds, task.name)
    best = search.best(found)
    test = splits["test"]
    tests = {o.source: [scores(task, o.outputs[s], test, fps) for s in range(len(seeds))]
             for o in tqdm(found, desc=f"scores of {task.name}", delay=2)}  # fmt: skip
    layers = [
        {
            "source": o.source,
            "learning_rate": float(rates[o.rate]),
            "validation": o.score,
            "test": _mean(tests[o.source]),
        }
        for o in found
    ]
    picked = int(best.validation[:, best.rate].argmax())
    draws = _draws(task, best.outputs[picked], test, fps)
    return {
        "task": task.name,
        "title": task.title,
        "dataset": task.dataset,
        "score": kind.main,
        "chosen": {
            "source": best.source,
            "learning_rate": float(rates[best.rate]),
            "validation": best.score,
            "test": _mean(tests[best.source]),
            "test_seeds": [t[kind.main] for t in tests[best.source]],
            "interval": list(metrics.interval(draws)),
            "draws": [float(np.float32(value)) for value in draws],
        },
        "test_items": _digest(test.found),
        "layers": layers,
        "factors": factors.by_level(
            {o.source: o.outputs for o in found}, splits["train"].found, test.found
        ),
        "chance": labels.chance(task, splits["train"].found, test.found),
        "items": {name: items(task, splits[name].found) for name in SPLITS},
        "published_items": task.sizes,
        "settings": {name: _plain(config[name]) for name in SETTINGS},
        "classes": list(classes),
        "confusion": _confusion(task, best, picked, test, outputs),
        "unscored_classes": _unscored(task, test, classes),
        "untrained_classes": _untrained(task, splits, classes),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # as it comes back from JSON


def sources(layers: int, wanted: str) -> list[str]:
    """The sources of an encoder of that many layers that are asked for; of a baseline its only one.

    Raises:
      ValueError: there is no such layer.
    """
    there = search.sources_of(layers)
    if wanted == "all" or layers == 1:
        return there
    chosen = str(wanted).split(",")
    if unknown := [name for name in chosen if name not in there]:
        raise ValueError(f"there is no {unknown[0]!r}; there are {','.join(there)}")
    return chosen


def items(task: Task, found: labels.Labels) -> int:
    """What is scored: records of a beat task, else items."""
    return len(found.references) if task.kind == "beat" else len(found.labels)


def _classes_seen(splits: Mapping[str, Prepared]) -> int:
    all_labels = [split.found.labels for split in splits.values()]
    if all_labels[0].ndim == 2:
        return all_labels[0].shape[1]
    return 1 + max(int(y.max()) for y in all_labels)


def _grid_split(x: np.ndarray | feature_rows.Stored, found: labels.Labels) -> grid.Split:
    return grid.split_of(x, found.y, found.item, found.labels, found.start)


def scores(task: Task, outputs: np.ndarray, test: Prepared, fps: float) -> dict[str, float]:
    """Every score of a task, of outputs [i, c] of the test items."""
    if task.kind == "beat":
        estimates = labels.beat_estimates(outputs, test.found, test.rows, fps)
        return beats.f_measures(test.found.references, estimates)
    truth = test.found.labels
    return {name: score(truth, outputs) for name, score in KINDS[task.kind].scores.items()}


def _mean(each: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds of each score; 0 of a single seed."""
    return {
        name: {
            "mean": float(np.mean([scored[name] for scored in each])),
            "sd": float(np.std([scored[name] for scored in each], ddof=1)) if each[1:] else 0.0,
        }
        for name in each[0]
    }


def _draws(task: Task, outputs: np.ndarray, test: Prepared, fps: float) -> np.ndarray:
    """The main score's bootstrap over test items, of one seed's outputs."""
    kind = KINDS[task.kind]
    if task.kind != "beat":
        score = kind.scores[kind.main]
        return metrics.bootstrap(score, test.found.labels, outputs, draws=kind.draws)
    estimates = labels.beat_estimates(outputs, test.found, test.rows, fps)
    pairs = list(zip(test.found.references, estimates, strict=True))
    hits = np.array([beats.matches(r, e, beats.TOLERANCE) for r, e in pairs])
    sizes = np.array([len(r) + len(e) for r, e in pairs])

    def micro(hits: np.ndarray, sizes: np.ndarray) -> float:
        return 2 * hits.sum() / sizes.sum()

    return metrics.bootstrap(micro, hits, sizes, draws=DRAWS)


def _digest(found: labels.Labels) -> str:
    """Tells test items from others: only on the same ones are two encoders compared."""
    parts = found.references if found.references else [found.labels]
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in parts)).hexdigest()


def _confusion(
    task: Task, best: Outcome, seed: int, test: Prepared, outputs: int
) -> list[list[int]] | None:
    """Test items by label (row) and answer (column), of tasks with one label an item."""
    if task.kind not in ("class", "key"):
        return None
    table = np.zeros((outputs, outputs), int)
    np.add.at(table, (test.found.labels, best.outputs[seed].argmax(-1)), 1)
    return table.tolist()


def _unscored(task: Task, test: Prepared, classes: Sequence[str]) -> list[str]:
    """Tags that no test item, or every one, has: macro averages leave them out."""
    if task.kind != "tags":
        return []
    left = np.flatnonzero(~metrics.scorable(test.found.labels))
    return [classes[i] if len(classes) > i else str(i) for i in left]


def _untrained(task: Task, splits: Mapping[str, Prepared], classes: Sequence[str]) -> list[str]:
    """Classes that test items have and no training item has: they cannot be learnt."""
    if task.kind not in ("class", "key", "tags"):
        return []
    seen = {name: _present(splits[name].found.labels) for name in ("train", "test")}
    absent = sorted(seen["test"] - seen["train"])
    return [classes[i] if len(classes) > i else str(i) for i in absent]


def _present(truth: np.ndarray) -> set[int]:
    return set((np.flatnonzero(truth.any(0)) if truth.ndim == 2 else np.unique(truth)).tolist())
