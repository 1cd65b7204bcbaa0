"""Reads the blocks of records that a host is about to need, before it needs them."""

import threading
from collections.abc import Callable

import numpy as np

from data_pipelines import retries
from data_pipelines.block_order import Blocks
from data_pipelines.records import Dataset


class Lookahead:
    """Blocks in memory: those of the lanes' windows and of the windows that follow."""

    def __init__(self, dataset: Dataset, plan: Blocks, rows: np.ndarray, closed: threading.Event):
        self.dataset, self.plan, self.rows, self.closed = dataset, plan, rows, closed
        self.held: dict[int, _Block] = {}
        self.step = -1
        self.lock = threading.Lock()

    def reach(self, step: int, behind: int) -> None:
        """Begin to read what a step and the next ones need, and drop the rest.

        Args:
          behind: how many steps before this one may still be unfinished.
        """
        with self.lock:
            if step <= self.step:
                return
            self.step = step
            needed = self.plan.needed(self.rows, max(step - behind, 0), step)
            self.held = {x: self.held[x] if x in self.held else self._begin(x) for x in needed}

    def bytes(self, record: int, begin: int, size: int) -> memoryview | None:
        """Return bytes of a record's audio; None if its block is not here or is incomplete."""
        block = self.held.get(self.plan.block_of(record))
        offset = int(self.dataset.index.offset[record])
        return block.bytes(self.dataset.shard(record), offset + begin, size) if block else None

    def _begin(self, block: int) -> "_Block":
        spans: dict[str, tuple[int, int]] = {}
        for record in self.plan.records_of(block):
            samples = int(self.dataset.samples[record])
            if samples:  # records known to be damaged are not read
                shard, offset = self.dataset.shard(record), int(self.dataset.index.offset[record])
                begin, _ = spans.get(shard, (offset, offset))
                spans[shard] = begin, offset + 2 * samples
        parts = {shard: _Part(self.dataset, shard, *span) for shard, span in spans.items()}
        return _Block(parts, self.closed)


class _Part:
    """A run of bytes of a shard that is being read."""

    def __init__(self, dataset: Dataset, shard: str, begin: int, end: int):
        self.begin, self.end = begin, end
        self.start = lambda: dataset.ranges.begin(shard, begin, end - begin)
        self.wait: Callable[[], bytes] | None = self.start()
        self.content: bytes | None = None
        self.lock = threading.Lock()

    def whole(self, shard: str, closed: threading.Event) -> bytes:
        """Wait for the bytes; after an error that may pass, begin to read again."""

        def read() -> bytes:
            wait, self.wait = self.wait or self.start(), None
            return wait()

        with self.lock:
            if self.content is None:
                where = f"{shard}, byte {self.begin}"
                self.content = retries.patiently(read, lambda: where, closed)
            return self.content


class _Block:
    """A run of records, in one shard or several."""

    def __init__(self, parts: dict[str, _Part], closed: threading.Event):
        self.parts, self.closed = parts, closed

    def bytes(self, shard: str, begin: int, size: int) -> memoryview | None:
        part = self.parts.get(shard)
        if part is None:
            return None
        content = part.whole(shard, self.closed)
        if len(content) < part.end - part.begin:  # the shard is cut off somewhere: reading a record
            return None  # alone tells whether that one is affected
        return memoryview(content)[begin - part.begin :][:size]
