"""What an audio file's own bytes say that its decoder does not: locked, cut short, mp3 length."""

import struct
from pathlib import Path
from typing import NamedTuple

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_LOCKS = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),  # Content Encryption Object
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),  # Extended Content Encryption Object
)
_MOOV_LIMIT = 64 << 20  # bytes read of an MP4's index at most
_OGG_PAGE = 65_307  # bytes of the largest Ogg page


class Mp3Span(NamedTuple):
    """Where an mp3's audio lies in its file, in bytes, and whether it states its length."""

    start: int
    end: int
    states_length: bool


def is_locked(path: Path) -> bool:
    """Tells whether an MP4 or ASF (WMA) file says that its audio is encrypted (DRM)."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if head.startswith(_ASF_HEADER):
            return any(lock in head for lock in _ASF_LOCKS)
        if head[4:8] != b"ftyp":
            return False
        position = 0
        while True:  # over the top-level boxes (ISO/IEC 14496-12, 4.2)
            file.seek(position)
            header = file.read(16)
            if len(header) < 8:
                return False
            length, kind = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                (length,) = struct.unpack(">Q", header[8:])
            if kind == b"moov":
                file.seek(position)
                index = file.read(min(length or _MOOV_LIMIT, _MOOV_LIMIT))
                return b"sinf" in index  # the protection scheme of a track
            if length < 8:
                return False
            position += length


def ogg_is_cut(path: Path) -> bool:
    """Tells whether an Ogg file's last page is incomplete or not its last (RFC 3533, 6)."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, path.stat().st_size - 2 * _OGG_PAGE))
        tail = file.read()
    start = tail.rfind(b"OggS")
    header = tail[start : start + 27]
    if start < 0 or len(header) < 27:
        return True
    segments = tail[start + 27 : start + 27 + header[26]]  # the lengths of the page's parts
    whole = len(segments) == header[26] and len(tail) >= start + 27 + header[26] + sum(segments)
    return not whole or not header[5] & 4  # 4: end of stream


def mp3_span(path: Path) -> Mp3Span | None:
    """Finds an mp3's audio between its tags, and a Xing, Info or VBRI header in its first frame.

    Returns None if what follows the first tag is not a frame of MPEG audio.
    """
    with path.open("rb") as file:
        head = file.read(10)
        start = 10 + _syncsafe(head[6:10]) if head[:3] == b"ID3" and len(head) == 10 else 0
        file.seek(start)
        frame = file.read(4096)
        end = path.stat().st_size
        file.seek(max(0, end - 160))
        tail = file.read()
    if frame[:1] != b"\xff" or len(frame) < 2 or frame[1] & 0xE0 != 0xE0:  # eleven bits of sync
        return None
    if tail[-128:-125] == b"TAG":  # ID3v1
        end, tail = end - 128, tail[:-128]
    if tail[-32:-24] == b"APETAGEX":
        size, _, flags = struct.unpack("<III", tail[-20:-8])
        end -= size + (32 if flags >> 31 else 0)  # bit 31: the tag has a header as well
    states_length = any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
    return Mp3Span(start, max(start, end), states_length)


def _syncsafe(four: bytes) -> int:
    """Returns a number written as four times seven bits (ID3v2, 6.2)."""
    a, b, c, d = four
    return a << 21 | b << 14 | c << 7 | d
