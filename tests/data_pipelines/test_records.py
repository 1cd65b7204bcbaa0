import errno
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import ranges, record_index, records, retries
from tests.support import record_files
from tests.support.bucket import ROOT, Fault

SHARDS = [4, 1, 3]
LENGTHS = [1, 32_768, 32_769, 90_000, 70_001, 65_536, 40_000, 100_000]  # blocks hold 32,768


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [record_files.noise(rng, samples) for samples in LENGTHS]


@pytest.fixture
def built(tmp_path) -> Path:
    """DATA_DIR/clips/16khz/1.0.0."""
    found = iter(clips())
    shards = [[next(found) for _ in range(count)] for count in SHARDS]
    splits = {"train": shards, "validation": [[clips()[0]]]}
    return record_files.write(tmp_path / "clips" / "16khz" / "1.0.0", splits)


def opened(built: Path) -> records.Dataset:
    return records.open_dataset("clips", built.parents[2], "train")


def read(dataset: records.Dataset, record: int, start: int, samples: int) -> np.ndarray:
    out = np.empty(samples, np.int16)
    dataset.read(record, start, out)
    return out


def shard(built: Path, number: int) -> Path:
    return next(built.glob(f"clips-train.tfrecord-{number:05d}-of-*"))


def flip(path: Path, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 0x10]))


def boundaries(path: Path) -> list[int]:
    """The bytes at which the records of an undamaged shard begin, and its end."""
    content, found = path.read_bytes(), [0]
    while found[-1] < len(content):
        found.append(found[-1] + 16 + struct.unpack_from("<Q", content, found[-1])[0])
    return found


def test_whole_records_are_what_tfds_decodes(built):
    dataset = opened(built)
    config = tfds.ReadConfig(interleave_cycle_length=1)
    decoded = tfds.builder_from_directory(built).as_dataset(split="train", read_config=config)
    decoded = [example["audio"] for example in tfds.as_numpy(decoded)]
    assert dataset.samples.tolist() == LENGTHS == [len(clip) for clip in decoded]
    for record, clip in enumerate(decoded):
        np.testing.assert_array_equal(read(dataset, record, 0, len(clip)), clip)


def test_any_part_of_any_record(built):
    dataset, rng = opened(built), np.random.default_rng(1)
    for record, clip in enumerate(clips()):
        edges = [0, 1, 32_767, 32_768, 32_769, 65_536, len(clip) - 1]
        for start in [edge for edge in edges if edge < len(clip)]:
            for samples in {1, len(clip) - start, int(rng.integers(1, len(clip) - start + 1))}:
                found = read(dataset, record, start, samples)
                np.testing.assert_array_equal(found, clip[start : start + samples])


def test_short_records_are_repeated_from_where_they_were_entered(built):
    dataset, clip = opened(built), clips()[6]
    np.testing.assert_array_equal(read(dataset, 6, 0, 100_001), np.tile(clip, 3)[:100_001])
    np.testing.assert_array_equal(read(dataset, 0, 0, 5), np.tile(clips()[0], 5))


def test_threads_may_share_a_data_set_that_keeps_few_files_open(built, monkeypatch):
    monkeypatch.setattr(ranges, "OPEN_FILES", 1)
    dataset, expected = opened(built), clips()

    def right(record: int) -> bool:
        return np.array_equal(read(dataset, record, 0, LENGTHS[record]), expected[record])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, np.random.default_rng(3).integers(0, 8, 2000)))


def test_a_data_set_in_a_bucket_is_indexed_and_read_there(built, bucket):
    bucket.copy(built, "records/clips/16khz/1.0.0")
    root = f"{ROOT}/records"
    dataset = records.open_dataset("clips", root, "train")
    assert "records/clips/16khz/1.0.0/clips-train.index.npz" in bucket.files()
    for record, clip in enumerate(clips()):
        np.testing.assert_array_equal(read(dataset, record, 0, len(clip)), clip)
    with bucket.suffering():
        np.testing.assert_array_equal(read(dataset, 3, 0, 30_000), clips()[3][:30_000])
        assert bucket.counts["bytes_read"] == 2 * 32_768  # its block, and nothing ahead
    again = records.open_dataset("clips", root, "train")
    assert again.samples.tolist() == LENGTHS
    name = again.layout.shards[0].removeprefix(f"{ROOT}/")
    bucket.put(name, bucket.files()[name][: int(dataset.index.offset[3]) + 70_000])
    np.testing.assert_array_equal(read(dataset, 3, 0, 32_768), clips()[3][:32_768])
    with pytest.raises(records.Damaged, match=r"00000-of-00003, record 3 .*: the shard is cut off"):
        read(dataset, 3, 0, 40_000)


