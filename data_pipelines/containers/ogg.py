"""The pages of an Ogg file (RFC 3533): which are damaged, and where its streams end.

Radio recordings and joined files are chains of streams, or links; libsndfile reads only the first.
"""

import mmap
import zlib
from pathlib import Path

from data_pipelines.containers.mpeg import past_tags
from data_pipelines.containers.parts import COMPLETE, Part, Span, Unusable, mapped

_FIRST, _LAST = 2, 4  # flags of a page
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def parts(path: Path, start: int) -> list[Part]:
    """Return a part for each link of the chain, which is one in most files.

    Raises:
      Unusable: a page is damaged, the last page is incomplete or not its stream's last, or
        something else follows.
    """
    with mapped(path) as data:
        links = _links(data, start)
    return [Part()] if len(links) == 1 else [Part([link]) for link in links]


def _links(data: mmap.mmap, start: int) -> list[Span]:
    """Return the spans of the links; unreadable bytes between two of them are left out."""
    begins: list[int] = []
    ends: list[int] = []
    flags = 0

    # page by page; a link begins with a first page that follows others
    position, lost, left_out = start, 0, 0
    while (page := data.find(b"OggS", position)) >= 0:
        lost += page - position
        size = _page(data, page)
        if not size:
            lost, position = lost + 4, page + 4
            continue
        first = data[page + 5] & _FIRST
        if first and not (begins and flags & _FIRST):  # several streams may begin side by side
            begins.append(page)
            ends.append(page)
            left_out += lost
        elif lost:
            raise Unusable(f"corrupt: {lost:,} damaged bytes before byte {page:,}")
        flags, lost, position = data[page + 5], 0, page + size
        if ends:
            ends[-1] = position

    if lost or not begins or not flags & _LAST:
        raise Unusable("truncated: the Ogg end-of-stream page is missing")
    behind = data[past_tags(data, position, len(data)) :]
    if len(behind) > (1 - COMPLETE) * len(data) and behind.strip(b"\0"):
        bytes_ = f"{len(behind):,} of {len(data):,} bytes"
        raise Unusable(f"longer than it says: {bytes_} follow the last Ogg page")
    if left_out > (1 - COMPLETE) * len(data):
        raise Unusable(f"corrupt: {left_out:,} of {len(data):,} bytes are not Ogg pages")
    return list(zip(begins, ends, strict=True))


def _page(data: mmap.mmap, start: int) -> int:
    """Return the bytes of the page at `start`, 0 if it is damaged or cut."""
    header = data[start : start + 27]
    if len(header) < 27:
        return 0
    sizes = data[start + 27 : start + 27 + header[26]]
    size = 27 + header[26] + sum(sizes)
    if start + size > len(data) or len(sizes) < header[26]:
        return 0
    page = header[:22] + bytes(4) + data[start + 26 : start + size]
    # Ogg's checksum is zlib's with the bits in reverse order and without inversion.
    checksum = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    stored = int.from_bytes(header[22:26].translate(_REVERSED), "big")
    return size if checksum == stored else 0
