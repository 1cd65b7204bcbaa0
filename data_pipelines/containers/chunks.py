"""Finds the samples in WAV, AIFF, AU, CAF and Wave64 files, and checks the stated size.

A writer that dies leaves a size of 0, or that of an earlier moment; one that writes into a pipe
leaves a placeholder; and 32 bits can only hold sizes up to 4 GiB.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_pipelines.containers.parts import COMPLETE, Part, Unusable

_UNSTATED = 0x7FFF0000  # sizes of 32 bits from here up are placeholders of streaming writers
_AROUND = 1 << 32
_TAGS = (b"TAG", b"ID3", b"APETAGEX")  # what other programs append


class _Layout(NamedTuple):
    """How a file is cut into chunks."""

    first: int  # byte at which the first begins
    name: int  # bytes of a chunk's name
    size: str  # how the size after it is written
    counted: int  # bytes of name and size that the size counts
    align: int  # bytes to a multiple of which a chunk is filled up
    audio: bytes  # the beginning of the name of the chunk that holds the samples


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I", 0, 2, b"data"),
    b"RF64": _Layout(12, 4, "<I", 0, 2, b"data"),  # its true size is elsewhere: `_wide`
    b"RIFX": _Layout(12, 4, ">I", 0, 2, b"data"),
    b"FORM": _Layout(12, 4, ">I", 0, 2, b"SSND"),
    b"caff": _Layout(8, 4, ">q", 0, 1, b"data"),
    b"riff": _Layout(40, 16, "<q", 24, 8, b"data"),
    b".snd": _Layout(4, 4, ">I", 0, 1, b""),  # in place of a name the samples' position
}


class _Chunk(NamedTuple):
    """A chunk: its name, where its contents begin, and how many bytes they have by its header.

    field and form: where the header states that size, and in which format.
    """

    name: bytes
    start: int
    size: int
    field: int
    form: str


def parts(path: Path, start: int) -> list[Part]:
    """Return the file as one part, with its size put right if it is a placeholder.

    Raises:
      Unusable: the file holds far more than its header says, of an unknown kind.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(start)
        kind = file.read(4)
        layout = _LAYOUTS[kind]
        chunk = _audio(file, start, size, layout)
        if not chunk:
            return [Part()]  # the decoder will say what is wrong
        if kind == b"RF64" and chunk.size >= _UNSTATED:
            chunk = _wide(file, start, chunk)
        closed = chunk.size >= 0 and _ends_well(file, chunk.start + chunk.size, size, layout)
    return [_part(chunk, size - chunk.start, closed, layout.counted)]


def _part(chunk: _Chunk, there: int, closed: bool, counted: int) -> Part:
    """Compare the size of the samples with the bytes that are there."""
    narrow = chunk.form[1] == "I"
    whole = min(there, _AROUND - 1) if narrow else there + counted
    mended = {chunk.field: struct.pack(chunk.form, whole)}
    if narrow and chunk.size >= _UNSTATED:
        return Part()
    if chunk.size < 0:
        return Part(replaced=mended)
    if chunk.size > there:  # libsndfile counts what is there, but does not open such a CAF
        return Part(replaced={} if narrow else mended, share=chunk.size / max(there, 1))
    if closed or chunk.size >= COMPLETE * there:
        return Part()
    if chunk.size == 0 or (narrow and there - chunk.size > _AROUND - _AROUND // 20):
        return Part(replaced=mended)
    raise Unusable(f"longer than it says: its header states {chunk.size:,} of {there:,} bytes")


def _audio(file: BinaryIO, start: int, size: int, layout: _Layout) -> _Chunk | None:
    """Find the chunk of samples."""
    position = start + layout.first
    while position < size and (chunk := _chunk(file, position, layout)):
        if not layout.audio:
            return chunk._replace(start=start + int.from_bytes(chunk.name, "big"))
        if chunk.name.startswith(layout.audio):
            return chunk
        position = _behind(chunk, layout)
    return None


def _chunk(file: BinaryIO, position: int, layout: _Layout) -> _Chunk | None:
    header_size = layout.name + struct.calcsize(layout.size)
    file.seek(position)
    header = file.read(header_size)
    if len(header) < header_size:
        return None
    name = header[: layout.name]
    (size,) = struct.unpack(layout.size, header[layout.name :])
    field = position + layout.name
    return _Chunk(name, position + header_size, size - layout.counted, field, layout.size)


def _wide(file: BinaryIO, start: int, chunk: _Chunk) -> _Chunk:
    """Return RF64's chunk of samples with the size of 64 bits that its first chunk holds."""
    file.seek(start + 12)
    head = file.read(24)
    if len(head) < 24 or head[:4] != b"ds64":
        return chunk
    (size,) = struct.unpack("<q", head[16:])
    return chunk._replace(size=size, field=start + 28, form="<q")


def _behind(chunk: _Chunk, layout: _Layout) -> int:
    """Return where the next chunk begins; never before the end of the chunk's own header."""
    end = chunk.start + max(0, chunk.size)
    return end + -end % layout.align


def _ends_well(file: BinaryIO, position: int, size: int, layout: _Layout) -> bool:
    """Return whether nothing but chunks, tags or zeros stands between `position` and the end."""
    position += -position % layout.align
    while position < size:
        file.seek(position)
        if file.read(8).startswith(_TAGS) or _only_zeros(file, position):
            return True
        chunk = layout.audio and _chunk(file, position, layout)
        if not chunk or not _is_name(chunk.name[:4]) or not 0 <= chunk.size <= size - chunk.start:
            return False
        if chunk.name[:4] in _LAYOUTS:  # another file
            return False
        position = _behind(chunk, layout)
    return True


def _only_zeros(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    while block := file.read(1 << 16):
        if block.strip(b"\0"):
            return False
    return True


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.decode().replace(" ", "").replace("_", "").isalnum()
