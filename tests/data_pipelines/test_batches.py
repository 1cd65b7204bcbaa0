import gc
import itertools
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import batches
from tests.support import record_files

SAMPLES = 33_000  # more than a block of the checksums
RECORDS = 23
MASK = 2**64 - 1


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A data set of 23 records in 4 shards, four of them shorter than a crop."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lengths = rng.integers(SAMPLES, 4 * SAMPLES, RECORDS)
    lengths[[2, 9, 10]] = [700, SAMPLES - 1, SAMPLES // 2]
    lengths[3] = SAMPLES
    clips = [record_files.noise(rng, samples) for samples in lengths]
    shards = [clips[:6], clips[6:7], clips[7:19], clips[19:]]
    record_files.write(root / "clips" / "16khz" / "1.0.0", {"train": shards})
    return root


@pytest.fixture(scope="module")
def dataset(data_dir) -> batches.Dataset:
    return batches.open_dataset("clips", data_dir, "train")


def copied(data_dir: Path, root: Path) -> Path:
    """A copy of the data set, for harm; its shards."""
    source, target = data_dir / "clips/16khz/1.0.0", root / "clips/16khz/1.0.0"
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def take(count: int, stream) -> list[dict[str, np.ndarray]]:
    with_copies = [
        {key: value.copy() for key, value in batch.items()}
        for batch in itertools.islice(stream, count)
    ]
    stream.close()
    return with_copies


def equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["record"], b["record"])
        np.testing.assert_array_equal(a["audio"], b["audio"])


def chained(*words: int) -> int:
    """SplitMix64 after each word, with Python's own integers."""
    z = 0
    for word in words:
        z = ((z ^ word) + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return z


def test_batches_are_those_computed_from_what_tfds_decodes(data_dir, dataset):
    """Order, crops and contents, by an independent path; batches of 10 cross epochs of 23."""
    builder = tfds.builder_from_directory(data_dir / "clips/16khz/1.0.0")
    config = tfds.ReadConfig(interleave_cycle_length=1)
    decoded = builder.as_dataset(split="train", read_config=config)
    clips = [example["audio"] for example in tfds.as_numpy(decoded)]
    seed, size = 7, 10
    stream = batches.iterate(dataset, seed=seed, batch_size=size, samples=SAMPLES, start_step=1)
    for step, batch in zip(range(1, 8), take(7, stream), strict=True):
        assert batch["audio"].dtype == np.int16 and batch["record"].dtype == np.int64
        assert batch["audio"].shape == (size, SAMPLES)
        for row in range(size):
            epoch, place = divmod(step * size + row, RECORDS)
            keys = [chained(seed, 0, epoch, record) for record in range(RECORDS)]
            record = sorted(range(RECORDS), key=keys.__getitem__)[place]
            clip = clips[record]
            choices = max(len(clip) - SAMPLES + 1, 1)
            start = int((chained(seed, 1, epoch, record) >> 11) / 2**53 * choices)
            expected = np.tile(clip[start:], -(-SAMPLES // len(clip)))[:SAMPLES]
            assert batch["record"][row] == record
            np.testing.assert_array_equal(batch["audio"][row], expected)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_read_parts_of_the_same_global_batches(dataset, hosts):
    options = {"seed": 1, "batch_size": 16, "samples": SAMPLES, "start_step": 3}
    whole = take(4, batches.iterate(dataset, **options))
    rows = np.arange(16).reshape(-1, hosts).T  # dealt out, as some meshes do
    parts = [take(4, batches.iterate(dataset, **options, rows=r, threads=2)) for r in rows]
    for step, batch in enumerate(whole):
        for host, part in zip(rows, parts, strict=True):
            np.testing.assert_array_equal(part[step]["record"], batch["record"][host])
            np.testing.assert_array_equal(part[step]["audio"], batch["audio"][host])


def test_a_batch_of_several_pieces_is_put_together_in_order(dataset):
    options = {"seed": 1, "batch_size": 100, "samples": 500}
    whole = take(2, batches.iterate(dataset, **options, threads=4))
    rows = [batches.iterate(dataset, **options, rows=[r], threads=1) for r in (0, 33, 34, 99)]
    for row, part in zip((0, 33, 34, 99), rows, strict=True):
        for batch, single in zip(whole, take(2, part), strict=True):
            assert batch["audio"].shape == (100, 500)
            assert batch["record"][row] == single["record"][0]
            np.testing.assert_array_equal(batch["audio"][row], single["audio"][0])


def test_going_on_at_any_step_is_as_never_stopping(dataset):
    options = {"seed": 5, "batch_size": 9, "samples": SAMPLES}
    unbroken = take(12, batches.iterate(dataset, **options))
    for step in [0, 1, 2, 5, 11]:
        again = take(12 - step, batches.iterate(dataset, **options, start_step=step))
        equal(again, unbroken[step:])


def test_the_start_is_as_near_at_any_step(dataset, monkeypatch):
    """No record is read but those of the batches asked for and of the few read ahead."""
    reads = []
    original = batches.Dataset.read

    def counted(self, record, *arguments):
        reads.append(record)
        original(self, record, *arguments)

    monkeypatch.setattr(batches.Dataset, "read", counted)
    stream = batches.iterate(
        dataset, seed=5, batch_size=8, samples=500, start_step=10**9, threads=2
    )
    take(1, stream)
    assert 8 <= len(reads) <= 8 * (2 + batches.AHEAD + batches.READING)


def test_an_epoch_holds_every_record_once_and_no_two_are_alike(dataset):
    options = {"batch_size": RECORDS, "samples": SAMPLES}
    epochs = take(3, batches.iterate(dataset, seed=1, **options))
    epochs += take(1, batches.iterate(dataset, seed=2, **options))
    for epoch in epochs:
        assert sorted(epoch["record"]) == list(range(RECORDS))
    for first, second in itertools.combinations(epochs, 2):
        assert (first["record"] != second["record"]).any()
    crops = [epoch["audio"][epoch["record"] == 0][0].tobytes() for epoch in epochs]
    assert len(set(crops)) == len(crops)


def test_one_pass_reads_every_record_once_in_order(dataset):
    options = {"batch_size": 8, "samples": SAMPLES}
    passed = take(10, batches.sequential(dataset, **options))
    assert np.concatenate([b["record"] for b in passed]).tolist() == [*range(RECORDS), -1]
    expected = np.zeros(SAMPLES, np.int16)
    for record, audio in enumerate(np.concatenate([b["audio"] for b in passed])):
        expected[:] = 0
        if record < RECORDS:
            dataset.read(record, 0, expected)
        np.testing.assert_array_equal(audio, expected)
    parts = [take(10, batches.sequential(dataset, rows=rows, **options)) for rows in ([0, 1], [7])]
    for batch, first, second in zip(passed, *parts, strict=True):
        np.testing.assert_array_equal(first["audio"], batch["audio"][:2])
        np.testing.assert_array_equal(second["record"], batch["record"][7:])


def test_a_crop_longer_than_most_records_is_refused_before_reading(dataset):
    longest = int(np.median(dataset.samples))
    batches.check_crop(dataset, longest)
    with pytest.raises(ValueError) as caught:
        batches.iterate(dataset, seed=1, batch_size=4, samples=longest + 1)
    message = str(caught.value)
    assert f"a crop of {longest + 1} samples" in message and "\n" not in message
    assert f"median {longest}, {longest / 16_000:g} s" in message
    frames = int(message.partition("lower data.crop_frames to ")[2].split()[0])
    assert 320 * frames + 80 <= longest < 320 * (frames + 1) + 80


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"samples": 0}, "samples 0"),
        ({"rows": [0, 4]}, "rows"),
        ({"rows": []}, "rows"),
        ({"on_damage": "ignore"}, 'on_damage is \'ignore\': use "stop" or "skip"'),
    ],
)
def test_arguments_out_of_range(dataset, changed, message):
    options = {"seed": 1, "batch_size": 4, "samples": 500, **changed}
    with pytest.raises(ValueError, match=message):
        batches.iterate(dataset, **options)


