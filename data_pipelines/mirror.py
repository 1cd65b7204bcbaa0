"""Copies a data set's shards to this machine's disk or memory, to be read there.

Each shard is read in parts, written under a temporary name, compared with the checksums of the
index and then renamed, so that an interrupted copy resumes where it was. One of the processes of a
machine copies, and the others wait for it.
"""

import functools
import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines import claim, machine, paths, record_index, records, remote, retries
from data_pipelines.records import Dataset

_PART = 8 << 20  # bytes of a request
_COPIERS = 16  # shards that are copied at once
_ROOM = (
    "free some space, choose another data.mirror, or do without a copy (--config.data.order=blocks)"
)
_LOOK, _SAY = 0.5, 60.0  # seconds between looks at, and lines about, another's copy


def mirror(name: str, data_dir: str, split: str, target: str) -> Dataset:
    """Copy a split of DATA_DIR/NAME to TARGET, unless it is there already, and open it there.

    Raises:
      FileNotFoundError, ValueError: as `records.open_dataset`; or TARGET is not a folder of this
        machine, cannot be written to, is DATA_DIR, or holds the copy of another data set of this
        name.
      OSError: the disk is full, or the data cannot be read; see `retries.patiently`.
    """
    target = paths.local(target, "it is for this machine's own copy of the data")
    source = records.open_dataset(name, data_dir, split)
    inside = source.directory.removeprefix(os.fspath(epath.Path(data_dir))).strip("/")
    folder = Path(target) / inside
    if not source.is_far and folder.exists() and folder.samefile(source.directory):
        raise ValueError(
            f"data.mirror: {folder} is the data set itself: name another folder, or leave it out"
        )
    copy = _Copy(source, folder)
    if not copy.is_complete():
        _require_writable(folder)
    said = float("-inf")
    while not copy.is_complete():
        try:
            with claim.claim(folder / ".mirror.claim"):
                if not copy.is_complete():  # another process may have completed it meanwhile
                    copy.make()
        except claim.Claimed as other:
            if time.monotonic() >= said + _SAY:
                print(f"{folder} is being copied by {other}: waiting for it", file=sys.stderr)
                said = time.monotonic()
            time.sleep(_LOOK)
    return records.open_directory(epath.Path(folder), split)


def _require_writable(folder: Path) -> None:
    """Raise ValueError if no copy can be made in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in machine.FULL or retries.passes(error):
            raise
        raise ValueError(
            f"data.mirror: {folder} cannot be written to ({error.strerror}): make it "
            "writable, or name another"
        ) from error


class _Copy:
    """The copy of a split in a folder, made or to be made."""

    def __init__(self, source: Dataset, folder: Path):
        self.source, self.folder = source, folder
        self.sizes = record_index.shard_sizes(source.layout).tolist()
        self.paths = [folder / shard.rpartition("/")[2] for shard in source.layout.shards]
        index = source.index
        parts = (np.array(self.sizes), index.offset, index.samples, index.sums)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in parts))
        self.about = {"source": source.directory, "index": digest.hexdigest()}
        ends = np.cumsum(source.layout.lengths)
        self.records = [range(*x) for x in zip(ends - source.layout.lengths, ends, strict=True)]
        self.sums = index.whole_sums()
        self.note = folder / records.MIRRORED.format(source.split)  # once the copy is whole
        self.closed, self.lock = threading.Event(), threading.Lock()

    def is_complete(self) -> bool:
        """Return whether this very split was copied and all of its shards are still there."""
        return self._noted() == self.about and all(
            _size(path) == size for path, size in zip(self.paths, self.sizes, strict=True)
        )

    def make(self) -> None:
        """Copy what is missing, with a bar; compare what is here with its checksums."""
        noted = self._noted()
        if noted.get("source", self.source.directory) != self.source.directory:
            raise ValueError(
                f"{self.folder} holds the copy of {noted['source']}: use another data.mirror for "
                f"{self.source.directory}, or remove that copy"
            )
        self._require_space()
        paths.write(epath.Path(self.note), json.dumps(self.about | {"index": ""}).encode())
        self.bar = tqdm(
            total=sum(self.sizes), desc=f"copying to {self.folder}", unit="B", unit_scale=True
        )
        pool = ThreadPoolExecutor(_COPIERS, "mirror")
        try:
            list(pool.map(self._shard, range(len(self.sizes))))
        except OSError as error:
            if error.errno in machine.FULL:
                raise OSError(f"{self.folder} is full: {_ROOM}") from error
            raise
        finally:
            self.closed.set()  # the first error ends them all
            pool.shutdown(cancel_futures=True)
            self.bar.close()
        self._beside_shards()
        paths.write(epath.Path(self.note), json.dumps(self.about).encode())

    def _noted(self) -> dict[str, str]:
        try:
            return json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}

    def _require_space(self) -> None:
        """Raise OSError if the disk cannot hold what is still missing."""
        here = sum(max(_size(path), _size(_aside(path))) for path in self.paths)
        needed, free = sum(self.sizes) - here, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"{self.folder} has {free / 1e9:.2f} GB free and the copy of "
                f"{self.source.directory} needs {needed / 1e9:.2f} GB more: {_ROOM}"
            )

    def _shard(self, number: int) -> None:
        """Copy a missing shard; what is missing or damaged at its source stays so."""
        path, size = self.paths[number], self.sizes[number]
        if size and _size(path) == size and not self._damage(number, path):
            self._copied(size)
            return
        path.unlink(missing_ok=True)
        aside, before = _aside(path), None
        while size:
            self._fetch(self.source.layout.shards[number], size, aside)
            damage = self._damage(number, aside)
            if not damage or damage == before:  # the same damage twice: it is in the source
                aside.replace(path)
                return
            self._copied(-size)
            aside.unlink()
            before = damage

    def _fetch(self, shard: str, size: int, aside: Path) -> None:
        """Resume a file where it was left."""
        with aside.open("ab") as file:
            self._copied(file.tell())
            while (begin := file.tell()) < size:
                read = functools.partial(self.source.ranges.read, shard, begin)
                part = retries.patiently(
                    functools.partial(read, min(_PART, size - begin)), lambda: shard, self.closed
                )
                if not part:
                    raise OSError(f"{shard} became shorter meanwhile: run the same command again")
                file.write(part)
                self._copied(len(part))
            file.flush()
            os.fsync(file.fileno())

    def _damage(self, number: int, path: Path) -> list[int]:
        """Return the records of a shard for which the checksum of all samples does not match."""
        index, found = self.source.index, []
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            for record in self.records[number]:
                begin, samples = int(index.offset[record]), int(index.samples[record])
                with memoryview(content) as whole, whole[begin : begin + 2 * samples] as audio:
                    if samples and zlib.crc32(audio) != self.sums[record]:
                        found.append(record)
        return found

    def _beside_shards(self) -> None:
        """Copy what describes the records, and the index if it was good enough to be saved."""
        for path in remote.path(self.source.directory).iterdir():
            if ".tfrecord" not in path.name and path.suffix in (".json", ".txt", ".tsv"):
                content = retries.patiently(path.read_bytes, path.as_posix)
                paths.write(epath.Path(self.folder) / path.name, content)
        layout = record_index.layouts(epath.Path(self.folder))[self.source.split]
        if self.source.samples.all():
            record_index.save(layout, np.array(self.sizes), self.source.index)

    def _copied(self, size: int) -> None:
        with self.lock:
            self.bar.update(size)


def _aside(path: Path) -> Path:
    """Return where a file lies while it is incomplete."""
    return path.with_name(f".{path.name}.part")


def _size(path: Path) -> int:
    """Return the bytes of a local file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
