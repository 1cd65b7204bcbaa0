"""How many bytes and reads a crop takes on average where its data are stored.

This is for plans; `records` and `lookahead` decide what is really read. Imports no TensorFlow.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines import block_order

BLOCK = 1 << 16  # bytes of audio per checksum; only whole blocks are read
ORDERS = ("shuffled", "blocks")


class Reads(NamedTuple):
    """What a crop reads on average."""

    bytes: float
    reads: float


def of_crop(order: str, samples: int, record: int) -> Reads:
    """Return what a crop of `samples` samples reads from records of `record` int16 samples.

    In the order "blocks" it is a crop's share of a block of records, which is read at once and used
    for several crops of each record. A block that lies in two shards takes two reads and is counted
    as one.
    """
    if order == "blocks":
        visits = block_order.visits(record, samples)
        return Reads(2 * record / visits, 1 / (visits * block_order.RECORDS))
    starts = np.arange(max(record - samples, 0) + 1)
    begin = 2 * starts // BLOCK * BLOCK
    end = np.minimum(-(-2 * (starts + samples) // BLOCK) * BLOCK, 2 * record)
    return Reads(float((end - begin).mean()), 1.0)