def flip(shard: Path, byte: int) -> None:
    content = bytearray(shard.read_bytes())
    content[byte] ^= 1
    shard.write_bytes(content)


def harm(dataset: batches.Dataset, record: int) -> str:
    """Changes a bit in the first block of a record; its shard's name."""
    shard = dataset.layout.shards[
        np.searchsorted(np.cumsum(dataset.layout.lengths), record, "right")
    ]
    flip(Path(shard), int(dataset.index.offset[record]) + 100)
    return Path(shard).name


def test_damage_stops_the_run_at_its_batch_and_is_named(data_dir, tmp_path):
    copied(data_dir, tmp_path)
    dataset = batches.open_dataset("clips", tmp_path, "train")
    options = {"batch_size": 4, "samples": 300}
    good = take(6, batches.sequential(dataset, **options))
    name = harm(dataset, 10)
    harm(dataset, 22)
    stream = batches.sequential(dataset, **options, threads=3)
    equal([next(stream), next(stream)], good[:2])
    with pytest.raises(batches.Damaged) as caught:
        next(stream)
    message = str(caught.value)
    assert f"{name}, record 3 (byte {dataset.index.offset[10]}): its checksum" in message
    assert "\n" not in message
    assert next(stream, None) is None  # closed, not stuck


def test_damage_skipped_is_replaced_alike_on_all_hosts_and_counted(data_dir, tmp_path, caplog):
    copied(data_dir, tmp_path)
    dataset = batches.open_dataset("clips", tmp_path, "train")
    options = {"seed": 3, "batch_size": 8, "samples": SAMPLES}
    good = take(12, batches.iterate(dataset, **options))
    with pytest.raises(batches.Damaged, match="checksum"):
        harm(dataset, 2)  # shorter than a crop, so that each of its crops is hurt
        take(12, batches.iterate(dataset, **options))
    stream = batches.iterate(dataset, **options, on_damage="skip")
    skipped = take(12, stream)
    assert list(stream.damaged) == [2] and "checksum" in stream.damaged[2]
    assert caplog.text.count("skipped: ") == 1
    replaced = 0
    for before, after in zip(good, skipped, strict=True):
        same = before["record"] != 2
        replaced += np.sum(~same)
        np.testing.assert_array_equal(after["audio"][same], before["audio"][same])
        assert (after["record"] != 2).all() and (after["record"] >= 0).all()
        for record, audio in zip(after["record"][~same], after["audio"][~same], strict=True):
            whole = np.empty(max(dataset.samples[record], SAMPLES), np.int16)
            dataset.read(record, 0, whole)
            assert audio.tobytes() in whole.tobytes()
    assert replaced >= 4
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7]):
        part = take(12, batches.iterate(dataset, **options, rows=rows, on_damage="skip"))
        equal(part, [{key: value[rows] for key, value in b.items()} for b in skipped])
    again = batches.iterate(dataset, **options, start_step=7, on_damage="skip")
    equal(take(5, again), skipped[7:])


