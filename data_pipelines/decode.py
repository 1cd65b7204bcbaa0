"""Audio files of any common kind to int16 mono at one rate, and why a file cannot be used.

A file is decoded and resampled in blocks, so that the peak is the int16 result itself: 115 MB an
hour at 16 kHz, whatever the file's own rate, channels and encoding.
"""

import dataclasses
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import audioread
import numpy as np
import soundfile
import soxr

from data_pipelines import containers

_LIBSNDFILE = "aif aifc aiff au caf flac mp3 oga ogg opus rf64 snd w64 wav wave"
_FALLBACK = "aac ac3 ape m4a m4b m4p mka mp4 mpc tta webm wma wv"
SOUNDFILE_SUFFIXES = frozenset(f".{kind}" for kind in _LIBSNDFILE.split())
# What librosa.load would hand to audioread, which needs FFmpeg or a system decoder.
FALLBACK_SUFFIXES = frozenset(f".{kind}" for kind in _FALLBACK.split())
_BYTES_PER_SECOND = {  # typical; 16,000 (128 kbit/s) for the others: duration() guesses by it
    ".ape": 90_000,
    ".mp4": 250_000,
    ".tta": 90_000,
    ".webm": 150_000,
    ".wv": 90_000,
}
SUFFIXES = SOUNDFILE_SUFFIXES | FALLBACK_SUFFIXES

COMPLETE = 0.95  # a file with less than this share of what its header promises is truncated
MIN_RATE = 4000  # Hz; less is not music, and a header of 1 Hz would ask for 16,000 times the memory
_BLOCK = 1 << 16  # frames decoded at a time: fits the cache, and was fastest of 2^14 .. 2^20
_PIPE = 1 << 16  # bytes: what a pipe holds
_LARGEST_START = 1 << 28  # samples allocated on a header's word; more only as it comes
_ENDLESS = 1 << 60  # libsndfile's frame count when it does not know the length
_UNSTATED = 0x7FFF0000  # RIFF and AU sizes from here up are placeholders of streaming writers


