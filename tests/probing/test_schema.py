"""Results against their schema."""

from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from musicssl.features import windows
from musicssl.probing import evaluate, schema, tasks
from musicssl.probing.labels import Labels
from tests.support.probes import config, nothing


@pytest.mark.usefixtures("few_draws")
def test_a_result_has_the_fields_of_the_schema(tmp_path: Path) -> None:
    splits = {}
    for seed, name in enumerate(tasks.SPLITS):
        features = np.random.default_rng(seed).standard_normal((1, 20, 4)).astype(np.float16)
        number = np.arange(20)
        y, levels = number % 2, {"voices": number % 3}
        rows = windows.Rows(number, np.zeros(20), np.zeros(20))
        split_labels = Labels(number, y, number, y, number[:0], (), levels)
        splits[name] = evaluate.Prepared(features, rows, split_labels)
    task = tasks.TASKS["poly_interval"]
    settings = config(tmp_path, epochs=1)
    deformed = {"gain:0": splits["test"]}
    result = evaluate.evaluate(task, splits, (), 50, settings, nothing, evaluate.ALSO, deformed)
    (layer,) = result["layers"]
    level = result["factors"][evaluate.ALL_LEVELS][0]
    for fields, values in (
        (schema.TaskResult, result),
        (schema.ChosenResult, result["chosen"]),
        (schema.LayerResult, layer),
        (schema.SeedScore, layer["test"]["accuracy"]),
        (schema.LevelResult, level),
        (schema.LevelScore, level["sources"]["0"]),
        (schema.BesideResult, result["knn"]),
        (schema.BesideResult, result["few_shot"]),
        (schema.LayerGeometry, result["geometry"][0]),
        (schema.DeformedResult, result["deformed"][0]),
    ):
        assert get_type_hints(fields).keys() - {"penalty"} == values.keys()  # that is of ridge
