"""The index of a built data set's shards: where each record's samples are, and their checksums.

TFRecord's own checksum covers a whole record, but a crop of 5 s is only a sixth of one of 30 s. So
TensorFlow reads and verifies the whole shards once, when the index is made. The index holds the
position and number of each record's samples and the CRC-32 of the samples up to the end of every
64 KiB block: any run of blocks can then be read alone and checked. The index is stored beside the
shards, takes 84 bytes for a record of 30 s at 16 kHz, and is rebuilt when the shards' sizes no
longer match.
"""

import io
import logging
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from data_pipelines import paths, remote, retries
from data_pipelines.reads import BLOCK

_FORMAT = 1  # of the file
_SCANNERS = 4  # shards that are read at once
_FRAMING = 16  # bytes around a record in a TFRecord file: length 8, checksums 4 and 4

tf.config.set_visible_devices([], "GPU")  # TensorFlow reads files here and nothing else


class Damaged(OSError):
    """A record that cannot be read: one line that names the shard, the record and its byte."""


class Layout(NamedTuple):
    """What dataset_info.json says about a split: its shards, and the records in each."""

    shards: tuple[str, ...]
    lengths: tuple[int, ...]
    path: epath.Path  # of the index

    def where(self, record: int, offset: int) -> str:
        """Name a record of the split that lies at byte `offset` of its shard."""
        ends = np.cumsum(self.lengths)
        shard = int(np.searchsorted(ends, record, "right"))
        number = record - int(ends[shard]) + self.lengths[shard]
        return f"{self.shards[shard]}, record {number} (byte {offset})"


class Index(NamedTuple):
    """The records of a split, in the order of its shards.

    A record that could not be read has 0 samples, and the offset at which it should begin.
    """

    offset: np.ndarray  # int64 [records], byte of the shard where the samples begin
    samples: np.ndarray  # int64 [records]
    sums: np.ndarray  # uint32; for each record 0, then the CRC-32 up to each block's end

    def first(self) -> np.ndarray:
        """Return the place in `sums` of each record's 0, int64 [records]."""
        counts = _blocks(self.samples) + 1
        return np.cumsum(counts) - counts

    def whole_sums(self) -> np.ndarray:
        """Return the CRC-32 of all samples of each record, uint32 [records]."""
        return self.sums[np.append(self.first()[1:], len(self.sums)) - 1]


