"""A copy of a data set on the machine: whole, gone on with, shared, and never of something else."""

import errno
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import batches, mirror, ranges, record_index, records, retries
from tests.support import record_files
from tests.support.bucket import ROOT, Bucket, Fault

LENGTHS = [4, 3, 5, 2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Fourteen records in four shards."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    shards = [[record_files.noise(rng, 70_000) for _ in range(n)] for n in LENGTHS]
    record_files.write(root / "clips" / "16khz" / "1.0.0", {"train": shards, "test": shards[:1]})
    batches.open_dataset("clips", root, "train")  # which indexes it
    return root


@pytest.fixture(scope="module")
def there(data_dir: Path, bucket: Bucket) -> str:
    bucket.copy(data_dir, "mirrored")
    return f"{ROOT}/mirrored"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("clips-train.tfrecord-*"))}


def test_the_copy_is_read_like_the_data_set(data_dir, there, bucket, tmp_path, monkeypatch):
    dataset = batches.mirror("clips", there, "train", str(tmp_path))
    assert dataset.directory == f"{tmp_path}/clips/16khz/1.0.0" and dataset.sample_rate == 16_000
    assert shards(tmp_path) == shards(data_dir)
    options = {"seed": 1, "batch_size": 7, "samples": 33_000}
    for source in (data_dir, there):
        other = batches.iterate(batches.open_dataset("clips", source, "train"), **options)
        mine = batches.iterate(dataset, **options)
        for _ in range(5):
            np.testing.assert_array_equal(next(mine)["audio"], next(other)["audio"])
        mine.close()
        other.close()
    monkeypatch.delattr(record_index, "_scan")  # its index was copied
    with bucket.suffering():
        batches.mirror("clips", there, "train", str(tmp_path))
        assert bucket.counts["bytes_read"] < 20_000  # what describes it
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name or "claim" in path.name]


def test_a_disk_may_be_mirrored_too(data_dir, tmp_path):
    batches.mirror("clips", str(data_dir), "train", str(tmp_path))
    assert shards(tmp_path) == shards(data_dir)