class Unusable(Exception):
    """A file that cannot be used; `reason` is one line, its kind before the first colon."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["Unusable"], tuple[str]]:
        return Unusable, (self.reason,)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """An opened file: its rate in Hz, the frames it promises (0: none said), its blocks."""

    sample_rate: int
    promised: int
    blocks: Iterator[np.ndarray]  # float32 [n, channels]


def load(path: str | os.PathLike, sample_rate: int, min_seconds: float = 0.0) -> np.ndarray:
    """Decodes a file to int16 mono [n] at `sample_rate`.

    Channels are averaged, soxr resamples (its HQ setting, librosa's default), values are scaled
    by 32768, rounded to nearest and clipped. A 16-bit mono file already at `sample_rate` comes
    back bit for bit.

    Raises:
      Unusable: the file is empty, unreadable, locked, not audio, corrupt, truncated (less than
        COMPLETE of what its header promises, or an Ogg file without its end-of-stream page),
        digital silence, shorter than `min_seconds`, or holds NaN or infinite samples. An mp3
        that does not state its length cannot be seen to be truncated.
    """
    path = Path(path)
    _check_readable(path)
    opener = _open_audioread if path.suffix.lower() in FALLBACK_SUFFIXES else _open_soundfile
    with opener(path) as stream:
        if stream.sample_rate < MIN_RATE:
            raise Unusable(f"not music: a sample rate of {stream.sample_rate} Hz")
        audio, decoded = _convert(stream, sample_rate)
    if decoded < COMPLETE * stream.promised:
        seconds, whole = decoded / stream.sample_rate, stream.promised / stream.sample_rate
        raise Unusable(f"truncated: {seconds:.1f} of {whole:.1f} s are there")
    if decoded == 0:
        raise Unusable("empty: no sample in it")
    if len(audio) < min_seconds * sample_rate:
        seconds = len(audio) / sample_rate
        raise Unusable(f"too short: {seconds:.2f} s, the minimum is {min_seconds:g} s")
    if not audio.any():
        raise Unusable("digital silence")
    return audio


def duration(path: str | os.PathLike) -> float:
    """Returns a file's length in seconds by its header alone, 0.0 where that cannot be said.

    Of what soundfile does not read it is a guess by the size: starting a decoder costs too much.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a named pipe would be waited for
            return 0.0
        if path.suffix.lower() in FALLBACK_SUFFIXES:
            return path.stat().st_size / _BYTES_PER_SECOND.get(path.suffix.lower(), 16_000)
        info = soundfile.info(os.fsencode(path))
    except (OSError, soundfile.SoundFileError):
        return 0.0
    return info.duration if info.frames < _ENDLESS else 0.0


def _check_readable(path: Path) -> None:
    """Raises Unusable for what can be told without a decoder."""
    try:
        if not path.is_file():
            raise Unusable("unreadable: a broken link or not a regular file")
        if path.stat().st_size == 0:
            raise Unusable("empty: a file of 0 bytes")
        if containers.is_locked(path):
            raise Unusable("locked: protected by DRM")
        if containers.ogg_is_cut(path):
            raise Unusable("truncated: the Ogg end-of-stream page is missing")
    except OSError as error:
        raise Unusable(f"unreadable: {error.strerror or error}") from error


def _convert(stream: _Stream, sample_rate: int) -> tuple[np.ndarray, int]:
    """Resamples a stream's blocks; returns int16 [n] and the number of frames decoded."""
    resample = _resampler(stream.sample_rate, sample_rate)
    expected = stream.promised * sample_rate // stream.sample_rate + _BLOCK
    out = np.empty(min(expected, _LARGEST_START), np.int16)
    filled = decoded = 0
    last = np.zeros((0, 1), np.float32)  # flushes the resampler
    for block in _then(stream.blocks, last):
        if not np.isfinite(block).all():
            raise Unusable("not finite: NaN or infinite samples")
        mono = _mean(block)  # [n, channels] -> [n]
        decoded += len(mono)
        mono = resample(mono, block is last)  # [n] -> [n * sample_rate / stream.sample_rate]
        end = filled + len(mono)
        if end > len(out):
            out.resize(max(end, 2 * len(out)), refcheck=False)  # in place: no second copy
        np.multiply(mono, 32768.0, out=mono)
        np.rint(mono, out=mono)
        out[filled:end] = np.clip(mono, -32768, 32767, out=mono)
        filled = end
    out.resize(filled, refcheck=False)
    return out, decoded


def _then(blocks: Iterator[np.ndarray], last: np.ndarray) -> Iterator[np.ndarray]:
    yield from blocks
    yield last


def _mean(block: np.ndarray) -> np.ndarray:
    """Returns the mean of a block's channels: a new float32 [n] of float32 [n, channels]."""
    mono = block[:, 0].copy()  # a sum of columns: four times faster than mean(axis=1) on stereo
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if block.shape[1] > 1:
        mono *= np.float32(1 / block.shape[1])
    return mono


def _resampler(source: int, target: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    if source == target:
        return lambda mono, last: mono
    stream = soxr.ResampleStream(source, target, 1, dtype="float32")
    return lambda mono, last: stream.resample_chunk(mono, last=last)


@contextmanager
def _open_soundfile(path: Path) -> Iterator[_Stream]:
    """Opens what libsndfile reads; its errors become Unusable."""
    span = containers.mp3_span(path) if path.suffix.lower() == ".mp3" else None
    try:
        # libsndfile guesses the length of an mp3 that does not state it, and stops there, which
        # can be long before the end. From a pipe it has no length to stop at.
        plain = span is None or span.states_length
        with _sound_file(path) if plain else _pipe(path, span) as file:
            promised = 0 if file.frames >= _ENDLESS else _promised(file)
            yield _Stream(file.samplerate, promised, _soundfile_blocks(file))
    except soundfile.LibsndfileError as error:
        what = error.error_string or f"error {error.code} of libsndfile"
        raise Unusable(f"not audio, or a kind that cannot be read: {what.rstrip('.')}") from error


def _sound_file(path: Path) -> soundfile.SoundFile:
    return soundfile.SoundFile(os.fsencode(path))  # a name need not be UTF-8


@contextmanager
def _pipe(path: Path, span: containers.Mp3Span) -> Iterator[soundfile.SoundFile]:
    """Opens the audio of an mp3 through a pipe."""
    read_end, write_end = os.pipe()
    thread = threading.Thread(target=_feed, args=(path, span, write_end), daemon=True)
    thread.start()
    try:
        with soundfile.SoundFile(read_end, closefd=False) as file:
            yield file
    finally:
        os.close(read_end)  # the feeder, if it still writes, stops with BrokenPipeError
        thread.join()


def _feed(path: Path, span: containers.Mp3Span, write_end: int) -> None:
    # Unbuffered: a buffer would be flushed once more into the broken pipe when it closes.
    with (
        path.open("rb") as file,
        os.fdopen(write_end, "wb", buffering=0) as pipe,
        suppress(BrokenPipeError),
    ):
        file.seek(span.start)
        left = span.end - span.start
        while left > 0 and (block := file.read(min(left, _PIPE))):
            pipe.write(block)
            left -= len(block)


def _soundfile_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yields float32 [n, channels], one buffer used again and again."""
    buffer = np.empty((_BLOCK, file.channels), np.float32)
    decoded = 0
    while True:
        try:
            block = file.read(out=buffer)
        except soundfile.LibsndfileError as error:
            seconds = decoded / file.samplerate
            raise Unusable(f"corrupt: the decoder fails after {seconds:.1f} s") from error
        if not len(block):
            return
        decoded += len(block)
        yield block


def _promised(file: soundfile.SoundFile) -> int:
    """Returns the frames that the header promises.

    Of uncompressed files libsndfile silently counts what is there, and only its log says
    "data : 3528000 (should be 1764000)": the size stated, and the size found.
    """
    shares = [
        int(stated) / max(1, int(found))
        for stated, found in re.findall(r": (\d+) \(should be (\d+)\)", file.extra_info)
        if int(stated) < _UNSTATED
    ]
    return math.floor(file.frames * max([1.0, *shares]))


@contextmanager
def _open_audioread(path: Path) -> Iterator[_Stream]:
    """Opens what needs FFmpeg or a system decoder, as librosa.load does, but in blocks."""
    try:
        with audioread.audio_open(str(path)) as file:
            # Of a raw stream the length is a guess from the bit rate.
            stated = 0 if path.suffix.lower() in (".aac", ".ac3") else file.duration or 0
            promised = int(stated * file.samplerate)
            yield _Stream(file.samplerate, promised, _audioread_blocks(file, file.channels))
    except audioread.NoBackendError as error:
        names = {backend.__name__ for backend in audioread.available_backends()}
        if names - {"RawAudioFile"}:  # which is Python's own and reads none of these
            raise Unusable("not audio, or a kind that cannot be read") from error
        raise Unusable(f"no decoder: {path.suffix} needs FFmpeg on this machine") from error
    except (audioread.DecodeError, OSError, EOFError) as error:
        raise Unusable(f"corrupt: {type(error).__name__} of the decoder") from error


def _audioread_blocks(chunks: Iterator[bytes], channels: int) -> Iterator[np.ndarray]:
    """Yields float32 [n, channels] of audioread's 16-bit chunks, which may split a frame."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        whole = len(rest) - len(rest) % (2 * channels)
        block = np.frombuffer(rest[:whole], "<i2").reshape(-1, channels)  # bytes -> [n, channels]
        rest = rest[whole:]
        yield block.astype(np.float32) * np.float32(1 / 32768)
