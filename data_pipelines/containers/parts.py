"""Parts of a file: bytes that a decoder gets as if they were a whole file."""

import dataclasses
import io
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

import numpy as np

COMPLETE = 0.95  # a file with less than this share of its stated length is truncated
UNKNOWN = "not audio, or a kind that cannot be read"
Span = tuple[int, int]  # begin and end, in bytes of the file


class Unusable(Exception):
    """A file that cannot be used; `reason` is one line, its kind before the first colon."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["Unusable"], tuple[str]]:
        return Unusable, (self.reason,)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Yield the bytes of a file, which stay on disk.

    They are all read once at first: a disk error then is an OSError, whereas later it would kill
    the process.
    """
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


class Part(NamedTuple):
    """One part of a file; without any arguments, the whole file.

    spans: its bytes, or none for all. replaced: {position in the file: other bytes}. frames: how
    many it should hold, 0 where only its decoder can say. share: what its header promises, as a
    multiple of what is there. piped: the decoder is not to know where it ends, since it would
    guess the length.
    """

    spans: Sequence[Span] = ()
    replaced: Mapping[int, bytes] = {}
    frames: int = 0
    share: float = 1.0
    piped: bool = False

    @property
    def is_file(self) -> bool:
        """Whether the file itself will do."""
        return not (self.spans or self.replaced or self.piped)


@dataclasses.dataclass(frozen=True)
class Stream:
    """An opened part of a file: its rate in Hz, the seconds it promises (0: none said), its blocks.

    `floats` tells whether its samples are stored as floats, which may have any scale.
    """

    sample_rate: int
    promised: float
    blocks: Iterator[np.ndarray]  # float32 [n, channels]
    floats: bool


class View(io.RawIOBase):
    """A part's bytes as a file, to be read and moved about in."""

    def __init__(self, path: Path, part: Part) -> None:
        self._file = path.open("rb", buffering=0)
        self._spans = part.spans or [(0, os.fstat(self._file.fileno()).st_size)]
        self._replaced = part.replaced
        self._position = 0
        self._size = sum(end - begin for begin, end in self._spans)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: "Buffer") -> int:
        room = memoryview(buffer)
        before = self._position
        for begin, end in self._spans:
            if before < end - begin:
                break
            before -= end - begin
        else:
            return 0

        # the bytes on disk, and those that replace some of them
        begin += before
        content = bytearray(os.pread(self._file.fileno(), min(len(room), end - begin), begin))
        for place, other in self._replaced.items():
            for at in range(max(place, begin), min(place + len(other), begin + len(content))):
                content[at - begin] = other[at - place]
        room[: len(content)] = content
        self._position += len(content)
        return len(content)
