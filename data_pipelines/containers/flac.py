"""Finds the length of FLAC files by their last frame, since the header need not state it."""

import itertools
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines.containers.mpeg import end_of_audio
from data_pipelines.containers.parts import COMPLETE, Part, Unusable, mapped

_START = b"fLaC\0\0\0\x22"  # with the header of STREAMINFO, which is always first
_SIZES = {1: 192} | {code: 576 << code - 2 for code in range(2, 6)}
_SIZES |= {code: 256 << code - 8 for code in range(8, 16)}


class _Frame(NamedTuple):
    """A frame's byte in the file, its first sample in the music, and its number of samples."""

    byte: int
    first: int
    samples: int

    @property
    def end(self) -> int:
        """The number of samples up to its end."""
        return self.first + self.samples


def parts(path: Path, start: int) -> list[Part]:
    """Return a part for each stream of the file, which is one unless files were joined.

    If a stream's header states no length, or one that is much too short for its last frame, the
    length follows from its last frame.

    Raises:
      Unusable: a stream ends long before the end that its header states, or something else follows.
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
    block, longest, _, packed = struct.unpack(">HH6sQ", data[begin + 8 : begin + 26])
    stated, rate = packed & (1 << 36) - 1, packed >> 44
    last = _last_frame(data, begin + 42, end, block)
    there = last.end if last else 0
    if last:
        channels, width = (packed >> 41 & 7) + 1, (packed >> 36 & 31) // 8 + 1
        largest = 64 + longest * channels * width  # bytes of a frame
        behind = data[last.byte + largest : min(end, end_of_audio(data))]
        if len(behind) > (1 - COMPLETE) * (end - begin) and behind.strip(b"\0"):
            bytes_ = f"{len(behind):,} of {end - begin:,} bytes"
            raise Unusable(f"longer than it says: {bytes_} follow the last FLAC frame")
    if rate and 0 < there < COMPLETE * stated:
        raise Unusable(f"truncated: {there / rate:.1f} of {stated / rate:.1f} s are there")
    if stated and stated >= COMPLETE * there:
        return Part(spans, frames=stated)
    if not there:
        return Part(spans)
    field = struct.pack(">Q", packed - stated + there)
    return Part(spans, {begin + 18: field}, frames=there)


def _last_frame(data: mmap.mmap, begin: int, end: int, block: int) -> _Frame | None:
    """Return the later of the last two frames that follow one another."""
    frames = _frames_backwards(data, begin, end, block)
    for later, earlier in itertools.pairwise(itertools.islice(frames, 64)):
        if earlier.end == later.first:
            return later
    return None


def _frames_backwards(data: mmap.mmap, begin: int, end: int, block: int) -> Iterator[_Frame]:
    """Yield everything that looks like a frame, the last one first."""
    place = end
    while (place := data.rfind(b"\xff", begin, place)) >= 0:
        if frame := _frame(data[place : min(place + 16, end)], place, block):
            yield frame


def _frame(head: bytes, byte: int, block: int) -> _Frame | None:
    """Read a frame's header (RFC 9639, 9.1); `block` is the samples of the frames before it."""
    if len(head) < 16 or head[1] & 0xFE != 0xF8 or head[2] >> 4 == 0 or head[2] & 15 == 15:
        return None

    # the number of the frame, or of its first sample
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the number is coded as in UTF-8
    if ones in (1, 8):
        return None
    number, at = head[4] & (0x7F >> ones), 5
    for more in head[5 : 4 + ones]:
        number, at = number << 6 | more & 0x3F, at + 1

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
    return _Frame(byte, number if head[1] & 1 else number * block, samples)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
    return value
