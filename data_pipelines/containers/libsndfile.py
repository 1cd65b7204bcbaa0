"""libsndfile as a decoder of files; it is given each part as if it were a whole file."""

import contextlib
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import soundfile

from data_pipelines.containers import chunks, flac, kinds, mpeg, ogg
from data_pipelines.containers.parts import UNKNOWN, Part, Stream, Unusable, View

_BLOCK = 1 << 16  # frames decoded at a time: fits the cache, and was fastest of 2^14 .. 2^20
_PIPE = 1 << 16  # bytes: what a pipe holds
_ENDLESS = 1 << 60  # libsndfile's frame count when it does not know the length


def streams(path: Path) -> Generator[Stream, None, None]:
    """Open the parts of a file that libsndfile reads; its errors become Unusable."""
    for part in _parts(path):
        try:
            with opened(path, part) as file:
                known = part.frames or (file.frames if file.frames < _ENDLESS else 0)
                promised = part.share * known / file.samplerate
                floats = file.subtype in ("FLOAT", "DOUBLE")
                blocks = _blocks(file, 0 if part.piped else known)
                yield Stream(file.samplerate, promised, blocks, floats)
        except soundfile.LibsndfileError as error:
            what = (error.error_string or f"error {error.code} of libsndfile").rstrip(".")
            if "not a regular file" in what:  # its message for any file that is not an mp3
                what = "Format not recognised"
            raise Unusable(f"{UNKNOWN}: {what}") from error


def _parts(path: Path) -> list[Part]:
    kind, start = kinds.kind(path)
    found = {"chunks": chunks.parts, "flac": flac.parts, "ogg": ogg.parts, "": mpeg.parts}
    return found[kind](path, start)


@contextlib.contextmanager
def opened(path: Path, part: Part) -> Iterator[soundfile.SoundFile]:
    if part.is_file:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # a name need not be UTF-8
            yield file
    elif part.piped:
        with _pipe(path, part) as file:
            yield file
    else:
        with View(path, part) as view, soundfile.SoundFile(view) as file:
            yield file


@contextlib.contextmanager
def _pipe(path: Path, part: Part) -> Iterator[soundfile.SoundFile]:
    """Open a part of an mp3 through a pipe.

    libsndfile guesses the length of an mp3 that does not state it, and stops there, possibly long
    before the end. With a pipe it has no length at which to stop.
    """
    read_end, write_end = os.pipe()
    thread = threading.Thread(target=_feed, args=(path, part, write_end), daemon=True)
    thread.start()
    try:
        with soundfile.SoundFile(read_end, closefd=False) as file:
            yield file
    finally:
        os.close(read_end)  # the feeder, if it still writes, stops with BrokenPipeError
        thread.join()


def _feed(path: Path, part: Part, write_end: int) -> None:
    # Unbuffered: a buffer would be flushed once more into the broken pipe when it closes.
    with (
        View(path, part) as view,
        os.fdopen(write_end, "wb", buffering=0) as pipe,
        contextlib.suppress(BrokenPipeError),
    ):
        while block := view.read(_PIPE):
            pipe.write(block)


def _blocks(file: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    """Yield float32 [n, channels], one buffer used again and again; `frames` of them if not 0."""
    block_size = min(_BLOCK, 8 * _BLOCK // file.channels)
    buffer = np.empty((block_size, file.channels), np.float32)
    decoded = 0
    while not frames or decoded < frames:  # a FLAC decoder fails on a block that goes further
        wanted = min(block_size, frames - decoded) if frames else block_size
        try:
            block = file.read(out=buffer[:wanted])
        except soundfile.LibsndfileError as error:
            seconds = decoded / file.samplerate
            raise Unusable(f"corrupt: the decoder fails after {seconds:.1f} s") from error
        if not len(block):
            return
        decoded += len(block)
        yield block


def duration(path: Path) -> float:
    """Return a file's length in seconds by its header alone, or 0.0 if the header does not tell."""
    try:
        info = soundfile.info(os.fsencode(path))
    except soundfile.SoundFileError:
        return 0.0
    return info.duration if info.frames < _ENDLESS else 0.0
