"""What each kind of task scores without the audio, by hand."""

import numpy as np
import pytest

from musicssl.probing import labels
from musicssl.probing.task_kinds import kind_of
from musicssl.probing.tasks import TASKS


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