def _blocks(samples: np.ndarray) -> np.ndarray:
    """Return how many blocks hold a number of int16 samples; the last block may be short."""
    return -(-2 * samples // BLOCK)


def layouts(directory: epath.Path) -> dict[str, Layout]:
    """Return those splits of a data set's version directory that have records."""
    builder = retries.patiently(lambda: tfds.builder_from_directory(directory), directory.as_posix)
    info = builder.info
    if info.file_format.value != "tfrecord":
        raise ValueError(f"{directory} holds {info.file_format.value} files: build it as tfrecord")
    return {
        name: Layout(
            shards=tuple(map(str, split.filepaths)),
            lengths=tuple(split.shard_lengths),
            path=directory / f"{info.name}-{name}.index.npz",
        )
        for name, split in info.splits.items()
        if split.num_examples
    }


def write_index(directory: str) -> None:
    """Verify and index every split of a data set's version directory.

    Raises:
      Damaged: a record is unreadable; its split gets no index.
    """
    for layout in layouts(remote.path(directory)).values():
        layout.path.unlink(missing_ok=True)
        sizes = shard_sizes(layout)
        save(layout, sizes, _scan(layout, sizes))


def complete_index(directory: str) -> None:
    """Index the splits of a data set's version directory that have no index yet."""
    for layout in layouts(remote.path(directory)).values():
        if not layout.path.exists():
            read_index(layout)


def read_index(layout: Layout) -> Index:
    """Return the index beside the shards, or a new one, which is saved if possible.

    Damage is not an error here, and is not saved, since it may be repaired.
    """
    sizes = shard_sizes(layout)
    index = _load(layout, sizes)
    if index is None:
        index = _scan(layout, sizes)
        try:
            save(layout, sizes, index)
        except OSError as error:
            logging.getLogger(__name__).warning("indexed in memory only: %s", error)
    return index


def shard_sizes(layout: Layout) -> np.ndarray:
    """Return the bytes of each shard, 0 for one that is missing, int64 [shards]."""

    def size(shard: str) -> int:
        try:
            return retries.patiently(lambda: paths.size(shard), lambda: shard)
        except FileNotFoundError:
            return 0

    with ThreadPoolExecutor(16) as pool:  # a remote file system answers late
        return np.array(list(pool.map(size, layout.shards)), np.int64)


def _load(layout: Layout, sizes: np.ndarray) -> Index | None:
    """Load the saved index; return None if there is none that matches the shards."""
    try:
        content = retries.patiently(layout.path.read_bytes, layout.path.as_posix)
        with np.load(io.BytesIO(content)) as saved:
            arrays = dict(saved)
    except FileNotFoundError:
        return None
    except retries.Unreachable:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("%s: %s; indexing again", layout.path, error)
        return None

    # an index of other shards, or of another format, does not match
    expected: dict[str, npt.ArrayLike] = {
        "format": _FORMAT,
        "sizes": sizes,
        "lengths": layout.lengths,
    }
    saved_for = {key: arrays.pop(key, None) for key in expected}
    if any(
        given is None or not np.array_equal(given, expected[key])
        for key, given in saved_for.items()
    ):
        return None
    return Index(**arrays)


def save(layout: Layout, sizes: np.ndarray, index: Index) -> None:
    """Write the index under a temporary name and rename it, unless a record is damaged.

    It is made in memory: NumPy seeks back in a file that it writes, which gs:// does not allow.
    """
    if not index.samples.all():
        record = int(np.argmin(index.samples))
        raise Damaged(f"{layout.where(record, index.offset[record])}: missing, empty or damaged")
    content = io.BytesIO()
    np.savez(content, format=_FORMAT, sizes=sizes, lengths=layout.lengths, **index._asdict())
    paths.write(layout.path, content.getvalue())


def _scan(layout: Layout, sizes: np.ndarray) -> Index:
    """Read and verify every shard."""
    rows = []
    name = f"indexing {layout.path.name.removesuffix('.index.npz')}"
    with ThreadPoolExecutor(_SCANNERS) as pool:

        def scan(shard: str, size: int, records: int) -> list[_IndexRow]:
            return retries.patiently(lambda: _scan_shard(shard, size, records), lambda: shard)

        shards = pool.map(scan, layout.shards, sizes.tolist(), layout.lengths)
        for shard in tqdm(shards, name, len(sizes), unit=" shards", delay=2):
            rows.extend(shard)
    offset, samples, sums = zip(*rows, strict=True)
    return Index(np.array(offset, np.int64), np.array(samples, np.int64), np.concatenate(sums))


_IndexRow = tuple[int, int, np.ndarray]  # offset, samples, sums of a record


def _scan_shard(shard: str, size: int, records: int) -> list[_IndexRow]:
    """Return a row for each record that the shard should hold."""
    rows: list[_IndexRow] = []
    for position, record in _records(shard, size):
        if len(rows) == records:
            raise ValueError(
                f"{shard} holds more than the {records} records that dataset_info.json states: "
                "build the data set again"
            )
        rows.append(_row(shard, position, record))
    return rows + [_row(shard, size, None)] * (records - len(rows))


def _row(shard: str, position: int, record: bytes | None) -> _IndexRow:
    if record is None:
        return position, 0, np.zeros(1, np.uint32)
    begin, end = _audio_span(shard, record)
    sums = [0]
    with memoryview(record)[begin:end] as audio:
        for block in range(0, end - begin, BLOCK):
            sums.append(zlib.crc32(audio[block : block + BLOCK], sums[-1]))
    return position + 12 + begin, (end - begin) // 2, np.array(sums, np.uint32)


def _records(shard: str, size: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (position, record) of a TFRecord file; None for a record that TensorFlow finds damaged.

    What follows a damaged record is found by the record's length. If the length is damaged too, it
    leads to more damage or past the end, and the rest of the shard is lost.
    """

    buffer = 8 << 20 if "://" in shard else 1 << 20  # bytes; each is a request to a bucket

    def records_from(position: tf.Tensor) -> tf.data.Dataset:
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[shard], compression_type="", buffer_size=buffer, byte_offsets=[position]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))

    position = 0
    while position < size:
        # In a flat_map, since TensorFlow cannot serialise this operation as a data set of its own.
        remaining = tf.data.Dataset.from_tensors(np.int64(position)).flat_map(records_from)
        try:
            for record in remaining:
                raw = record.numpy()
                yield position, raw
                position += _FRAMING + len(raw)
            return
        except tf.errors.DataLossError:
            yield position, None
            with epath.Path(shard).open("rb") as file:
                file.seek(position)
                position += _FRAMING + int.from_bytes(file.read(8), "little")


def _audio_span(shard: str, example: bytes) -> tuple[int, int]:
    """Find the bytes of the feature "audio" in a serialised tf.train.Example.

    The wire format is read directly, since parsing would copy the audio: Example.features (field 1)
    holds entries (1) of a key (1) and a Feature (2), whose bytes_list (1) holds values (1).
    """
    for _, begin, end in _fields(example, 0, len(example)):
        for _, entry, entry_end in _fields(example, begin, end):
            (_, *key), (_, *feature) = _fields(example, entry, entry_end)
            if example[slice(*key)] != b"audio":
                continue
            for kind, *values in _fields(example, *feature):
                if kind == 1:
                    _, begin, end = next(_fields(example, *values))
                    return begin, end
    raise ValueError(f'{shard}: its records have no feature "audio" of int16 bytes')


def _fields(message: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, begin, end) of each field of a message with length-delimited fields only."""
    while begin < end:
        number = message[begin] >> 3
        size = shift = 0
        while True:
            begin += 1
            size |= (message[begin] & 0x7F) << shift
            shift += 7
            if message[begin] < 0x80:
                break
        begin += 1
        yield number, begin, begin + size
        begin += size
