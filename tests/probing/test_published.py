"""Published figures: of tasks and scores that exist, and with the chance that they imply."""

import json

import numpy as np
import pytest

from configs import probe as probe_config
from data_pipelines import counts
from musicssl.probing import evaluate, labels, metrics, published
from musicssl.probing.task_kinds import kind_of
from musicssl.probing.tasks import TASKS


def test_published_rows_are_of_tasks_and_scores_that_exist() -> None:
    for source in published.sources():
        assert source["url"].startswith("https://") and source["date"] and source["protocol"]
        for row in source["models"].values():
            assert len(row) == len(source["columns"])
            assert all(value is None or 0 < value < 100 for value in row)
        for column in source["columns"]:
            task, _, score = column.partition("/")
            assert not score or score in kind_of(TASKS[task]).score_names
    mert = {model: values for model, _, values in published.scores("giantsteps_key")}
    assert mert["MERT-v1-95M"] == {"weighted": pytest.approx(0.635)}
    assert "MusiCNN" not in [model for model, _, _ in published.scores("gtzan_beat")]
    assert published.scores("synth_key") == []


def test_figures_of_other_protocols_do_not_stand_beside_scores() -> None:
    followed = [source for source in published.sources() if source["followed"]]
    assert [source["source"] for source in followed] == [published.MARBLE]
    apart = [model for source in published.sources() for model in source["models"]]
    current = ("MERT-v2", "MERT-v1-330M", "MuQ", "MusicFM", "PupuJEPA", "OMAR-RQ")
    assert all(any(model.startswith(name) for model in apart) for name in current)
    for task in TASKS:
        beside = [model for model, _, _ in published.scores(task)]
        assert set(beside) <= followed[0]["models"].keys()


def test_the_settings_of_the_protocol_are_the_defaults() -> None:
    def leaves(variant: str, **changed) -> dict:
        given = json.loads(probe_config.get_config(variant).to_json()) | changed
        return {name: given[name] for name in evaluate.SETTINGS}

    assert published.apart(leaves("full")) == ""
    assert published.apart(leaves("full", seeds=[1])) == ""
    assert published.apart(leaves("quick", epochs=2, limit=30)) == (
        "kind linear instead of mlp, standardise True instead of False, learning_rates [0.005] "
        "instead of [5e-05, 0.0001, 0.0005, 0.001, 0.005, 0.01], epochs 2 instead of the task's, "
        "limit 30 instead of all"
    )
    assert published.apart(None) == "its settings are not known"


def labelled(y: np.ndarray) -> labels.Labels:
    number = np.arange(len(y))
    return labels.Labels(number, y, number, y, number[:0], ())


def classes(items: list[int]) -> labels.Labels:
    """So many items of each class."""
    return labelled(np.repeat(np.arange(len(items)), items))


def test_chance_of_counted_labels_is_what_built_labels_score() -> None:
    """Labels in the published numbers, scored as built ones are; and by hand."""
    genres = counts.read("gtzan_genre")
    train = classes([46, 48, 45, 42, 47, 43, 44, 41, 43, 44])
    scores = kind_of(TASKS["gtzan_genre"]).chance(
        TASKS["gtzan_genre"], train, classes([*genres.positives.values()])
    )
    assert published.chance("gtzan_genre") == ("accuracy", pytest.approx(scores["accuracy"]))
    assert scores["accuracy"] == pytest.approx(31 / 290) and round(31 / 290, 6) == 0.106897
    assert list(genres.positives)[int(train.labels[46])] == "classical"  # 48 of the 443
    assert counts._FREQUENT["gtzan_genre"] == "classical"
    keys = counts.read("giantsteps_key").positives
    test = classes([keys[key] for key in metrics.KEYS])
    scores = kind_of(TASKS["giantsteps_key"]).chance(
        TASKS["giantsteps_key"], labelled(np.array([12, 12, 3])), test
    )
    assert published.chance("giantsteps_key") == ("weighted", pytest.approx(scores["weighted"]))
    # C minor to itself, to F minor a fifth below, to E flat major and to C major
    right = keys["C minor"] + 0.5 * keys["F minor"] + 0.3 * keys["Eb major"] + 0.2 * keys["C major"]
    assert scores["weighted"] == pytest.approx(right / 604) and round(right / 604, 6) == 0.157616
    assert published.chance("nsynth_instrument") == ("accuracy", 843 / 4096)
    assert published.chance("nsynth_pitch") is None


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("magnatagatune", 0.053102),
        ("mtg_instrument", 0.060938),
        ("mtg_moodtheme", 0.031924),
        ("mtg_genre", 0.027695),
        ("mtg_top50", 0.061427),
    ],
)
def test_chance_of_counted_tags_is_the_ap_of_a_constant(name: str, level: float) -> None:
    found = counts.read(name)
    assert found.items == TASKS[name].sizes[2]
    tags = np.stack([np.arange(found.items) < n for n in found.positives.values()], 1)
    constant = np.zeros(tags.shape)
    wanted = metrics.average_precision(tags.astype(int), constant)
    assert published.chance(name) == ("ap", pytest.approx(wanted, abs=1e-9))
    assert wanted == pytest.approx(level, abs=5e-7)


# Tracks of each tag in the whole of MTG-Jamendo, which the splits divide by artist:
# MTG/mtg-jamendo-dataset, stats/autotagging_top50tags/all.tsv and, for the other two,
# stats/raw_30s_cleantags_50artists/; the number of tracks is of that repository's README.
JAMENDO_TRACKS = {
    "mtg_top50": (54_380, """
        16480 8094 7805 7750 7570 7496 6865 6120 5726 5602 4833 4804 4241 3941 3761 3678 2827 2657
        2632 2498 2434 2371 2259 2202 2179 2172 2169 2080 2044 1947 1887 1837 1808 1764 1657 1604
        1528 1502 1477 1435 1431 1395 1357 1350 1343 1283 1282 1278 1271 1245"""),
    "mtg_instrument": (25_135, """
        7750 7496 5726 6120 4804 4241 1947 1837 1604 2080 2044 1278 1764 859 1282 1114 891 873
        908 1070 640 631 721 473 440 416 589 398 463 543 290 518 309 157 364 497 229 190 386 315
        278"""),
    "mtg_genre": (55_215, """
        16480 6865 7805 7570 8094 3761 3941 4833 5602 2827 3678 2371 2172 2632 1887 2498 2179 2657
        2259 2169 1283 2434 1808 1395 1528 1477 2202 1082 1435 1078 1003 1343 1245 1431 629 993 568
        729 590 598 696 704 547 501 429 512 579 712 584 325 447 776 509 382 504 635 445 490 342 312
        318 244 375 332 377 216 359 215 427 308 191 287 148 282 169 202 304 222 187 134 177 310 140
        221 179 167 281 267 213 214 139 222 135 175 121"""),
}  # fmt: skip


@pytest.mark.parametrize("name, apart", [("top50", 0.001), ("instrument", 0.03), ("genre", 0.07)])
def test_chance_of_tags_is_near_that_of_the_whole_data_set(name: str, apart: float) -> None:
    """A split by artist has its own counts, and leaves out 1 of 41 instruments, 8 of 95 genres."""
    tracks, counts = JAMENDO_TRACKS[f"mtg_{name}"]
    share = np.mean([int(count) / tracks for count in counts.split()])
    assert published.chance(f"mtg_{name}")[1] == pytest.approx(share, rel=apart)