def test_errors_that_pass_are_no_damage(built, bucket, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 0.01)
    bucket.copy(built, "passing/clips/16khz/1.0.0")
    dataset = records.open_dataset("clips", f"{ROOT}/passing", "train")
    with bucket.suffering(Fault("503", "GET .*tfrecord", every=2), Fault("reset", "", every=3)):
        for record, clip in enumerate(clips()):
            np.testing.assert_array_equal(read(dataset, record, 0, len(clip)), clip)
        assert bucket.counts["faults_503"] >= 8 and bucket.counts["faults_reset"] >= 2
    reads, pread = [], os.pread

    def fails_twice(*arguments) -> bytes:
        reads.append(arguments)
        if len(reads) < 3:
            raise OSError(errno.ESTALE if len(reads) == 1 else errno.EIO, "away")
        return pread(*arguments)

    local = opened(built)
    monkeypatch.setattr(os, "pread", fails_twice)
    np.testing.assert_array_equal(read(local, 2, 5, 100), clips()[2][5:105])
    assert len(reads) == 3


def test_silence_and_features_named_like_it(tmp_path):
    """The place of the audio is read from the message, not searched for."""
    features = dict(reversed(record_files.FEATURES.items()))
    silence = [np.zeros(70_000, np.int16), np.ones(3, np.int16)]
    directory = tmp_path / "clips" / "1.0.0"
    record_files.write(directory, {"audio": [silence]}, features)
    dataset = records.open_dataset("clips", tmp_path, "audio")
    assert dataset.samples.tolist() == [70_000, 3]
    np.testing.assert_array_equal(read(dataset, 0, 0, 70_000), silence[0])
    np.testing.assert_array_equal(read(dataset, 1, 0, 3), silence[1])


def test_the_index_is_kept_and_used(built, monkeypatch):
    record_index.write_index(built)
    assert {path.name for path in built.glob("*.npz")} == {
        "clips-train.index.npz",
        "clips-validation.index.npz",
    }
    monkeypatch.delattr(record_index, "_scan")  # nothing is left to be read
    np.testing.assert_array_equal(read(opened(built), 7, 0, 100_000), clips()[7])
    assert not list(built.glob(".*"))


@pytest.mark.parametrize("harm", ["longer", "garbage", "empty", "other records"])
def test_an_index_that_does_not_fit_is_made_again(built, harm):
    opened(built)
    index = built / "clips-train.index.npz"
    expected = clips()
    if harm == "longer":
        expected[4] = record_files.noise(np.random.default_rng(2), 70_002)
        other = record_files.write(built.parent / "2.0.0", {"train": [[], [expected[4]], []]})
        shutil.copy(shard(other, 1), shard(built, 1))
        shutil.rmtree(other)
    elif harm == "other records":
        with np.load(index) as saved:
            arrays = dict(saved)
        np.savez(index, **{**arrays, "lengths": [3, 1, 4]})
    else:
        index.write_bytes(b"garbage" if harm == "garbage" else b"")
    dataset = opened(built)
    for record, clip in enumerate(expected):
        np.testing.assert_array_equal(read(dataset, record, 0, len(clip)), clip)
    with np.load(index) as saved:
        assert saved["lengths"].tolist() == SHARDS
        np.testing.assert_array_equal(saved["samples"], dataset.samples)


def test_a_directory_that_cannot_be_written_is_indexed_in_memory(built, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_index.np, "savez", full)
    np.testing.assert_array_equal(read(opened(built), 7, 0, 100_000), clips()[7])
    assert "No space left" in caplog.text
    assert not list(built.glob("*.npz")) and not list(built.glob(".*"))


def test_damage_after_indexing_is_named_and_confined_to_its_block(built):
    dataset = opened(built)
    flip(shard(built, 0), int(dataset.index.offset[3]) + 2 * 50_000)  # block 1 of 0, 1, 2
    for start, samples in [(0, 32_769), (49_999, 2), (65_535, 2), (0, 90_000)]:
        with pytest.raises(records.Damaged) as caught:
            read(dataset, 3, start, samples)
        assert str(caught.value) == (
            f"{shard(built, 0)}, record 3 (byte {dataset.index.offset[3]}): "
            "its checksum does not match"
        )
    for start, samples in [(0, 32_768), (65_536, 24_464)]:
        found = read(dataset, 3, start, samples)
        np.testing.assert_array_equal(found, clips()[3][start : start + samples])


def test_shards_cut_off_or_removed_after_indexing(built, monkeypatch):
    dataset = opened(built)
    with shard(built, 2).open("r+b") as file:
        file.truncate(int(dataset.index.offset[7]) + 70_000)
    np.testing.assert_array_equal(read(dataset, 7, 0, 32_768), clips()[7][:32_768])
    with pytest.raises(records.Damaged, match=r"00002-of-00003, record 2 .*: the shard is cut off"):
        read(dataset, 7, 0, 40_000)
    monkeypatch.setattr(retries, "PATIENCE", 0.0)
    shard(built, 1).unlink()
    with pytest.raises(retries.Unreachable, match=r"00001-of-00003, record 0 .*: no longer there"):
        read(dataset, 4, 0, 10)
    with pytest.raises(records.Damaged, match=r"00001-of-00003, record 0 .*: missing"):
        read(opened(built), 4, 0, 10)


