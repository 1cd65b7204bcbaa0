"""Finds the frames of MPEG audio (mp3) between tags and junk, and their total length.

An mp3's only stated length is in its first frame, if at all, and that is often another file's.
"""

import itertools
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from data_pipelines.containers.kinds import tag_size
from data_pipelines.containers.parts import COMPLETE, Part, Span, Unusable, mapped

_RATES = {0: (11_025, 12_000, 8_000), 2: (22_050, 24_000, 16_000), 3: (44_100, 48_000, 32_000)}
_KBITS = {  # by whether the version is 1, and by layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_FEWEST = 10  # frames in a run, a quarter of a second; fewer are found by chance in noise
_JUNK = 1 << 15  # bytes between tags and frames; libsndfile passes over twice as many
_FORMAT = 0xFE0C  # the bits that hold version, layer and rate
_MONO = 3


def _lengths() -> list[int]:
    """Return the bytes of a frame by the second and third byte of its header, 0 for none."""
    lengths = [0] * (1 << 16)
    for bits in range(0xE000, 1 << 16):
        version, layer = bits >> 11 & 3, 4 - (bits >> 9 & 3)
        kbits, rate = bits >> 4 & 15, bits >> 2 & 3
        if version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
            continue
        bytes_a_second = 125 * _KBITS[version == 3, layer][kbits - 1]
        slots = _samples(bits) * bytes_a_second // _RATES[version][rate]
        padding = bits >> 1 & 1
        lengths[bits] = 4 * (slots // 4 + padding) if layer == 1 else slots + padding
    return lengths


def _samples(bits: int) -> int:
    """Return the samples of a frame by the second and third byte of its header."""
    version, layer = bits >> 11 & 3, 4 - (bits >> 9 & 3)
    return 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576


_LENGTHS = _lengths()


class Run(NamedTuple):
    """Frames of one version, layer, rate and number of channels, with only gaps between them."""

    format: int
    mono: bool
    spans: list[Span]
    frames: int

    @property
    def samples(self) -> int:
        return self.frames * _samples(self.format)


def parts(path: Path, start: int) -> list[Part]:
    """Return the parts to decode: the whole file, or only its frames.

    It is the whole file if its first frame states the actual length, or more, and the decoder
    finds that frame, and if there is no frame of MPEG audio. Otherwise there is one part for each
    format, and most files have one.

    Raises:
      Unusable: more than a little of the file is neither frames nor tags.
    """
    with mapped(path) as data:
        end = end_of_audio(data)
        runs, lost, zeros = _scan(data, start, end)
        runs = [run for run in runs if run.frames >= _FEWEST]
        if not runs:
            return [Part()]
        is_found = 0 <= runs[0].spans[0][0] - past_tags(data, 0, end) <= _JUNK
        stated, *_ = [_leave_out_header(data, run) for run in runs]

    # how much of the file consists of frames, and how much is unknown
    spans = itertools.chain.from_iterable(run.spans for run in runs)
    in_frames = sum(stop - begin for begin, stop in spans)
    if zeros > (1 - COMPLETE) * (in_frames + zeros):
        raise Unusable(f"truncated: the last {zeros:,} of {end:,} bytes are zeros")
    if lost > (1 - COMPLETE) * (in_frames + lost):
        raise Unusable(f"corrupt: {lost:,} of {end:,} bytes are not frames of MPEG audio")
    if is_found and stated >= COMPLETE * runs[0].frames and len(runs) == 1:
        return [Part()]
    return [Part(run.spans, frames=run.samples, piped=True) for run in runs]


def end_of_audio(data: mmap.mmap) -> int:
    """Return where the tags at the end of a file begin."""
    end = len(data)
    if data[end - 128 : end - 125] == b"TAG":  # ID3v1
        end -= 128
    if end >= 32 and data[end - 32 : end - 24] == b"APETAGEX":
        size, _, flags = struct.unpack("<III", data[end - 20 : end - 8])
        begin = end - size - (32 if flags >> 31 else 0)  # bit 31: the tag has a header as well
        end = begin if begin >= 0 else end - 32
    if end >= 9 and data[end - 9 : end] in (b"LYRICS200", b"LYRICSEND"):
        end = max(data.rfind(b"LYRICSBEGIN", 0, end), 0) or end
    return end


def _scan(data: mmap.mmap, position: int, end: int) -> tuple[list[Run], int, int]:
    """Go from frame to frame; return their runs and the number of other bytes.

    Those are the bytes between frames, except tags, and those after the last frame; a second
    number says how many of the latter are zeros. Bytes before the first frame are not counted.
    """
    runs: list[Run] = []
    lost = 0
    while (pair := _next(data, position, end)) is not None:
        begin, skipped = pair
        lost += skipped if runs else 0
        position = _follow(data, begin, end, runs)
    behind = end - past_tags(data, position, end)
    zeros = behind if runs and not any(data[end - min(behind, 1 << 16) : end]) else 0
    return runs, lost + (behind - zeros if runs else 0), zeros


def _next(data: mmap.mmap, position: int, end: int) -> tuple[int, int] | None:
    """Find two frames that follow one another; return where, and the bytes before that."""
    begin = position = past_tags(data, position, end)
    while (begin := data.find(b"\xff", begin, end)) >= 0:
        length = _length(data, begin, end)
        if length and (begin + length == end or _alike(data, begin, begin + length, end)):
            return begin, begin - position
        begin += 1
        if data[begin : begin + 3] == b"ID3":
            begin = position = past_tags(data, begin, end)
    return None


def past_tags(data: mmap.mmap, position: int, end: int) -> int:
    """Return the first byte that belongs to no tag."""
    while position < end:
        head = data[position : position + 32]
        if head[:3] == b"ID3":
            position += tag_size(head)
        elif head[:3] == b"TAG":
            position += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            length = 32 + struct.unpack("<I", head[12:16])[0]
            position += length if position + length <= end else 32
        else:
            return position
    return end


def _follow(data: mmap.mmap, position: int, end: int, runs: list[Run]) -> int:
    """Add the frames from `position` on to `runs`; return where they end."""
    while position < end and _length(data, position, end):
        begin, frames = position, 0
        form, mono = _format(data, position), data[position + 3] >> 6 == _MONO
        while position + 4 <= end and data[position] == 0xFF:
            bits = data[position + 1] << 8 | data[position + 2]
            length = _LENGTHS[bits]
            if not length or bits & _FORMAT != form or (data[position + 3] >> 6 == _MONO) != mono:
                break
            position += length
            frames += 1
        position = min(position, end)
        if runs and (runs[-1].format, runs[-1].mono) == (form, mono):
            last = runs.pop()
            runs.append(Run(form, mono, [*last.spans, (begin, position)], last.frames + frames))
        else:
            runs.append(Run(form, mono, [(begin, position)], frames))
    return position


def _length(data: mmap.mmap, position: int, end: int) -> int:
    """Return the bytes of the frame at `position`, 0 if there is none."""
    if position + 4 > end or data[position] != 0xFF:
        return 0
    return _LENGTHS[data[position + 1] << 8 | data[position + 2]]


def _format(data: mmap.mmap, position: int) -> int:
    return (data[position + 1] << 8 | data[position + 2]) & _FORMAT


def _alike(data: mmap.mmap, one: int, other: int, end: int) -> bool:
    return _length(data, other, end) > 0 and _format(data, one) == _format(data, other)


def _leave_out_header(data: mmap.mmap, run: Run) -> int:
    """Remove the frame that states a length (Xing, Info, VBRI) from the beginning of a run.

    Returns:
      The frames that it states, 0 if there is none or it says nothing.
    """
    begin, end = run.spans[0]
    version_1 = run.format >> 11 & 3 == 3
    side = (17 if run.mono else 32) if version_1 else (9 if run.mono else 17)
    at = begin + 4 + side + (0 if data[begin + 1] & 1 else 2)  # a checksum of two bytes
    frames = 0
    if data[at : at + 4] in (b"Xing", b"Info"):
        flags, frames = struct.unpack(">II", data[at + 4 : at + 12])
        frames = frames if flags & 1 else 0
    elif data[begin + 36 : begin + 40] == b"VBRI":
        (frames,) = struct.unpack(">I", data[begin + 50 : begin + 54])
    else:
        return 0
    run.spans[0] = (begin + _length(data, begin, end), end)
    return frames
