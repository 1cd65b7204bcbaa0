"""Labels of windows and of their rows, and what is known of chance from them."""

import numpy as np
import pytest

from data_pipelines.composer import harmony, timbres
from musicssl.features import windows
from musicssl.probing import labels, metrics
from musicssl.probing.tasks import TASKS

RATE, FPS = 16_000, 50.0


def rows_of(lengths: list[float], window: float, pool: int = 0) -> windows.Rows:
    cut = windows.cut((np.array(lengths) * RATE).astype(int), window, RATE)
    return windows.rows(cut, pool, RATE)


def test_a_clips_windows_share_its_label() -> None:
    records = [{"genre": 3}, {"genre": 1}]
    labelled = labels.item_labels(TASKS["gtzan_genre"], records, rows_of([60, 30], 30), FPS)
    assert labelled.y.tolist() == [3, 3, 1]
    assert labelled.item.tolist() == [0, 0, 1]
    assert labelled.labels.tolist() == [3, 1]


def test_tracks_outside_a_subset_take_no_part() -> None:
    records = [{"genre": np.array(x, np.uint8)} for x in ([0, 1], [0, 0], [1, 1])]
    labelled = labels.item_labels(TASKS["mtg_genre"], records, rows_of([60, 60, 30], 30), FPS)
    assert labelled.rows.tolist() == [0, 1, 4]
    assert labelled.item.tolist() == [0, 0, 1]
    assert labelled.labels.tolist() == [[0, 1], [1, 1]]
    # but a MagnaTagATune clip without a tag counts
    records = [{"tags": r["genre"]} for r in records]
    kept = labels.item_labels(TASKS["magnatagatune"], records, rows_of([29.1] * 3, 29.1), FPS)
    assert len(kept.labels) == 3
    with pytest.raises(ValueError, match="no record of the split belongs"):
        nothing = [{"genre": np.zeros(2, np.uint8)}]
        labels.item_labels(TASKS["mtg_genre"], nothing, rows_of([30], 30), FPS)


def test_every_vocalset_chunk_is_an_item() -> None:
    """Those of a singer with what is left of a recording, those of a technique without."""
    records = [{"technique": 2, "singer": 7}, {"technique": 0, "singer": 8}]
    rows = rows_of([7, 2], TASKS["vocalset_singer"].window)
    labelled = labels.item_labels(TASKS["vocalset_singer"], records, rows, FPS)
    assert labelled.labels.tolist() == [7, 7, 7, 8]
    assert labelled.item.tolist() == [0, 1, 2, 3]
    assert labelled.clips.tolist() == [0, 0, 0, 1] and labelled.records == 2
    labelled = labels.item_labels(TASKS["vocalset_technique"], records, rows, FPS)
    assert labelled.labels.tolist() == [2, 2, 0]
    assert labelled.rows.tolist() == [0, 1, 3]
    assert labelled.clips.tolist() == [0, 0, 1] and labelled.scored == 3


def test_half_seconds_are_of_their_clips_and_clips_of_nothing() -> None:
    """Of two clips; half seconds without a third in their chord take no part."""
    rows = rows_of([2.1, 1.1], 2.1, 25)
    for name, wanted in (
        ("synth_pitch", [0, 0, 0, 0, 1, 1]),
        ("synth_polyphony", [0, 0, 0, 0, 1, 1]),
        ("synth_chord", [0, 0, 1, 1]),
    ):
        labelled = labels.item_labels(TASKS[name], [song(), song()], rows, FPS)
        assert labelled.clips.tolist() == wanted and labelled.records == 2
    records = [{"genre": 3}, {"genre": 1}]
    labelled = labels.item_labels(TASKS["gtzan_genre"], records, rows_of([60, 30], 30), FPS)
    assert labelled.clips is None and labelled.records == 2


def test_clips_of_giantsteps_are_whole() -> None:
    records = [{"key": 5}, {"key": 3}]
    rows = rows_of([119.9, 45], 30)
    labelled = labels.item_labels(TASKS["giantsteps_key"], records, rows, FPS)
    assert labelled.rows.tolist() == [0, 1, 2, 4]
    assert labelled.item.tolist() == [0, 0, 0, 1]


def test_records_that_are_trained_on_whole_say_where_they_begin() -> None:
    records = [{"emotion": np.array([0.5, i], np.float32)} for i in range(3)]
    rows = rows_of([45, 20, 45], 30, windows.WHOLE)
    labelled = labels.item_labels(TASKS["emomusic"], records, rows, FPS)
    assert labelled.item.tolist() == [0, 0, 1, 2, 2]
    assert labelled.start.tolist() == [0, 2, 3]
    once = labels.item_labels(TASKS["emomusic"], records, rows_of([30] * 3, 30, 0), FPS)
    assert len(once.start) == 0  # records of one window are single rows


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
    return labels.item_labels(TASKS[name], [song()], rows_of([2.1], 2.1, pool), FPS).y


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
    labelled = labels.beat_labels(TASKS["synth_beat"], records, rows, FPS)
    assert labelled.start.tolist() == [0]
    assert labelled.rows[0] == 49  # the record without beats takes no part
    near = rows.begin[labelled.rows][labelled.y[:, 0] == 1]
    np.testing.assert_allclose(near, [0.96, 1.0, 1.48, 1.5, 1.52])
    assert labelled.references[0].tolist() == [0.98, 1.5, 9.0]


def test_perfect_frames_give_the_reference_beats() -> None:
    times = np.arange(0.3, 30, 0.5)  # the model goes on in silence
    rows = rows_of([30], 5, 1)
    labelled = labels.beat_labels(TASKS["gtzan_beat"], [{"beat_times": times}], rows, FPS)
    outputs = np.where(labelled.labels > 0, 6.0, -6.0)
    (estimate,) = labels.beat_estimates(outputs, labelled, rows, FPS)
    assert np.abs(estimate[:, None] - times).min(1).max() < 0.03


def rhythm(times: list[float], positions: list[int]) -> dict:
    """A record of GTZAN, as far as its rhythm goes."""
    return {"beat_times": np.array(times, np.float32), "bar_positions": np.array(positions)}


def test_downbeats_are_the_beats_that_begin_bars() -> None:
    records = [
        rhythm([0.5, 1.0, 1.5, 2.0, 2.5], [4, 1, 2, 3, 1]),
        rhythm([0.5, 1.0], [0, 0]),  # six clips of jazz have no positions
    ]
    rows = rows_of([3.0, 3.0], 30, 1)
    found = labels.beat_labels(TASKS["gtzan_downbeat"], records, rows, 50)
    assert [x.tolist() for x in found.references] == [[1.0, 2.5]] and found.scored == 1
    marked = np.flatnonzero(found.y[:, 0])
    assert marked.tolist() == [49, 50, 51, 124, 125, 126]
    assert len(found.y) == 149  # frames of the first record alone


def test_tempo_is_of_the_median_distance_of_beats() -> None:
    records = [
        rhythm([0.0, 0.5, 1.0, 1.5, 2.6], [1, 2, 3, 4, 1]),
        rhythm([1.0], [1]),  # no tempo
        rhythm([0.0, 0.15, 0.3], [1, 2, 3]),  # 400 a minute is beyond the classes
    ]
    found = labels.tempo_labels(TASKS["gtzan_tempo"], records, rows_of([30.0] * 3, 30), 50)
    np.testing.assert_allclose(found.labels, [120, 400], rtol=1e-5)
    assert found.y.tolist() == [90, 255] and found.item.tolist() == [0, 1]
    assert metrics.TEMPI[found.y].tolist() == [120, 285] and found.rows.tolist() == [0, 2]
