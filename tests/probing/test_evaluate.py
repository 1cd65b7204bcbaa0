"""What is trained, chosen on validation and tested, on features made by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from musicssl.features import rows as feature_rows
from musicssl.features import windows
from musicssl.probing import columns, evaluate, labels, metrics, report, tasks
from tests.support.probes import config, nothing

pytestmark = pytest.mark.usefixtures("few_draws")


def separable(seed: int, items: int) -> evaluate.Prepared:
    """Three layers: noise, the class's place, and the class's place with more noise."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 10, items).astype(np.int32)
    place = np.eye(10)[y]
    noise = random.standard_normal((3, items, 10))
    features = np.stack([noise[0], place * 4 + noise[1], place + noise[2]]).astype(np.float16)
    number = np.arange(items)
    split_labels = labels.Labels(number, y, number, y, number[:0], ())
    zeros = np.zeros(items)
    return evaluate.Prepared(features, windows.Rows(number, zeros, zeros), split_labels)


def test_the_layer_with_the_answer_is_chosen_on_validation(tmp_path: Path) -> None:
    splits = {name: separable(i, 300) for i, name in enumerate(tasks.SPLITS)}
    settings = config(tmp_path, epochs=12)
    result = evaluate.evaluate(
        tasks.TASKS["gtzan_genre"], splits, "abcdefghij", 50, settings, nothing
    )
    by_layer = {x["source"]: x["test"]["accuracy"]["mean"] for x in result["layers"]}
    assert list(by_layer) == ["0", "1", "2", "sum"]
    assert by_layer["0"] < 0.2 < by_layer["2"] < by_layer["1"]
    chosen = max(result["layers"], key=lambda x: x["validation"])
    assert result["chosen"]["source"] == chosen["source"] in ("1", "sum")
    low, high = result["chosen"]["interval"]
    assert low < result["chosen"]["test"]["accuracy"]["mean"] < high


def test_every_seed_has_the_scores_of_its_own_answers_on_the_same_samples(tmp_path: Path) -> None:
    splits = {name: separable(i, 100) for i, name in enumerate(tasks.SPLITS)}
    settings = config(tmp_path, epochs=2, layers="2")
    settings.seeds = (1, 2, 3)
    task = tasks.TASKS["gtzan_genre"]
    chosen = evaluate.evaluate(task, splits, "abcdefghij", 50, settings, nothing)["chosen"]
    assert np.shape(chosen["draws"]) == (3, 20) and len(chosen["test_seeds"]) == 3
    assert chosen["test"]["accuracy"]["mean"] == pytest.approx(np.mean(chosen["test_seeds"]))
    wanted = metrics.interval(metrics.over_seeds([chosen["draws"]]))
    assert chosen["interval"] == list(wanted)
    one = settings.copy_and_resolve_references()
    one.seeds = (2,)  # alone, it has the draws that it has beside others
    alone = evaluate.evaluate(task, splits, "abcdefghij", 50, one, nothing)["chosen"]
    assert alone["draws"] == chosen["draws"][1:2]
    assert alone["interval"] == list(metrics.interval(np.array(alone["draws"][0])))


@pytest.mark.parametrize("kind", ["linear", "ridge"])
def test_rows_that_a_clip_repeats_make_no_interval_narrower(tmp_path: Path, kind: str) -> None:
    """Of chunks of recordings: interval and p with every test chunk four times over are the same.

    Where each row counts by itself they would be half as wide, and half of all rows be drawn of
    other recordings.
    """
    splits = {name: separable(i, 90) for i, name in enumerate(tasks.SPLITS)}
    splits = {name: of_recordings(split, 3) for name, split in splits.items()}
    settings = config(tmp_path, epochs=1, layers="1", kind=kind)
    task, found = tasks.TASKS["vocalset_technique"], []
    for times in (1, 4):
        test = repeated(splits["test"], times)
        parts = splits | {"test": test}
        deformed = {"noise:20": test._replace(features=test.features + np.float16(1))}
        result = evaluate.evaluate(
            task, parts, "abcdefghij", 50, settings, nothing, ("knn", "few_shot"), deformed
        )
        assert result["test_clips"] == 30 and result["items"]["test"] == 90 * times
        found.append(result)
    for name in ("knn", "few_shot"):
        assert found[0][name]["interval"] == pytest.approx(found[1][name]["interval"])
    once, often = (result["chosen"] for result in found)
    assert once["draws"] == often["draws"] and np.ptp(once["draws"]) > 0.02
    assert once["interval"] == often["interval"]
    apart = [result["deformed"][0] for result in found]
    assert apart[0] == apart[1]


