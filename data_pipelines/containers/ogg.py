"""The pages of an Ogg file (RFC 3533): which are damaged, and where one stream ends for the next.

Radio recordings and joined files are chains of such links; libsndfile reads the first alone.
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
    """Return the spans of the links; what cannot be read between two of them is left out."""
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
        raise Unusable(f"longer than it says: {bytes_} are behind the last page of Ogg")
    if left_out > (1 - COMPLETE) * len(data):
        raise Unusable(f"corrupt: {left_out:,} of {len(data):,} bytes are no pages of Ogg")
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
    # The checksum of Ogg is zlib's with the bits in the other order and nothing inverted.
    checksum = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    stored = int.from_bytes(header[22:26].translate(_REVERSED), "big")
    return size if checksum == stored else 0
