"""Tells what a file is by its first bytes, whatever its name says, and whether it is locked."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_LOCKS = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),  # Content Encryption Object
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),  # Extended Content Encryption Object
)
_MOOV_LIMIT = 64 << 20  # bytes read of an MP4's index at most
_POINTER = b"version https://git-lfs"
# Kinds of which libsndfile reads at least some encodings, and kinds that need FFmpeg.
_OWN = {
    b"RIFF": "chunks",
    b"RIFX": "chunks",
    b"RF64": "chunks",
    b"riff": "chunks",  # Wave64
    b"FORM": "chunks",
    b"caff": "chunks",
    b".snd": "chunks",
    b"fLaC": "flac",
    b"OggS": "ogg",
}
PROGRAM_STREAM = "an MPEG program stream"  # it holds the frames of an mp3, but in pieces
_FFMPEG = {
    b"\x1aE\xdf\xa3": "Matroska or WebM",
    _ASF_HEADER[:4]: "WMA",
    b"wvpk": "WavPack",
    b"TTA1": "TTA",
    b"MAC ": "Monkey's Audio",
    b"MPCK": "Musepack",
    b"ADIF": "AAC",
    b"\x7f\xfe\x80\x01": "DTS",
    b"FLV\x01": "Flash video",
    b"\x00\x00\x01\xba": PROGRAM_STREAM,
    b"\x00\x00\x01\xb3": "MPEG video",
    b".RMF": "RealMedia",
}
_MPEG_PACKET = 188  # bytes of a transport stream's packets, each of which begins with "G"
_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # a first box without a brand


def kind(path: Path) -> tuple[str, int]:
    """Return what follows the file's ID3v2 tags, and at which byte.

    It is "chunks", "flac", "ogg", "" for MPEG audio and everything unknown, or the name of a kind
    that needs FFmpeg.
    """
    with path.open("rb") as file:
        start, size = 0, os.fstat(file.fileno()).st_size
        while (head := file.read(2 * _MPEG_PACKET + 1))[:3] == b"ID3":
            start = past_tag(start, tag_size(head), size)
            file.seek(start)

    if name := _OWN.get(head[:4]) or _FFMPEG.get(head[:4]):
        return name, start
    if head[4:8] == b"ftyp":
        return "MP4", start
    if head[4:8] in _QUICKTIME and head[:1] == b"\0":  # its size: not text
        return "QuickTime", start
    if head[::_MPEG_PACKET] == b"GGG":
        return "an MPEG transport stream", start
    if head[:2] == b"\x0bw":
        return "AC-3", start
    if head[:3] == b"MP+":
        return "Musepack", start
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:  # layer 0 is not MPEG's
        return "AAC", start
    return "", start


def needs_ffmpeg(name: str) -> bool:
    """Return whether libsndfile does not know a kind that `kind` found."""
    return name not in ("", *_OWN.values())


def tag_size(head: bytes) -> int:
    """Return the length in bytes of an ID3v2 tag by its beginning (ID3v2.4, 3.1), at least 10."""
    if len(head) < 10:
        return 10
    a, b, c, d = head[6:10]  # four times seven bits
    footer = 10 if head[5] & 0x10 else 0
    return 10 + (a << 21 | b << 14 | c << 7 | d) + footer


def past_tag(start: int, length: int, size: int) -> int:
    """Return where a tag ends, or where its header ends if it claims to be longer than the file."""
    return start + length if start + length <= size else min(start + 10, size)


def is_pointer(path: Path) -> bool:
    """Return whether a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def is_locked(path: Path) -> bool:
    """Return whether an MP4 or ASF (WMA) file says that its audio is encrypted (DRM)."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if head.startswith(_ASF_HEADER):
            return any(lock in head for lock in _ASF_LOCKS)
        for name, start, length in _boxes(file) if head[4:8] == b"ftyp" else ():
            if name == b"moov":
                file.seek(start)
                return b"sinf" in file.read(min(length, _MOOV_LIMIT))  # a track's protection
    return False


def is_joined_mp4(path: Path) -> bool:
    """Return whether a second MP4 follows the first, which no decoder looks for."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp" and [b[0] for b in _boxes(file)].count(b"moov") > 1


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, begin and bytes of an MP4's top-level boxes (ISO/IEC 14496-12, 4.2)."""
    size, position = os.fstat(file.fileno()).st_size, 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        elif length == 0:  # to the end
            length = size - position
        if length < 8:
            return
        yield name, position, length
        position += length
