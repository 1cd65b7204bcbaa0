"""Published scores, from published.json beside this file, and chance on published test labels.

What is here was read in a primary source; where it was not, a comment says so. The results of
arXiv:2307.05161 itself were not found, so none is shown as that paper's. MARBLE's constrained track
(arXiv:2306.10548v1, tables 3 and 4) is followed here, with the deviations that protocol.md beside
this file names, so tables show its rows beside scores. Figures under other protocols are shown
apart, with their sources, and never in a table of what was run here.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from musicssl import host

MARBLE = "MARBLE, arXiv:2306.10548v1, tables 3 and 4"
DEVIATIONS = "musicssl/probing/protocol.md names where the tasks differ from its code"
# What MARBLE's constrained track trains, by leaves of configs/probe.py; _WORDS spells 0.
_GRID: dict[str, Any] = {
    "kind": "mlp",
    "standardise": False,
    "layers": "all",
    "learning_rates": [5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2],
    "epochs": 0,
    "batch_size": 64,
    "limit": 0,
}
_WORDS = {"epochs": "the task's", "limit": "all"}
_FILE = Path(__file__).parent / "published.json"


class Source(TypedDict):
    """Figures from one place, under one protocol.

    source, url, date: where and when they were published.
    protocol: how they were computed.
    followed: whether the evaluator here follows that protocol.
    columns: "<task>/<score>" of this evaluator, or another's own words.
    models: by name, the values of the columns x 100, None where nothing is reported.
    """

    source: str
    url: str
    date: str
    protocol: str
    followed: bool
    columns: list[str]
    models: dict[str, list[float | None]]


@functools.cache
def sources() -> tuple[Source, ...]:
    """Return everything that published.json holds, in its order."""
    return tuple(json.loads(_FILE.read_text()))


# Chance levels that do not come from counted labels. R2 of the mean is 0. NSynth's test split has
# 843 notes of basses, the most frequent family of the training split, among 4,096
# (arXiv:1704.01279, as quoted: not read in its examples.json). We found no published labels of
# GTZAN-Rhythm, of NSynth's pitches or of VocalSet's 3 s chunks.
_STATED = {"emomusic": ("r2", 0.0), "nsynth_instrument": ("accuracy", 843 / 4096)}
_COUNTED = {"giantsteps_key": "weighted", "gtzan_genre": "accuracy"}  # for tags it is the AP


def chance(task: str) -> tuple[str, float] | None:
    """Return the best answer's score without audio, on published test labels: its name and value.

    It is None for a task whose published labels are not known.
    """
    counted = host.published_chance(task)
    if counted is None:
        return _STATED.get(task)
    return _COUNTED.get(task, "ap"), counted


def apart(settings: Mapping[str, Any] | None) -> str:
    """Return in words how the settings of a result differ from MARBLE's grid; "" if they do not.

    Args:
      settings: of a TaskResult; None where an earlier version wrote none.
    """
    if settings is None:
        return "its settings are not known"
    changed = []
    for name, value in _GRID.items():
        if settings.get(name, value) != value:
            changed.append(f"{name} {settings[name]} instead of {_WORDS.get(name, value)}")
    return ", ".join(changed)


def scores(task: str) -> list[tuple[str, str, dict[str, float]]]:
    """Return (model, source, {score: value}) of models with scores of the task, as fractions.

    Only figures under the protocol that is followed here are returned.
    """
    models = []
    for source in sources():
        if not source["followed"]:
            continue
        for model, row in source["models"].items():
            values = {}
            for column, value in zip(source["columns"], row, strict=True):
                name, _, score = column.partition("/")
                if name == task and value is not None:
                    values[score] = value / 100
            if values:
                models.append((model, source["source"], values))
    return models
