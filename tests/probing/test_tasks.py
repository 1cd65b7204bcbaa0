"""The table of tasks, and labels against what the records say, by hand."""

import numpy as np
import pytest

from data_pipelines.build import load_builder
from data_pipelines.composer import harmony, timbres
from musicssl.features import windows
from musicssl.probing import labels, metrics, published, session, tasks
from musicssl.probing.tasks import TASKS

RATE, FPS = 16_000, 50.0


def test_there_are_the_13_tasks_the_embedded_six_and_seven_on_polyphony() -> None:
    assert len(tasks.SUITES["mir"]) == 13
    assert len(tasks.SUITES["synth"]) == 6
    assert len(tasks.SUITES["poly"]) == 7
    assert len(tasks.choose("synth,gtzan_genre,synth_key")) == 7
    assert [t.name for t in tasks.choose(" mir ")] == list(tasks.SUITES["mir"])


@pytest.mark.parametrize(("names", "message"), [("gtzan", "there is no 'gtzan'"), ("", "is empty")])
def test_unknown_tasks_are_refused(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.choose(names)


@pytest.mark.parametrize("name", tasks.SUITES["mir"])
def test_sizes_are_those_the_builder_expects(name: str, tmp_path) -> None:
    task = TASKS[name]
    expected = load_builder(task.dataset, None, str(tmp_path)).EXPECTED_SIZES
    prefix = f"{task.label}/" if task.dataset == "mtg_jamendo" else ""
    if not expected:  # of VocalSet only 3 s chunks are published
        assert task.dataset == "vocalset"
        assert task.sizes is None
    else:
        assert task.sizes == tuple(expected[prefix + split] for split in tasks.SPLITS)


def test_published_rows_are_of_tasks_and_scores_that_exist() -> None:
    for task, score in published.COLUMNS:
        assert score in tasks.KINDS[TASKS[task].kind].scores or (task, score) == ("gtzan_beat", "f")
    mert = {model: values for model, _, values in published.scores("giantsteps_key")}
    assert mert["MERT-v1-95M"] == {"weighted": pytest.approx(0.635)}
    assert "MusiCNN" not in [model for model, _, _ in published.scores("gtzan_beat")]
    assert published.scores("synth_key") == []


def rows_of(lengths: list[float], window: float, pool: int = 0) -> windows.Rows:
    cut = windows.cut((np.array(lengths) * RATE).astype(int), window, RATE)
    return windows.rows(cut, pool, RATE)


def test_a_clips_windows_share_its_label() -> None:
    records = [{"genre": 3}, {"genre": 1}]
    found = labels.labels(TASKS["gtzan_genre"], records, rows_of([60, 30], 30), FPS)
    assert found.y.tolist() == [3, 3, 1]
    assert found.item.tolist() == [0, 0, 1]
    assert found.labels.tolist() == [3, 1]


def test_tracks_outside_a_subset_take_no_part() -> None:
    records = [{"genre": np.array(x, np.uint8)} for x in ([0, 1], [0, 0], [1, 1])]
    found = labels.labels(TASKS["mtg_genre"], records, rows_of([60, 60, 30], 30), FPS)
    assert found.rows.tolist() == [0, 1, 4]
    assert found.item.tolist() == [0, 0, 1]
    assert found.labels.tolist() == [[0, 1], [1, 1]]
    # but a MagnaTagATune clip without a tag counts
    records = [{"tags": r["genre"]} for r in records]
    kept = labels.labels(TASKS["magnatagatune"], records, rows_of([29.1] * 3, 29.1), FPS)
    assert len(kept.labels) == 3
    with pytest.raises(ValueError, match="no record of the split belongs"):
        nothing = [{"genre": np.zeros(2, np.uint8)}]
        labels.labels(TASKS["mtg_genre"], nothing, rows_of([30], 30), FPS)


def test_every_vocalset_chunk_is_an_item() -> None:
    records = [{"technique": 2}, {"technique": 0}]
    found = labels.labels(TASKS["vocalset_technique"], records, rows_of([7, 3], 3), FPS)
    assert found.labels.tolist() == [2, 2, 2, 0]
    assert found.item.tolist() == [0, 1, 2, 3]


def song() -> dict:
    drum = timbres.INSTRUMENTS.index("drums")
    quality = list(harmony.QUALITIES).index
    return {
        "beats": {"time": np.array([0.0, 0.5, 1.0, 1.5]), "position": np.arange(4) + 1},
        "chords": {
            "root": np.array([0, 9, 7, -1]),
            "quality": np.array([quality("maj"), quality("min7"), quality("sus4"), quality("N")]),
        },
        "notes": {
            "onset": np.array([0.0, 0.0, 0.6, 0.0, 1.9]),
            "offset": np.array([0.5, 2.0, 0.7, 2.0, 2.0]),
            "pitch": np.array([60, 67, 64, 36, 62]),
            "instrument": np.array([1, 2, 3, drum, 1]),
        },
    }


def embedded(name: str, pool: int = 25) -> np.ndarray:
    return labels.labels(TASKS[name], [song()], rows_of([2.1], 2.1, pool), FPS).y


def test_labels_of_half_seconds() -> None:
    assert embedded("synth_chord").tolist() == [0, 9 + 12]  # sus4 has no third, N no root
    assert embedded("synth_polyphony").tolist() == [2, 1, 1, 1]
    classes = embedded("synth_pitch")
    assert [np.flatnonzero(row).tolist() for row in classes] == [[0, 7], [7], [7], [7]]
    playing = embedded("synth_instrument", windows.WHOLE)
    drum = timbres.INSTRUMENTS.index("drums")
    assert np.flatnonzero(playing[0]).tolist() == [1, 2, 3, drum]


def test_tables_here_are_those_of_the_composer() -> None:
    assert timbres.INSTRUMENTS[labels.DRUMS] == "drums"
    assert len(labels.THIRDS) == len(harmony.QUALITIES)
    for third, intervals in zip(labels.THIRDS, harmony.QUALITIES.values(), strict=True):
        assert third == (1 if 3 in intervals else 0 if 4 in intervals else -1)
    assert metrics.KEYS == harmony.KEYS


def test_beat_labels_and_estimates_across_windows() -> None:
    # two windows of a second: each lacks its last frame, at 0.98 s and 1.98 s
    records = [{"beats": {"time": np.zeros(0)}}, {"beats": {"time": np.array([0.98, 1.5, 9.0])}}]
    rows = rows_of([1, 2], 1, 1)
    found = labels.labels(TASKS["synth_beat"], records, rows, FPS)
    assert found.start.tolist() == [0]
    assert found.rows[0] == 49  # the record without beats takes no part
    at = rows.begin[found.rows][found.labels[:, 0] == 1]
    np.testing.assert_allclose(at, [1.5])
    near = rows.begin[found.rows][found.y[:, 0] == 1]
    np.testing.assert_allclose(near, [0.96, 1.0, 1.48, 1.5, 1.52])
    assert found.references[0].tolist() == [0.98, 1.5, 9.0]


def test_perfect_frames_give_the_reference_beats() -> None:
    times = np.arange(0.3, 30, 0.5)  # the model goes on in silence
    rows = rows_of([30], 5, 1)
    found = labels.labels(TASKS["gtzan_beat"], [{"beat_times": times}], rows, FPS)
    outputs = np.where(found.labels > 0, 6.0, -6.0)
    (estimate,) = labels.beat_estimates(outputs, found, rows, FPS)
    assert np.abs(estimate[:, None] - times).min(1).max() < 0.03


def test_chance_is_the_best_constant() -> None:
    def of(name: str, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
        def wrap(y: np.ndarray) -> labels.Labels:
            return labels.Labels(np.arange(len(y)), y, np.arange(len(y)), y, np.zeros(0), ())

        return labels.chance(TASKS[name], wrap(train), wrap(test))

    genre = of("gtzan_genre", np.array([0, 1, 1]), np.array([1, 1, 0, 2]))
    assert genre == {"accuracy": 0.5}
    # C minor (12) twice; G minor is a fifth above C minor, so that answering G counts half there
    keys = of("giantsteps_key", np.array([12, 12, 3]), np.array([12, 19, 0, 1]))
    assert keys["weighted"] == pytest.approx((1 + 0 + 0.2 + 0) / 4)
    assert keys["weighted_descending"] == pytest.approx((1 + 0.5 + 0.2 + 0) / 4)
    tags = (np.random.default_rng(0).random((500, 5)) < 0.2).astype(np.float32)
    tagged = of("magnatagatune", tags, tags)
    assert tagged["roc_auc"] == 0.5
    assert tagged["ap"] == pytest.approx(tags.mean(), abs=1e-6)
    truth = np.random.default_rng(1).standard_normal((125, 2))
    assert of("emomusic", truth, truth)["r2"] == pytest.approx(0)


def of_counts(counts: list[int]) -> labels.Labels:
    y = np.repeat(np.arange(len(counts)), counts)
    return labels.Labels(np.arange(len(y)), y, np.arange(len(y)), y, np.zeros(0), ())


def test_chance_of_published_class_counts() -> None:
    """Labels in the published numbers, scored as built ones are; and by hand."""
    genres = [46, 48, 45, 42, 47, 43, 44, 41, 43, 44]  # in train
    for name, counts in published.TEST_COUNTS.items():
        assert sum(counts.items) == TASKS[name].sizes[2]
        train = genres if name == "gtzan_genre" else np.eye(24, dtype=int)[counts.answer]
        found = labels.chance(TASKS[name], of_counts(train), of_counts(counts.items))
        score, chance = TASKS[name].chance
        assert found[score] == pytest.approx(chance)
    assert TASKS["gtzan_genre"].chance[1] == pytest.approx(31 / 290)
    assert TASKS["nsynth_instrument"].chance[1] == pytest.approx(843 / 4096)
    # C minor to itself, to F minor a fifth below, to E flat major and to C major
    keys = dict(zip(metrics.KEYS, published.TEST_COUNTS["giantsteps_key"].items, strict=True))
    right = keys["C minor"] + 0.5 * keys["F minor"] + 0.3 * keys["Eb major"] + 0.2 * keys["C major"]
    assert TASKS["giantsteps_key"].chance[1] == pytest.approx(right / 604)
    assert TASKS["giantsteps_key"].chance[1] == pytest.approx(0.1576, abs=5e-5)
    # the same test split's published PR-AUC of a constant
    assert published.TAG_SHARES["mtg_moodtheme"] == pytest.approx(0.031924, abs=5e-7)


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
    assert TASKS[f"mtg_{name}"].chance[1] == pytest.approx(share, rel=apart)


@pytest.mark.parametrize("name", [n for n in tasks.SUITES["mir"] if TASKS[n].chance])
def test_labels_that_are_not_the_published_ones_are_told(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    score, published_chance = TASKS[name].chance
    assert score in tasks.KINDS[TASKS[name].kind].scores
    near, far = (-0.03, -0.1) if score == "r2" else (0.002, 0.02)
    session.warn_of_chance(TASKS[name], {score: published_chance + near}, limit=0)
    session.warn_of_chance(TASKS[name], {score: published_chance + far}, limit=9)  # a part of them
    assert not capsys.readouterr().err
    session.warn_of_chance(TASKS[name], {score: published_chance + far}, limit=0)
    assert f"{name}: without the audio {score} is" in capsys.readouterr().err
