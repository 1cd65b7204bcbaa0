"""How much a step reads from the data set in each order, and the known limits of storage."""

from typing import NamedTuple

import ml_collections

from musicssl import audio, host
from musicssl.planning.schema import Reading

RECORD_SECONDS = 30  # length of the records that data_pipelines/ builds


class Storage(NamedTuple):
    """The most bytes and reads per second that storage gives; None if that is not the limit."""

    name: str
    bytes: float | None
    reads: float | None


KNOWN = (
    # cloud.google.com/filestore/docs/performance: below 10 TiB
    Storage("Filestore BASIC_HDD", 100 * 2**20, 600),
    # cloud.google.com/storage/docs/request-rate: the initial limit, which grows under a steady load
    Storage("a bucket", None, 5000),
)


def readings(config: ml_collections.ConfigDict) -> dict[str, Reading]:
    """Return how much a step of the global batch reads, by data.order."""
    samples = audio.crop_samples(config.data.crop_frames)
    record = RECORD_SECONDS * config.data.sample_rate
    return {
        order: {"bytes": config.batch_size * size, "reads": config.batch_size * reads}
        for order, (size, reads) in host.crop_reads(samples, max(record, samples)).items()
    }


def seconds(storage: Storage, reading: Reading) -> float:
    """Return the least seconds in which storage can give what a step reads."""
    by_bytes = reading["bytes"] / storage.bytes if storage.bytes else 0.0
    by_reads = reading["reads"] / storage.reads if storage.reads else 0.0
    return max(by_bytes, by_reads)
