"""Chance levels by the counts of the real test splits, and whether those fit the builders."""

import pytest

from data_pipelines import counts
from data_pipelines.giantsteps_key import giantsteps_key_dataset_builder as giantsteps_key
from data_pipelines.gtzan import gtzan_dataset_builder as gtzan
from data_pipelines.magnatagatune import magnatagatune_dataset_builder as magnatagatune
from data_pipelines.mtg_jamendo import mtg_jamendo_dataset_builder as mtg_jamendo

LEVELS = {
    "magnatagatune": (0.053102, 50),
    "mtg_instrument": (0.060938, 40),
    "mtg_moodtheme": (0.031924, 56),
    "mtg_genre": (0.027695, 87),
    "mtg_top50": (0.061427, 50),
    "giantsteps_key": (0.157616, 24),
    "gtzan_genre": (0.106897, 10),
}


@pytest.mark.parametrize("task", counts.TABLES)
def test_chance_levels(task):
    level, classes = LEVELS[task]
    found = counts.read(task)
    assert counts.chance(task) == pytest.approx(level, abs=5e-7)
    assert len(found.positives) == classes and min(found.positives.values()) > 0
    assert found.source and "\t" not in found.source


def test_counts_fit_the_builders():
    keys, genres = counts.read("giantsteps_key"), counts.read("gtzan_genre")
    assert set(keys.positives) == set(giantsteps_key.KEYS)
    assert list(genres.positives) == gtzan.GENRES
    assert set(counts.read("magnatagatune").positives) == set(magnatagatune.TAGS)
    sizes = {"giantsteps_key": giantsteps_key, "gtzan_genre": gtzan, "magnatagatune": magnatagatune}
    for task, module in sizes.items():
        assert counts.read(task).items == module.Builder.EXPECTED_SIZES["test"]
    assert sum(keys.positives.values()) == keys.items
    assert sum(genres.positives.values()) == genres.items
    for subset in mtg_jamendo.SUBSETS:
        found = counts.read(f"mtg_{subset}")
        assert found.items == mtg_jamendo.Builder.EXPECTED_SIZES[f"{subset}/test"]
        assert list(found.positives) == sorted(found.positives)


def test_genres_as_they_are_listed():
    """27 clips of metal and 30 of pop are in the fault-filtered test list."""
    positives = counts.read("gtzan_genre").positives
    assert (positives["metal"], positives["pop"]) == (27, 30)
