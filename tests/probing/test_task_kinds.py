"""What each kind of task scores without the audio, by hand."""

import numpy as np
import pytest

from musicssl.features import windows
from musicssl.probing import beats, labels
from musicssl.probing.task_kinds import kind_of
from musicssl.probing.tasks import TASKS


def test_beats_are_monitored_by_what_they_are_decoded_to() -> None:
    """As in MARBLE; a share of frames would be near 1 for beats that are half a beat late, too."""
    task, times = TASKS["gtzan_beat"], np.arange(0.5, 20, 0.5)
    rows = windows.rows(windows.cut(np.array([320_400]), 30, 16_000), 1, 16_000)
    split = labels.beat_labels(task, [{"beat_times": times}], rows, 50)
    monitor = kind_of(task).monitor(split, rows, 50)
    outputs = np.where(beats.frame_targets(times, len(rows.begin), 50, 1), 6.0, -6.0)
    assert monitor(split.y, outputs[:, None]) > 0.95
    late = np.roll(outputs, 12)  # of 25 frames
    assert monitor(split.y, late[:, None]) < 0.05


def test_chance_is_the_best_constant() -> None:
    def of(name: str, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
        def wrap(y: np.ndarray) -> labels.Labels:
            return labels.Labels(np.arange(len(y)), y, np.arange(len(y)), y, np.zeros(0), ())

        return kind_of(TASKS[name]).chance(TASKS[name], wrap(train), wrap(test))

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
