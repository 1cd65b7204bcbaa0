"""What crops read in the mean, against what is read of a data set on a disk."""

import numpy as np
import pytest

from data_pipelines import batches, block_order, ranges, reads
from tests.support import record_files

RECORD, SHARDS = 100_000, 6  # samples; 200 kB are three checksums' blocks and a part


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("reads")
    rng = np.random.default_rng(0)
    shards = [[record_files.noise(rng, RECORD)] * 2 * block_order.RECORDS for _ in range(SHARDS)]
    record_files.write(root / "clips/16khz/1.0.0", {"train": shards})
    return root


def counted(data_dir, monkeypatch, order: str, samples: int) -> reads.Reads:
    """What is read for a crop in some epochs."""
    dataset = batches.open_dataset("clips", data_dir, "train")
    sizes = []
    pread = ranges.Ranges._pread

    def count(self, path: str, begin: int, size: int) -> bytes:
        sizes.append(size)
        return pread(self, path, begin, size)

    monkeypatch.setattr(ranges.Ranges, "_pread", count)
    stream = batches.iterate(dataset, seed=1, batch_size=1, samples=samples, order=order, threads=1)
    window = block_order.visits(RECORD, samples) * block_order.BLOCKS * block_order.RECORDS
    for _ in range(2 * window):  # until the windows ahead are in memory
        next(stream)
    sizes.clear()
    steps = 2 * SHARDS * window  # each block twice
    for _ in range(steps):
        next(stream)
    stream.close()
    return reads.Reads(sum(sizes) / steps, len(sizes) / steps)


@pytest.mark.parametrize("samples", [20_080, 65_000, RECORD])
@pytest.mark.parametrize("order", reads.ORDERS)
def test_the_mean_is_what_is_read(data_dir, monkeypatch, order, samples):
    found = counted(data_dir, monkeypatch, order, samples)
    expected = reads.of_crop(order, samples, RECORD)
    assert found.bytes == pytest.approx(expected.bytes, rel=0.08)
    assert found.reads == pytest.approx(expected.reads, rel=0.08)


def test_a_crop_that_is_longer_than_a_record_reads_all_of_it():
    assert reads.of_crop("shuffled", 300, 200) == (400, 1)
    assert reads.of_crop("blocks", 300, 200) == (400, 1 / 20)