def test_passing_errors_are_waited_for(there, data_dir, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(mirror, "_PART", 1 << 15)
    faults = [Fault("503", "tfrecord", every=9), Fault("reset", "tfrecord", every=7)]
    with bucket.suffering(*faults, Fault("cut", "tfrecord", skip=3, times=3)):
        batches.mirror("clips", there, "train", str(tmp_path))
        assert bucket.counts["faults_503"] > 3 and bucket.counts["faults_reset"] > 3
    assert shards(tmp_path) == shards(data_dir)


def test_a_copy_that_was_interrupted_is_gone_on_with(
    there, data_dir, bucket, tmp_path, monkeypatch
):
    whole, read, copied = sum(map(len, shards(data_dir).values())), ranges.Ranges.read, []

    def ended(self, path: str, begin: int, size: int) -> bytes:
        if sum(copied) > 0.6 * whole:
            raise KeyboardInterrupt
        copied.append(size)
        return read(self, path, begin, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mirror, "_PART", 1 << 15)
        patch.setattr(mirror, "_COPIERS", 2)
        patch.setattr(ranges.Ranges, "read", ended)
        batches.mirror("clips", there, "train", str(tmp_path))
    left = sum(path.stat().st_size for path in tmp_path.rglob("*tfrecord*"))
    assert 0.5 * whole < left < whole and 1 <= len(shards(tmp_path)) < 4
    victim = next(tmp_path.rglob("clips-train.tfrecord-00000*"))
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1  # a block that never reached the disk
    victim.write_bytes(content)
    with bucket.suffering():
        batches.mirror("clips", there, "train", str(tmp_path))
        again = bucket.counts["bytes_read"]
    assert shards(tmp_path) == shards(data_dir)
    assert whole - left < again < whole - left + len(content) + 30_000


def test_processes_of_a_machine_copy_once(there, data_dir, bucket, tmp_path):
    whole, opened = sum(map(len, shards(data_dir).values())), []

    def work() -> None:
        opened.append(batches.mirror("clips", there, "train", str(tmp_path)).directory)

    with bucket.suffering(latency=0.02):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bucket.counts["bytes_read"] < whole + 60_000
    assert len(opened) == 3 and shards(tmp_path) == shards(data_dir)


def test_a_data_set_that_was_built_anew_is_copied_anew(data_dir, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(data_dir, source)
    batches.mirror("clips", str(source), "train", str(target))
    rng = np.random.default_rng(1)
    new = [[record_files.noise(rng, 70_000) for _ in range(n)] for n in LENGTHS]
    shutil.rmtree(source / "clips/16khz/1.0.0")
    record_files.write(source / "clips/16khz/1.0.0", {"train": new})
    dataset = batches.mirror("clips", str(source), "train", str(target))
    audio = np.empty(70_000, np.int16)
    dataset.read(9, 0, audio)
    np.testing.assert_array_equal(audio, new[2][2])


def test_damage_at_the_source_is_damage_here(data_dir, tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(data_dir, source)
    dataset = batches.open_dataset("clips", source, "train")
    path = Path(dataset.shard(5))
    content = bytearray(path.read_bytes())
    content[int(dataset.index.offset[5]) + 10] ^= 1
    path.write_bytes(content)
    copied = batches.mirror("clips", str(source), "train", str(target))
    with pytest.raises(records.Damaged, match=r"target.*record 1 .*its checksum does not match"):
        copied.read(5, 0, np.empty(10, np.int16))
    copied.read(4, 0, np.empty(10, np.int16))
    assert shards(target) == shards(source)


def test_another_data_set_of_that_name_is_refused(data_dir, tmp_path):
    batches.mirror("clips", str(data_dir), "train", str(tmp_path / "target"))
    shutil.copytree(data_dir, tmp_path / "other")
    note = tmp_path / "target/clips/16khz/1.0.0/mirror-train.json"
    assert json.loads(note.read_text())["source"] == f"{data_dir}/clips/16khz/1.0.0"
    with pytest.raises(ValueError, match=r"holds the copy of .*: use another data.mirror for"):
        batches.mirror("clips", str(tmp_path / "other"), "train", str(tmp_path / "target"))


def test_a_disk_that_is_too_small_is_told_first(data_dir, tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(10, 10, 1000)
    monkeypatch.setattr(mirror.shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match=r"has 0.00 GB free and the copy of .* needs 0.00 GB more"):
        batches.mirror("clips", str(data_dir), "train", str(tmp_path))
    assert not shards(tmp_path)


def test_a_folder_that_cannot_hold_a_copy_is_named(data_dir, tmp_path):
    (tmp_path / "file").touch()
    wanted = r"data.mirror: .*/file/.* cannot be written to [(]Not a directory[)]: .* name another"
    with pytest.raises(ValueError, match=wanted):
        batches.mirror("clips", data_dir, "train", f"{tmp_path}/file")


def test_the_data_set_itself_is_no_copy(data_dir, tmp_path, monkeypatch):
    """Its damaged shards would be removed, to be copied from themselves."""
    (tmp_path / "link").symlink_to(data_dir)
    monkeypatch.chdir(data_dir)
    before = shards(data_dir)
    for target in (f"{data_dir}", f"{tmp_path}/link", "."):
        for given in (data_dir, f"{data_dir}/../{data_dir.name}", "."):
            with pytest.raises(ValueError, match="is the data set itself: name another folder"):
                batches.mirror("clips", str(given), "train", target)
    assert shards(data_dir) == before and not [*data_dir.rglob("mirror-*")]


def test_a_disk_that_becomes_full_is_named_with_the_remedy(data_dir, tmp_path, monkeypatch):
    def full(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mirror._Copy, "_fetch", full)
    with pytest.raises(OSError, match=f"^{tmp_path}/.* is full: free some space, choose another"):
        batches.mirror("clips", str(data_dir), "train", str(tmp_path))


def test_what_is_damaged_in_a_copy_can_be_copied_again(data_dir, tmp_path):
    options = {"seed": 1, "batch_size": 14, "samples": 70_000}
    dataset = batches.mirror("clips", str(data_dir), "train", str(tmp_path))
    victim = next(tmp_path.rglob("clips-train.tfrecord-00001*"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(record_index.Damaged, match="this is a copy: remove the file, and it will"):
        next(batches.iterate(dataset, **options))
    victim.unlink()
    next(batches.iterate(batches.mirror("clips", str(data_dir), "train", str(tmp_path)), **options))
    assert shards(tmp_path) == shards(data_dir)