@pytest.mark.parametrize(
    ("byte", "lost"),
    [
        ("payload", [1]),
        ("text", [1]),
        ("checksum", [1]),
        ("length", [1, 2, 3]),  # nothing tells where the next record is
        ("length's checksum", [1]),
    ],
)
def test_damage_before_indexing(built, byte, lost, caplog):
    path = shard(built, 0)
    begin, end = boundaries(path)[1:3]
    place = {
        "payload": (begin + end) // 2,
        "text": begin + 30,
        "checksum": end - 1,
        "length": begin,
        "length's checksum": begin + 9,
    }
    flip(path, place[byte])
    dataset = opened(built)
    assert np.flatnonzero(dataset.samples == 0).tolist() == lost
    assert f"{path}, record 1 (byte {begin}): " in caplog.text
    assert not (built / "clips-train.index.npz").exists()  # so that a mended shard is seen
    with pytest.raises(records.Damaged, match=rf"00000-of-00003, record 1 \(byte {begin}\): miss"):
        read(dataset, 1, 0, 10)
    for record in set(range(8)) - set(lost):
        np.testing.assert_array_equal(read(dataset, record, 0, LENGTHS[record]), clips()[record])
    with pytest.raises(records.Damaged, match="00000-of-00003, record 1 "):
        record_index.write_index(built)
    flip(path, place[byte])
    assert opened(built).samples.all()


@pytest.mark.parametrize("left", [0.9, 0.5, 0.0])
def test_shards_cut_off_before_indexing(built, left):
    path = shard(built, 2)
    ends = boundaries(path)[1:]
    kept = int(left * ends[-1])
    with path.open("r+b") as file:
        file.truncate(kept)
    dataset = opened(built)
    whole = 5 + sum(end <= kept for end in ends)
    assert np.flatnonzero(dataset.samples == 0).tolist() == list(range(whole, 8))
    with pytest.raises(records.Damaged, match="00002-of-00003, record "):
        read(dataset, 7, 0, 10)


def test_a_missing_shard_is_named(built):
    shard(built, 1).unlink()
    dataset = opened(built)
    assert np.flatnonzero(dataset.samples == 0).tolist() == [4]
    with pytest.raises(records.Damaged, match=r"00001-of-00003, record 0 \(byte 0\): missing"):
        read(dataset, 4, 0, 10)


def test_more_records_than_dataset_info_says(built):
    shutil.copy(shard(built, 0), shard(built, 1))
    with pytest.raises(ValueError, match=r"00001-of-00003 holds more than the 1 records"):
        opened(built)


def test_audio_that_is_not_int16_bytes(tmp_path):
    features = {"audio": tfds.features.Tensor(shape=(None,), dtype=np.int64)}
    record_files.write(tmp_path / "clips" / "1.0.0", {"train": [[np.arange(4)]]}, features)
    with pytest.raises(ValueError, match='no feature "audio" of int16 bytes'):
        records.open_dataset("clips", tmp_path, "train")


def test_what_is_not_built_is_named_with_the_command(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "16khz" / "1.0.0.incompleteAB12").mkdir(parents=True)
    (tmp_path / "half" / "16khz" / "1.0.0.incompleteAB12" / "dataset_info.json").touch()
    for name in ["absent", "empty", "half", "absent/24khz"]:
        assert not records.is_built(name, tmp_path)
        with pytest.raises(FileNotFoundError) as caught:
            records.open_dataset(name, tmp_path, "train")
        assert str(caught.value) == (
            f"{tmp_path}/{name} holds no built data set: run "
            f"python -m data_pipelines.build {name} --data_dir={tmp_path} [--manual_dir=FOLDER]"
        )


def test_a_split_that_is_not_there(built):
    with pytest.raises(ValueError, match=r"no records in split 'test'; it has some in \['train"):
        records.open_dataset("clips", built.parents[2], "test")


def test_configs_and_versions(tmp_path):
    for path in ["16khz/1.9.0", "16khz/1.10.0", "24khz/1.0.0"]:
        folder = tmp_path / "clips" / path
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    root = tmp_path / "clips"
    with pytest.raises(
        ValueError, match=r"holds \['16khz', '24khz'\]: name one of them, as clips/"
    ):
        records.find("clips", tmp_path)
    assert str(records.find("clips/16khz", tmp_path)) == str(root / "16khz" / "1.10.0")
    (root / ".config").mkdir()
    (root / ".config" / "metadata.json").write_text('{"default_config_name": "24khz"}')
    assert str(records.find("clips", tmp_path)) == str(root / "24khz" / "1.0.0")
    shutil.rmtree(root / "24khz")  # the default is not built, and one other is
    assert records.find("clips", tmp_path) is None
    with pytest.raises(FileNotFoundError, match="give the name clips/16khz, or run"):
        records.require("clips", tmp_path)


@pytest.mark.parametrize(("config", "rate"), [("24khz", 24_000), ("moodtheme_16khz", 16_000)])
def test_sample_rate_is_the_configs(tmp_path, config, rate):
    record_files.write(tmp_path / "clips" / config / "1.0.0", {"train": [[clips()[0]]]})
    assert records.open_dataset("clips", tmp_path, "train").sample_rate == rate
