"""The records of a built data set; any part of any record can be read directly."""

import dataclasses
import functools
import json
import os
import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from etils import epath

from data_pipelines import paths, remote, retries
from data_pipelines.ranges import Ranges
from data_pipelines.reads import BLOCK
from data_pipelines.record_index import Damaged, Index, Layout, layouts, read_index

MIRRORED = "mirror-{}.json"  # notes, beside a copy, what a split was copied from
_DEFAULT_RATE = 16_000  # Hz, of a data set whose config does not say otherwise


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a built data set; its length is the number of records.

    `samples` is 0 for records that were unreadable when the split was opened.
    """

    directory: str
    split: str
    sample_rate: int  # Hz
    layout: Layout
    index: Index
    ranges: Ranges = dataclasses.field(default_factory=Ranges)

    def __len__(self) -> int:
        return len(self.index.samples)

    @property
    def samples(self) -> np.ndarray:
        """The samples in each record, int64 [records]."""
        return self.index.samples

    @property
    def is_far(self) -> bool:
        """Whether every read is a request to a server."""
        return "://" in self.directory

    @functools.cached_property
    def _shard(self) -> np.ndarray:
        """The shard that holds each record, int32 [records]."""
        return np.repeat(np.arange(len(self.layout.lengths), dtype=np.int32), self.layout.lengths)

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """The place of each record's first checksum, int64 [records]."""
        return self.index.first()

    def shard(self, record: int) -> str:
        """Return the path of the shard that holds a record."""
        return self.layout.shards[self._shard[record]]

    def damage(self, record: int, what: str) -> Damaged:
        """Return an error that says what is wrong with a record."""
        text = f"{self.layout.where(record, self.index.offset[record])}: {what}"
        if not self.is_far and Path(self.directory, MIRRORED.format(self.split)).exists():
            text += "; this is a copy: remove the file, and it will be copied again"
        return Damaged(text)

    def read(
        self,
        record: int,
        start: int,
        out: np.ndarray,
        closed: threading.Event | None = None,
        held: Callable[[int, int, int], bytes | memoryview | None] | None = None,
    ) -> None:
        """Fill `out`, int16 [n], from sample `start` on; too short a record repeats from there.

        Args:
          closed: is set when nobody needs the samples any more.
          held: takes (record, begin, size) and returns these bytes if they are in memory already,
            else None.

        Raises:
          Damaged: the record is cut short or is not what was indexed.
          OSError: it cannot be read; see `retries.patiently`.
        """
        samples = min(len(out), int(self.samples[record]) - start)
        if samples <= 0:
            raise self.damage(record, "missing, empty or damaged")

        # whole blocks around the samples, since a checksum covers a whole block
        low, high = 2 * start // BLOCK, -(-2 * (start + samples) // BLOCK)
        begin = low * BLOCK
        size = min(high * BLOCK, 2 * int(self.samples[record])) - begin
        raw = held(record, begin, size) if held else None
        if raw is None:
            raw = self._bytes(record, begin, size, closed)
        if len(raw) < size:
            raise self.damage(record, "the shard is cut off")

        sums = self.index.sums[self._first[record] :]
        if zlib.crc32(raw, sums[low]) != sums[high]:
            raise self.damage(record, "its checksum does not match")
        crop = np.frombuffer(raw, "<i2", samples, 2 * start - begin)
        out[:] = crop if samples == len(out) else np.resize(crop, len(out))

    def _bytes(self, record: int, begin: int, size: int, closed: threading.Event | None) -> bytes:
        """Read bytes of the record's audio, in a file system that may be away for a while."""
        shard = self.shard(record)
        offset = int(self.index.offset[record])

        def read() -> bytes:
            return self.ranges.read(shard, offset + begin, size)

        return retries.patiently(read, lambda: self.layout.where(record, offset), closed)


def open_dataset(name: str, data_dir: str | os.PathLike, split: str) -> Dataset:
    """Open a split of DATA_DIR/NAME; index it first if that was not done when it was built.

    Args:
      name: of the builder ("music_folder") or of one of its configs ("music_folder/24khz").

    Raises:
      FileNotFoundError: the data set is not built.
      ValueError: there is no such split, or there are several configs and none is the default.
    """
    return open_directory(require(name, data_dir), split)


def open_directory(directory: epath.Path, split: str) -> Dataset:
    """Open a split of a data set's version directory, as `open_dataset` does.

    Raises:
      ValueError: there is no such split.
    """
    splits = layouts(directory)
    if split not in splits:
        raise ValueError(
            f"{directory} has no records in split {split!r}; it has some in {sorted(splits)}"
        )
    layout = splits[split]
    return Dataset(str(directory), split, _sample_rate(directory), layout, read_index(layout))


def is_built(name: str, data_dir: str | os.PathLike) -> bool:
    """Return whether `open_dataset` would find the data set."""
    return find(name, data_dir) is not None


def require(name: str, data_dir: str | os.PathLike) -> epath.Path:
    """Find the data set as `find` does, or raise an error if there is none.

    Raises:
      FileNotFoundError: the data set is not built.
      ValueError: as `find`.
    """
    directory = find(name, data_dir)
    if directory is None:
        root = remote.path(data_dir) / name
        others = retries.patiently(lambda: sorted(_configs(root)), root.as_posix)
        told = "holds no built data set:"
        if others:
            told = f"holds {others}, not its default config: give the name {name}/{others[0]}, or"
        raise FileNotFoundError(
            f"{root} {told} run "
            f"python -m data_pipelines.build {name} --data_dir={data_dir} [--manual_dir=FOLDER]"
        )
    return directory


def find(name: str, data_dir: str | os.PathLike) -> epath.Path | None:
    """Find the newest version of DATA_DIR/NAME, of its default config if NAME has none.

    Raises:
      ValueError: there are several configs and none is the default.
      OSError: as `retries.patiently`.
    """
    root = remote.path(data_dir) / name
    return retries.patiently(lambda: _newest(root, name), root.as_posix)


def _newest(root: epath.Path, name: str) -> epath.Path | None:
    """Find the newest version in a data set's folder, or in that of its default config."""
    if not root.exists():
        return None
    if versions := _versions(root):
        return versions[-1]

    # a folder for each config, one of which is the default
    configs = _configs(root)
    if not configs:
        return None
    default = root / ".config" / "metadata.json"  # TFDS's
    if default.exists():
        built = configs.get(json.loads(default.read_text())["default_config_name"])
        return built[-1] if built else None
    if len(configs) > 1:
        raise ValueError(f"{root} holds {sorted(configs)}: name one of them, as {name}/CONFIG")
    return next(iter(configs.values()))[-1]


def _configs(root: epath.Path) -> dict[str, list[epath.Path]]:
    """Return the configs with finished versions in a data set's folder, and these versions."""
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.exists() else []
    return {folder.name: built for folder in folders if (built := _versions(folder))}


def _versions(root: epath.Path) -> list[epath.Path]:
    """Return the finished version directories in `root`, oldest first."""
    versions = [path.parent for path in paths.matching(root, "*/dataset_info.json")]
    versions = [path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(versions, key=lambda path: [int(part) for part in path.name.split(".")])


def _sample_rate(directory: epath.Path) -> int:
    """Return the rate in Hz that a config's name says, as in "24khz"."""
    said = re.search(r"(\d+)khz", directory.parent.name)
    return 1000 * int(said.group(1)) if said else _DEFAULT_RATE
