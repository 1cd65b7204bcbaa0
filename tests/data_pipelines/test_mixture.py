"""Several data sets read as one: exact shares, and batches that are a function of the step."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines import batches
from data_pipelines.mixture import Mixed, Mixture, parse
from data_pipelines.order import hash64
from tests.support import record_files

SAMPLES = 400


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> list[batches.Dataset]:
    """Seven clips of tens, and eleven of hundreds: a sample tells its data set and its clip."""
    root = tmp_path_factory.mktemp("mixture")
    for name, count, unit in (("a", 7, 10), ("b", 11, 100)):
        clips = [np.full(1000 + 50 * i, unit * (i + 1), np.int16) for i in range(count)]
        splits = {"train": [clips[:4], clips[4:]]}
        record_files.write(root / name / "16khz/1.0.0", splits)
    return [batches.open_dataset(name, root, "train") for name in ("a", "b")]


def read(dataset, start: int, count: int, **leaves) -> np.ndarray:
    """The first sample of every row of some batches of six: [count, rows]."""
    given = {"seed": 3, "batch_size": 6, "samples": SAMPLES, "start_step": start} | leaves
    reading = batches.iterate(dataset, **given)
    rows = [next(reading)["audio"][:, 0].copy() for _ in range(count)]
    reading.close()
    return np.stack(rows)


@pytest.mark.parametrize(
    "text, weights",
    [
        ("synth_music:1,music_folder:4", {"synth_music": 1, "music_folder": 4}),
        ("a:0.5, b/24khz:1.25", {"a": 2, "b/24khz": 5}),
        ("a:10,b:20,c:30", {"a": 1, "b": 2, "c": 3}),
        ("a:1/3,b:1", {"a": 1, "b": 3}),
    ],
)
def test_weights_are_whole_numbers_in_lowest_terms(text, weights):
    assert parse(text) == weights


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b:1", "'a' is not a data set and a weight: write NAME:WEIGHT"),
        ("a:1,b:0", "'b:0' is not a data set"),
        ("a:1,,b:1", "'' is not a data set"),
        ("a:much", "'a:much' is not a data set"),
        ("a:1,a:2", "a is named twice"),
        ("a:0.99999,b:1", "add up to more than 10000: round them"),
    ],
)
def test_what_is_no_mixture_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_every_cycle_has_each_data_set_as_often_as_it_weighs(datasets):
    plan = Mixed(Mixture(datasets, [2, 5]), 3, SAMPLES)
    records, _ = plan(np.arange(70))
    of_second = (records >= 7).reshape(10, 7)
    assert (of_second.sum(1) == 5).all()
    assert len(np.unique(of_second, axis=0)) > 3  # not always at the same places
    for cycle in range(10):  # by the definition
        drawn = hash64(3, 4, cycle, np.arange(7))
        assert (of_second[cycle] == (drawn >= np.sort(drawn)[2])).all()


def test_each_data_set_has_the_stream_that_it_has_alone(datasets):
    mixture = Mixture(datasets, [2, 5])
    plan = Mixed(mixture, 3, SAMPLES)
    places = np.arange(7 * 22)
    records, starts = plan(places)
    for part, alone in zip(mixture.parts, plan.plans, strict=True):
        here = (records >= part.first) & (records < part.first + len(part.dataset))
        own = list(zip(records[here] - part.first, starts[here], strict=True))
        wanted = list(zip(*alone(np.arange(here.sum())), strict=True))
        assert sorted(own) == sorted(wanted)  # and in every cycle: see the shares above
        assert len(own) == 22 * part.weight


def test_a_mixture_of_one_is_that_data_set(datasets):
    alone = read(datasets[1], 0, 8)
    np.testing.assert_array_equal(read(Mixture(datasets[1:], [1]), 0, 8), alone)


def test_batches_are_a_function_of_the_step_and_not_of_the_hosts(datasets):
    mixture = Mixture(datasets, [1, 4])
    whole = read(mixture, 0, 12)
    np.testing.assert_array_equal(read(mixture, 7, 5), whole[7:])
    parts = [read(mixture, 0, 12, rows=np.arange(6)[host::3]) for host in range(3)]
    for host, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[:, host::3])
    first = whole.ravel()[: 5 * 14] < 100
    assert first.reshape(14, 5).sum(1).tolist() == [1] * 14
    assert (read(mixture, 0, 12, seed=4) != whole).any()


def test_a_damaged_record_gives_way_to_one_of_its_own_data_set(datasets):
    plan = Mixed(Mixture(datasets, [1, 1]), 3, SAMPLES)
    for place in range(20):
        (record,), _ = plan(np.array([place]))
        instead, start = plan.instead(place, 0)
        assert (instead < 7) == (record < 7) and 0 <= instead < 18 and start >= 0


def test_what_does_not_go_together_is_refused(datasets, tmp_path: Path):
    with pytest.raises(ValueError, match="order is 'blocks', which reads one data set"):
        read(Mixture(datasets, [1, 1]), 0, 1, order="blocks")
    record_files.write(tmp_path / "c/24khz/1.0.0", {"train": [[np.zeros(2000, np.int16)]]})
    other = batches.open_dataset("c", tmp_path, "train")
    with pytest.raises(ValueError, match=r"sample rates differ: .* 16000 Hz, .* 24000 Hz"):
        Mixture([datasets[0], other], [1, 1])
    with pytest.raises(ValueError, match=r"longer than most records of .*/a/"):
        batches.check_crop(Mixture(datasets, [1, 1]), 1300)
