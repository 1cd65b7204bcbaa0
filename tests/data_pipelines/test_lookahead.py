"""Batches in blocks: what is read for them, from a disk and from a bucket, whole and harmed."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import batches, block_order, retries
from data_pipelines.block_order import Blocks
from tests.support import record_files
from tests.support.bucket import ROOT, Bucket, Fault

SAMPLES = 33_000  # more than a block of the checksums
OPTIONS = {"seed": 1, "batch_size": 12, "samples": SAMPLES, "order": "blocks"}
STEPS = 30


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(block_order, "LANES", 4)
    monkeypatch.setattr(block_order, "RECORDS", 4)
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A data set of 90 records in 7 shards, one of them short."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    clips = [record_files.noise(rng, 120_000) for _ in range(90)]
    clips[40] = clips[40][:20_000]
    shards = [clips[13 * i : 13 * (i + 1)] for i in range(7)]
    record_files.write(root / "clips" / "16khz" / "1.0.0", {"train": shards})
    batches.open_dataset("clips", root, "train")  # which indexes it
    return root


@pytest.fixture(scope="module")
def in_bucket(data_dir: Path, bucket: Bucket) -> str:
    bucket.copy(data_dir, "lookahead")
    return f"{ROOT}/lookahead"


@pytest.fixture
def expected(data_dir: Path) -> list[dict[str, np.ndarray]]:
    """The batches, each record read on its own."""
    dataset = batches.open_dataset("clips", data_dir, "train")
    plan, found = Blocks(dataset.samples, 1, SAMPLES, 12), []
    for step in range(STEPS):
        audio = np.empty((12, SAMPLES), np.int16)
        records, starts = plan(12 * step + np.arange(12))
        for row, (record, start) in enumerate(zip(records.tolist(), starts.tolist(), strict=True)):
            dataset.read(record, start, audio[row])
        found.append({"audio": audio, "record": records})
    return found


def take(count: int, stream: batches.Batches) -> list[dict[str, np.ndarray]]:
    taken = [{k: v.copy() for k, v in batch.items()} for batch in itertools.islice(stream, count)]
    stream.close()
    return taken


def equal(first: list[dict], second: list[dict], rows: slice = slice(None)) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["record"], b["record"][rows])
        np.testing.assert_array_equal(a["audio"], b["audio"][rows])


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_batches_are_those_of_the_order_on_any_hosts_from_any_step(
    place, data_dir, in_bucket, expected, request
):
    where = data_dir if place == "disk" else in_bucket
    dataset = batches.open_dataset("clips", where, "train")
    equal(take(STEPS, batches.iterate(dataset, **OPTIONS)), expected)
    for first, last in ((0, 6), (6, 12), (3, 4)):
        stream = batches.iterate(dataset, **OPTIONS, rows=np.arange(first, last), start_step=11)
        equal(take(STEPS - 11, stream), expected[11:], slice(first, last))


def test_few_requests_bring_little_more_than_is_used(in_bucket, bucket):
    dataset = batches.open_dataset("clips", in_bucket, "train")
    with bucket.suffering():
        taken = take(100, batches.iterate(dataset, **OPTIONS))
        counts = bucket.counts
    used = sum(2 * min(dataset.samples[r], SAMPLES) for batch in taken for r in batch["record"])
    blocks = 1200 / (4 * 3)  # of 4 records, visited 3 times
    ahead = 4 * 2 * 2  # windows of 2 blocks that are ready at the end
    assert counts["reads"] <= 1.4 * (blocks + ahead)  # some blocks lie in two shards
    assert counts["bytes_read"] / used <= 1.5 * (blocks + ahead) / blocks
    assert counts["reads"] < 1200 / 4


def test_passing_errors_change_nothing(in_bucket, bucket, expected):
    faults = [Fault("503", "tfrecord", every=5, times=20), Fault("reset", "tfrecord", every=7)]
    dataset = batches.open_dataset("clips", in_bucket, "train")
    with bucket.suffering(*faults, Fault("cut", "tfrecord", skip=3, times=3)):
        stream = batches.iterate(dataset, **OPTIONS, on_damage="skip")
        equal(take(STEPS, stream), expected)
        assert bucket.counts["faults_503"] > 3 and bucket.counts["faults_reset"] > 3
    assert not stream.damaged


def test_a_bucket_that_stays_away_ends_the_run(in_bucket, bucket, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 0.2)
    dataset = batches.open_dataset("clips", in_bucket, "train")
    with bucket.suffering(Fault("503", "tfrecord")):
        stream = batches.iterate(dataset, **OPTIONS, on_damage="skip")
        with pytest.raises(retries.Unreachable, match=r"tfrecord-.*, byte .*run the same"):
            next(stream)
    assert not stream.damaged


@pytest.mark.parametrize("harm", ["flipped", "cut off"])
def test_damage_is_replaced_alike_on_all_hosts(harm, data_dir, tmp_path, expected):
    target = tmp_path / "clips/16khz/1.0.0"
    target.mkdir(parents=True)
    for path in (data_dir / "clips/16khz/1.0.0").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    dataset = batches.open_dataset("clips", tmp_path, "train")
    path = Path(dataset.shard(25))  # the last of its shard
    content = bytearray(path.read_bytes())
    content[int(dataset.index.offset[25]) + 70_000] ^= 1
    if harm == "cut off":
        del content[int(dataset.index.offset[25]) + 1000 :]
    path.write_bytes(content)
    with pytest.raises(batches.Damaged, match=r"record 12 .*(checksum|cut off)"):
        take(STEPS, batches.iterate(dataset, **OPTIONS))
    stream = batches.iterate(dataset, **OPTIONS, on_damage="skip")
    skipped = take(STEPS, stream)
    assert list(stream.damaged) == [25]
    replaced = 0
    for before, after in zip(expected, skipped, strict=True):
        same = before["record"] == after["record"]
        replaced += np.sum(~same)
        assert (before["record"][~same] == 25).all()
        np.testing.assert_array_equal(before["audio"][same], after["audio"][same])
    assert replaced
    parts = [
        take(STEPS, batches.iterate(dataset, **OPTIONS, rows=rows, on_damage="skip"))
        for rows in (np.arange(6), np.arange(6, 12))
    ]
    equal(parts[0], skipped, slice(0, 6))
    equal(parts[1], skipped, slice(6, 12))


def test_an_order_that_is_not_known(data_dir):
    dataset = batches.open_dataset("clips", data_dir, "train")
    with pytest.raises(ValueError, match="order is 'random': use shuffled or blocks"):
        batches.iterate(dataset, **OPTIONS | {"order": "random"})