def test_damage_skipped_in_one_pass_leaves_an_empty_row(data_dir, tmp_path):
    copied(data_dir, tmp_path)
    dataset = batches.open_dataset("clips", tmp_path, "train")
    harm(dataset, 12)
    stream = batches.sequential(dataset, batch_size=RECORDS, samples=300, on_damage="skip")
    (batch,) = take(2, stream)
    assert batch["record"].tolist() == [*range(12), -1, *range(13, RECORDS)]
    assert not batch["audio"][12].any() and batch["audio"][13].any()
    assert list(stream.damaged) == [12]


def test_damage_known_when_opening_stops_before_anything_is_read(data_dir, tmp_path):
    folder = copied(data_dir, tmp_path)
    shard = max(folder.glob("*tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    dataset = batches.open_dataset("clips", tmp_path, "train")
    options = {"seed": 3, "batch_size": 8, "samples": SAMPLES}
    with pytest.raises(batches.Damaged, match=f"{shard.name}, record 3 .*one of 1 records missing"):
        batches.iterate(dataset, **options)
    stream = batches.iterate(dataset, **options, on_damage="skip")
    found = np.concatenate([batch["record"] for batch in take(6, stream)])
    assert set(found) == set(range(RECORDS - 1)) and set(stream.damaged) == {RECORDS - 1}


def test_too_much_damage_ends_a_run_that_skips(data_dir, tmp_path):
    copied(data_dir, tmp_path)
    dataset = batches.open_dataset("clips", tmp_path, "train")
    for record in range(RECORDS):
        if record != 5:
            harm(dataset, record)
    options = {"batch_size": RECORDS, "samples": 300, "on_damage": "skip", "threads": 2}
    # threads may find more while one counts
    message = r"(1[1-9]|2\d) records are damaged, more than 1% of 23: build"
    with pytest.raises(batches.Damaged, match=message):
        take(1, batches.sequential(dataset, **options))


def test_a_row_is_given_up_when_all_drawn_for_it_are_damaged(tmp_path):
    record_files.write(tmp_path / "clips/1.0.0", {"train": [[np.ones(500, np.int16)] * 2]})
    dataset = batches.open_dataset("clips", tmp_path, "train")
    harm(dataset, 0)
    harm(dataset, 1)
    with pytest.raises(batches.Damaged, match="16 records in a row are damaged"):
        take(1, batches.iterate(dataset, seed=1, batch_size=1, samples=9, on_damage="skip"))


def test_no_more_is_read_ahead_than_waits(dataset, monkeypatch):
    """Memory does not grow while nobody takes batches."""
    reads, idle = [], threading.Event()
    original = batches.Dataset.read

    def counted(self, record, *arguments):
        reads.append(record)
        original(self, record, *arguments)

    monkeypatch.setattr(batches.Dataset, "read", counted)
    stream = batches.iterate(dataset, seed=5, batch_size=4, samples=500, threads=2)
    next(stream)
    while True:  # until the threads come to rest
        before = len(reads)
        idle.wait(0.2)
        if len(reads) == before:
            break
    assert len(reads) <= 4 * (2 + batches.AHEAD + batches.READING)
    stream.close()


def test_closing_frees_the_reader_and_ends_the_iteration(dataset, monkeypatch):
    readers, make = [], batches._Reader

    def watched(*arguments: object) -> batches._Reader:
        reader = make(*arguments)
        readers.append(weakref.ref(reader))
        return reader

    monkeypatch.setattr(batches, "_Reader", watched)
    stream = batches.iterate(dataset, seed=5, batch_size=4, samples=500)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    del stream
    dropped = batches.iterate(dataset, seed=5, batch_size=4, samples=500)
    next(dropped)
    assert len(readers) == 2 and readers[1]()
    del dropped
    gc.collect()
    assert not any(reader() for reader in readers)
