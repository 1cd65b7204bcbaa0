"""What a crop reads of where its data lie, in the mean: bytes, and reads of them.

For plans; what is really read is for `records` and `lookahead` to say. Imports no TensorFlow.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines import block_order

BLOCK = 1 << 16  # bytes of audio to a checksum: what is read are whole ones
ORDERS = ("shuffled", "blocks")


class Reads(NamedTuple):
    """What a crop reads, in the mean."""

    bytes: float
    reads: float


def of_crop(order: str, samples: int, record: int) -> Reads:
    """Return what a crop of so many samples reads of records of `record` int16 samples.

    In "blocks" it is a crop's part of a block of records, which is read at once and used for
    several crops of each; a block that lies in two shards takes two reads and is counted as one.
    """
    if order == "blocks":
        visits = block_order.visits(record, samples)
        return Reads(2 * record / visits, 1 / (visits * block_order.RECORDS))
    starts = np.arange(max(record - samples, 0) + 1)
    begin = 2 * starts // BLOCK * BLOCK
    end = np.minimum(-(-2 * (starts + samples) // BLOCK) * BLOCK, 2 * record)
    return Reads(float((end - begin).mean()), 1.0)
