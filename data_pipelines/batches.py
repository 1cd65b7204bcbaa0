"""Deterministic batches of audio from a built data set.

Row r of step s is place p = s * batch_size + r of the stream that `order` or `block_order` defines.
There is no shuffle buffer and no state: a run can resume at any step immediately, and any number of
hosts can each read their rows of the same global batches. tf.data keeps the batches in order and
limits how far they are read ahead. Threads read the rows straight into the memory of their batch,
which is never copied.
"""

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from data_pipelines.block_order import Blocks
from data_pipelines.lookahead import Lookahead
from data_pipelines.mirror import mirror
from data_pipelines.mixture import Mixed, Mixture, parse
from data_pipelines.order import InOrder, Shuffled, StreamPlan
from data_pipelines.record_index import Damaged, complete_index, write_index
from data_pipelines.records import Dataset, is_built, open_dataset

__all__ = [
    "Batches",
    "Damaged",
    "Dataset",
    "Mixture",
    "check_crop",
    "complete_index",
    "is_built",
    "iterate",
    "mirror",
    "open_dataset",
    "parse",
    "sequential",
    "write_index",
]

ORDERS = ("shuffled", "blocks")
_ENDLESS = 1 << 40  # steps
_FAILED = -2  # in place of a record; -1 is a row without one
_PIECE = 8  # rows that a thread reads in one go
READING = 2  # batches that are read at once, so that no thread waits for the last row of one
AHEAD = 1  # complete batches that wait to be used, besides those being read
THREADS = 8  # the most by default: with more of them, they wait for Python's lock
FAR_THREADS = 64  # for data on gs://, where a thread waits for answers most of the time
_ATTEMPTS = 16  # records tried for one row
_LOST_SHARE, _LOST_FEW = 0.01, 10  # "skip" ends when both this share and this number are damaged


def check_crop(dataset: Dataset | Mixture, samples: int) -> None:
    """Raise ValueError if more than half of a data set's records are shorter than the crop."""
    if isinstance(dataset, Mixture):
        for part in dataset.parts:
            check_crop(part.dataset, samples)
        return
    lengths = dataset.samples[dataset.samples > 0]
    if not len(lengths):
        raise ValueError(f"{dataset.directory} has no readable record in split {dataset.split!r}")
    middle = int(np.median(lengths))
    if middle < samples:
        rate = dataset.sample_rate
        raise ValueError(
            f"a crop of {samples} samples ({samples / rate:g} s) is longer than most records of "
            f"{dataset.directory} (median {middle}, {middle / rate:g} s): lower data.crop_frames "
            f"to {max((middle - 80) // 320, 1)} or build the data set from longer audio"
        )


def iterate(
    dataset: Dataset | Mixture,
    *,
    seed: int,
    batch_size: int,
    samples: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    on_damage: str = "stop",
    order: str = "shuffled",
    threads: int | None = None,
) -> "Batches":
    """Return the global batches' rows from a step on, without end.

    Args:
      batch_size: rows of the global batch.
      samples: of a crop; a record that is shorter is repeated from its start.
      rows: the wanted rows of the global batch; all if None.
      on_damage: "stop" raises Damaged at the first record that cannot be read. "skip" takes
        another record, drawn by a hash, and counts the damaged ones (`Batches.damaged`) until
        more than 1 % of the records, and more than ten, are lost. A record counts as damaged only
        if it is cut short or is not what was indexed; one that cannot be read now is read again.
      order: "shuffled" takes records from anywhere at any time; "blocks" is that of `block_order`.
      threads: how many threads read. None means one per core, up to eight, or 64 for gs://.

    Returns:
      an iterator of {"audio": int16 [rows, samples], "record": int64 [rows]}, read-only arrays.

    Raises:
      ValueError: the crop is too long, or another argument is out of range.
      Damaged: a record is known to be unreadable and on_damage is "stop".
      OSError: the storage cannot be read; see `retries.patiently`.
    """
    check_crop(dataset, samples)
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}: use {' or '.join(ORDERS)}")
    plan: StreamPlan
    if isinstance(dataset, Mixture):
        if order == "blocks":
            raise ValueError("order is 'blocks', which reads one data set: use 'shuffled'")
        plan = Mixed(dataset, seed, samples)
    else:
        plan = Shuffled(dataset.samples, seed, samples)
    if order == "blocks":
        plan = Blocks(dataset.samples, seed, samples, max(batch_size, 1))
    reader = _Reader(dataset, plan, batch_size, samples, rows, on_damage)
    return Batches(reader, range(start_step, _ENDLESS), threads)


