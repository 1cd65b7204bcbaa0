"""Finds the length of FLAC files by their last frame, since the header need not state it."""

import itertools
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines.containers.parts import COMPLETE, Part, Unusable, mapped

_START = b"fLaC\0\0\0\x22"  # with the header of STREAMINFO, which is always first
_TAIL = 1 << 18  # bytes at the end among which the last frames are; a frame has some thousand
_SIZES = {1: 192} | {code: 576 << code - 2 for code in range(2, 6)}
_SIZES |= {code: 256 << code - 8 for code in range(8, 16)}


class _Frame(NamedTuple):
    """A frame's place in the music: its first sample and their number."""

    first: int
    samples: int


def parts(path: Path, start: int) -> list[Part]:
    """Return a part for each stream of the file, which is one unless files were joined.

    A stream whose header states no length, or a much shorter one than its last frame, gets that
    of its last frame.

    Raises:
      Unusable: a stream ends long before the end that its header states.
    """
    with mapped(path) as data:
        begins = [start]
        while (found := data.find(_START, begins[-1] + 42)) >= 0:
            begins.append(found)
        ends = [*begins[1:], len(data)]
        joined = len(begins) > 1
        return [_part(data, *span, joined) for span in zip(begins, ends, strict=True)]


def _part(data: mmap.mmap, begin: int, end: int, joined: bool) -> Part:
    spans = [(begin, end)] if joined else ()
    if end < begin + 42:
        return Part(spans)
    block, _, _, packed = struct.unpack(">HH6sQ", data[begin + 8 : begin + 26])
    stated, rate = packed & (1 << 36) - 1, packed >> 44
    there = _last_sample(data[max(begin + 42, end - _TAIL) : end], block)
    if rate and 0 < there < COMPLETE * stated:
        raise Unusable(f"truncated: {there / rate:.1f} of {stated / rate:.1f} s are there")
    if stated and stated >= COMPLETE * there:
        return Part(spans, frames=stated)
    if not there:
        return Part(spans)
    field = struct.pack(">Q", packed - stated + there)
    return Part(spans, {begin + 18: field}, frames=there)


def _last_sample(tail: bytes, block: int) -> int:
    """Return the samples up to the end of the last two frames that follow one another, or 0."""
    frames = _frames_backwards(tail, block)
    for later, earlier in itertools.pairwise(itertools.islice(frames, 64)):
        if earlier.first + earlier.samples == later.first:
            return later.first + later.samples
    return 0


def _frames_backwards(tail: bytes, block: int) -> Iterator[_Frame]:
    """Yield what look like frames, the last one first."""
    place = len(tail)
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        if frame := _frame(tail[place : place + 16], block):
            yield frame


def _frame(head: bytes, block: int) -> _Frame | None:
    """Read a frame's header (RFC 9639, 9.1); `block` is the samples of the frames before it."""
    if len(head) < 16 or head[1] & 0xFE != 0xF8 or head[2] >> 4 == 0 or head[2] & 15 == 15:
        return None

    # the number of the frame, or of its first sample
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the number is coded as in UTF-8
    if ones in (1, 8):
        return None
    number, at = head[4] & (0x7F >> ones), 5
    for byte in head[5 : 4 + ones]:
        number, at = number << 6 | byte & 0x3F, at + 1

    # how many samples it has
    code, rate = head[2] >> 4, head[2] & 15
    samples = _SIZES.get(code)
    if samples is None:
        width = code - 5  # 6 and 7: the size is written in one byte or in two
        samples = int.from_bytes(head[at : at + width], "big") + 1
        at += width

    # the checksum of the header
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    return _Frame(number if head[1] & 1 else number * block, samples)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
    return value
