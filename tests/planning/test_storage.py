"""What a data set has to give beside a step."""

import pytest

from configs import music2vec, musichubert
from musicssl.planning import storage

MEASURED = {  # MB an update, by `python -m tests.benchmarks.bucket` and counted in a bucket's log
    (music2vec, "crop5s"): 171,
    (music2vec, "vanilla"): 108,
    (musichubert, "k500"): 31,
}


@pytest.mark.parametrize(("family", "variant"), MEASURED)
def test_a_step_reads_what_was_counted(family, variant):
    config = family.get_config(variant)
    found = storage.readings(config)
    assert found["shuffled"]["bytes"] / 1e6 == pytest.approx(MEASURED[family, variant], abs=0.5)
    assert found["shuffled"]["reads"] == config.batch_size
    assert found["blocks"]["reads"] < config.batch_size / 19


def test_storage_is_limited_by_bytes_or_by_reads():
    disk = storage.Storage("a disk", 1e6, 100)
    assert storage.seconds(disk, {"bytes": 3e6, "reads": 10}) == 3
    assert storage.seconds(disk, {"bytes": 3e6, "reads": 1000}) == 10
    assert storage.seconds(disk._replace(bytes=None), {"bytes": 3e9, "reads": 50}) == 0.5