def sequential(
    dataset: Dataset,
    *,
    batch_size: int,
    samples: int,
    rows: np.ndarray | None = None,
    on_damage: str = "stop",
    threads: int | None = None,
) -> "Batches":
    """Return every record once, in order: its first `samples` samples. Arguments as in `iterate`.

    The last batch is as large as the others: rows without a record, and those of records that were
    skipped as damaged, are zeros with record -1.
    """
    reader = _Reader(dataset, InOrder(len(dataset)), batch_size, samples, rows, on_damage)
    return Batches(reader, range(-(-len(dataset) // batch_size)), threads)


class _Reader:
    """A reader of the rows of a step."""

    def __init__(
        self,
        dataset: Dataset | Mixture,
        plan: StreamPlan,
        batch_size: int,
        samples: int,
        rows: np.ndarray | None,
        on_damage: str,
    ):
        if batch_size < 1 or samples < 1:
            raise ValueError(f"batch_size {batch_size}, samples {samples}: use 1 or more")
        rows = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
        if not len(rows) or rows.min() < 0 or rows.max() >= batch_size:
            raise ValueError(f"rows {rows} are not rows of a batch of batch_size {batch_size}")
        if on_damage not in ("stop", "skip"):
            raise ValueError(f'on_damage is {on_damage!r}: use "stop" or "skip"')
        lost = np.flatnonzero(dataset.samples == 0)
        if on_damage == "stop" and len(lost):
            raise dataset.damage(lost[0], f"one of {len(lost)} records missing, empty or damaged")
        self.dataset, self.plan, self.batch_size, self.rows = dataset, plan, batch_size, rows
        self.samples, self.skips = samples, on_damage == "skip"
        self.damaged: dict[int, str] = {}
        self.errors: dict[int, Exception] = {}
        self.closed = threading.Event()
        self.lookahead = None
        if isinstance(plan, Blocks) and isinstance(dataset, Dataset):
            self.lookahead = Lookahead(dataset, plan, rows, self.closed)

    def __call__(self, step: int, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
        """Read a step's audio [rows, samples] and records [rows] in the threads of `pool`."""
        audio = _aligned(len(self.rows), self.samples)
        places = step * self.batch_size + self.rows
        try:
            if self.lookahead:
                self.lookahead.reach(step, behind=READING - 1)
            records, starts = self.plan(places)  # [rows], [rows]
            size = 1 if self.dataset.is_far else _PIECE
            pieces = [slice(row, row + size) for row in range(0, len(places), size)]
            running = [
                pool.submit(self._fill, places[p], records[p], starts[p], audio[p]) for p in pieces
            ]
            for piece in running:
                piece.result()
        except Exception as error:  # raised by Batches later: TensorFlow would print pages about it
            self.errors[step] = error
            records = np.full(len(places), _FAILED)
        return audio, records

    def _fill(
        self, places: np.ndarray, records: np.ndarray, starts: np.ndarray, audio: np.ndarray
    ) -> None:
        for row, place in enumerate(places.tolist()):
            if self.closed.is_set():
                return  # nobody needs the rest
            records[row] = self._row(place, int(records[row]), int(starts[row]), audio[row])

    def _row(self, place: int, record: int, start: int, out: np.ndarray) -> int:
        """Fill `out` with the crop of a place, or of its substitute, and return the record."""
        for attempt in range(_ATTEMPTS):
            if record < 0:
                out[:] = 0
                return record
            try:
                held = self.lookahead.bytes if self.lookahead else None
                self.dataset.read(record, start, out, self.closed, held)
                return record
            except Damaged as error:
                self._count(record, error)
            record, start = self.plan.instead(place, attempt)
        raise Damaged(f"{self.dataset.directory}: {_ATTEMPTS} records in a row are damaged")

    def _count(self, record: int, error: Damaged) -> None:
        """Note a damaged record, or raise the error where none may be skipped."""
        if not self.skips:
            raise error
        if record in self.damaged:
            return
        self.damaged[record] = str(error)
        logging.getLogger(__name__).warning("skipped: %s", error)
        if len(self.damaged) > max(_LOST_FEW, _LOST_SHARE * len(self.dataset)):
            raise Damaged(
                f"{self.dataset.directory}: {len(self.damaged)} records are damaged, more than "
                f"{_LOST_SHARE:.0%} of {len(self.dataset)}: build it again; the last one: {error}"
            )


class Batches(Iterator[dict[str, np.ndarray]]):
    """Batches being read ahead by threads, until closed or collected.

    Its errors are those of `iterate`; after an error it is closed.
    """

    def __init__(self, reader: _Reader, steps: range, threads: int | None):
        self._reader = reader
        usual = FAR_THREADS if reader.dataset.is_far else min(os.cpu_count() or 1, THREADS)
        pool = ThreadPoolExecutor(threads or usual, "batches")
        self._running = [_pipeline(reader, steps, pool).as_numpy_iterator()]
        # Also at exit: a thread that calls into a Python that has ended would abort the process.
        self.close = weakref.finalize(self, _close, reader, pool, self._running)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._running:
            raise StopIteration
        batch = next(self._running[0])
        if batch["record"][0] == _FAILED:
            self.close()
            raise self._reader.errors[min(self._reader.errors)]
        if self._reader.closed.is_set():  # by another thread: the batch may be incomplete
            raise StopIteration
        return batch

    @property
    def damaged(self) -> dict[int, str]:
        """The records skipped so far, among those that this process reads, and why."""
        return dict(self._reader.damaged)


def _close(reader: _Reader, pool: ThreadPoolExecutor, running: list) -> None:
    reader.closed.set()
    pool.shutdown(wait=False, cancel_futures=True)
    running.clear()  # the last reference: TensorFlow waits for its threads and frees the batches


def _pipeline(reader: _Reader, steps: range, pool: ThreadPoolExecutor) -> tf.data.Dataset:
    """Return the batches of the steps in order, {"audio": [rows, samples], "record": [rows]}."""
    alive = weakref.ref(reader)  # TensorFlow keeps every function that it was ever given
    working = weakref.ref(pool)

    def call(step: np.int64) -> tuple[np.ndarray, np.ndarray]:
        still_read, still_pool = alive(), working()
        assert still_read is not None and still_pool is not None  # `Batches` holds both
        return still_read(int(step), still_pool)

    def read(step: tf.Tensor) -> dict[str, tf.Tensor]:
        audio, records = tf.numpy_function(call, [step], (tf.int16, tf.int64))
        return {"audio": audio, "record": records}

    batches = tf.data.Dataset.range(steps.start, steps.stop)
    batches = batches.map(read, num_parallel_calls=READING, deterministic=True).prefetch(AHEAD)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = READING
    options.threading.max_intra_op_parallelism = 1
    return batches.with_options(options)


def _aligned(rows: int, samples: int) -> np.ndarray:
    """Return int16 [rows, samples], aligned so that TensorFlow takes it without a copy."""
    size = 2 * rows * samples
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size].view(np.int16).reshape(rows, samples)