def of_recordings(split: evaluate.Prepared, chunks: int) -> evaluate.Prepared:
    return split._replace(labels=split.labels._replace(clips=split.rows.record // chunks))


def repeated(split: evaluate.Prepared, times: int) -> evaluate.Prepared:
    """A split with every row and item so many times."""
    own = split.labels
    rows, number = np.repeat(own.rows, times), np.arange(len(own.rows) * times)
    y, clips = np.repeat(own.y, times), np.repeat(own.clips, times)
    return split._replace(labels=labels.Labels(rows, y, number, y, number[:0], (), clips=clips))


def test_features_that_do_not_fit_are_read_as_they_are_trained(tmp_path: Path) -> None:
    splits = {name: separable(i, 300) for i, name in enumerate(tasks.SPLITS)}
    results = []
    for memory in (1.0, 1e-6):
        settings = config(tmp_path, epochs=4, memory_gib=memory, standardise=True, layers="1,sum")
        settings.learning_rates, settings.seeds = (1e-3, 5e-3), (1, 2)
        task = tasks.TASKS["gtzan_genre"]
        results.append(
            evaluate.evaluate(task, splits, "abcdefghij", 50, settings, nothing)["layers"]
        )
    for held, read in zip(*results, strict=True):
        assert held["source"] == read["source"]
        assert held["learning_rate"] == read["learning_rate"]
        assert held["validation"] == pytest.approx(read["validation"], abs=0.01)
        assert held["test"]["accuracy"]["mean"] == pytest.approx(
            read["test"]["accuracy"]["mean"], abs=0.01
        )


def test_standardised_features() -> None:
    random = np.random.default_rng(0)
    features = (random.standard_normal((3, 70_000, 4)) * [1, 9, 0, 2] + 5).astype(np.float16)
    rows = random.permutation(70_000)[:50_000]
    part = feature_rows.stored(features, "sum", rows)
    scaled = dataclasses.replace(part, scale=part.moments()).whole()[0].astype(np.float64)
    plain = part.whole()[0]
    np.testing.assert_array_equal(plain, features[1:, rows])
    wanted = plain - plain.mean(1, keepdims=True, dtype=np.float64)
    wanted /= np.maximum(plain.std(1, keepdims=True, dtype=np.float64), 1e-9)
    np.testing.assert_allclose(scaled, wanted, atol=4e-3)
    assert (scaled[:, :, 2] == 0).all()  # a constant column


def test_classes_without_training_items_are_named(tmp_path: Path) -> None:
    splits = {name: separable(i, 100) for i, name in enumerate(tasks.SPLITS)}
    train = splits["train"]
    y = np.where(train.labels.y == 4, 5, train.labels.y)
    splits["train"] = train._replace(labels=train.labels._replace(y=y, labels=y))
    settings = config(tmp_path, epochs=1, layers="1")
    result = evaluate.evaluate(
        tasks.TASKS["gtzan_genre"], splits, "abcdefghij", 50, settings, nothing
    )
    assert result["untrained_classes"] == ["e"]
    assert "- gtzan_genre: no training item of e" in report.notes({"gtzan_genre": result})
    other = result | {"settings": result["settings"] | {"kind": "linear", "seeds": [1, 2]}}
    note = "- b: probed with kind linear instead of mlp, seeds [1, 2] instead of [1]"
    assert note in report.notes({"a": result, "b": other})
    assert columns.unlike(result, json.loads(json.dumps(result))) == ""
