"""Turns audio files of any common kind into int16 mono at one rate, or says why it cannot.

A file is decoded and resampled in blocks, so that the int16 result takes most of the memory: 115 MB
per hour of audio at 16 kHz, whatever the file's own rate, channels and encoding. libsndfile decodes
what it can. FFmpeg, if it is installed, decodes what libsndfile does not know or gives up on.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import soxr

from data_pipelines.containers import ffmpeg, kinds, libsndfile
from data_pipelines.containers.parts import COMPLETE, UNKNOWN, Stream, Unusable

__all__ = ["COMPLETE", "SUFFIXES", "Unusable", "check_heard", "duration", "load"]

_LIBSNDFILE = "aif aifc aiff au caf flac mp3 oga ogg opus rf64 snd w64 wav wave"
_FFMPEG = "aac ac3 ape m4a m4b m4p mka mp4 mpc tta webm wma wv"
_FFMPEG_SUFFIXES = frozenset(f".{kind}" for kind in _FFMPEG.split())
SUFFIXES = _FFMPEG_SUFFIXES | {f".{kind}" for kind in _LIBSNDFILE.split()}
_BYTES_PER_SECOND = {  # typical; 16,000 (128 kbit/s) for the others: duration() guesses by it
    ".ape": 90_000,
    ".mp4": 250_000,
    ".tta": 90_000,
    ".webm": 150_000,
    ".wv": 90_000,
}

MIN_RATE = 4000  # Hz; less is not music, and a header of 1 Hz would ask for 16,000 times the memory
QUIETEST = 1e-4  # of full scale, -80 dB: what is below is not music but rounding noise
_TOO_LONG = 1.05  # a file with more than this share of its stated length holds something else
_GRACE = 0.2  # seconds beyond it that encoders add to short files
_FRAME = 0.02  # seconds: less than a decoder leaves out at a time
_BEYOND = 0.05  # share of a float file's samples beyond -1..1 that loud passages do not explain,
_FEW = 100  # if it is more than this many samples
_CANCELLED = 0.01  # energy of the channels' mean, by theirs: -20 dB
_EVERY = 7  # samples from one to the next of those whose energy is measured
_BLOCK = 1 << 16  # frames decoded at a time: fits the cache, and was fastest of 2^14 .. 2^20
_LARGEST_START = 1 << 28  # samples allocated because a header says so; more only as they arrive


_Decoder = Callable[[Path], Generator[Stream, None, None]]


@dataclasses.dataclass
class _Sound:
    """What was decoded of a file so far."""

    audio: np.ndarray  # int16 [n], with room for more
    samples: int = 0
    seconds: float = 0.0
    promised: float = 0.0
    floats: int = 0  # samples that were stored as floats
    beyond: int = 0  # of these, beyond -1..1
    peak: float = 0.0

    def add(self, mono: np.ndarray, floats: bool) -> None:
        """Add float32 [n], which is overwritten."""
        end = self.samples + len(mono)
        if end > len(self.audio):
            self.audio.resize(max(end, 2 * len(self.audio)), refcheck=False)  # no second copy
        if floats and len(mono):
            self.floats += len(mono)
            self.beyond += int(np.count_nonzero(np.abs(mono) > 1))
            self.peak = max(self.peak, float(np.abs(mono).max()))
        np.multiply(mono, 32768.0, out=mono)
        np.rint(mono, out=mono)
        self.audio[self.samples : end] = np.clip(mono, -32768, 32767, out=mono)
        self.samples = end


class _Mix:
    """Channels to mono: their mean, or the channel asked for; and the energy of both."""

    def __init__(self, channel: int | None = None) -> None:
        self.channel = channel
        self.mean = 0.0
        self.channels = np.zeros(0)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """Return a new float32 [n] of a block, float32 [n, channels]."""
        count = block.shape[1]
        if self.channel is not None:
            return block[:, min(self.channel, count - 1)].copy()
        mono = block[:, 0].copy()  # a sum of columns: four times faster than mean(axis=1) on stereo
        if count == 1:
            return mono
        for channel in range(1, count):
            mono += block[:, channel]
        mono *= np.float32(1 / count)
        if len(self.channels) < count:
            self.channels = np.pad(self.channels, (0, count - len(self.channels)))
        for channel in range(count):
            self.channels[channel] += _energy(block[::_EVERY, channel])
        self.mean += _energy(mono[::_EVERY])
        return mono

    @property
    def alone(self) -> int | None:
        """The first loud channel, if the channels cancel one another in their mean."""
        if not len(self.channels) or self.mean >= _CANCELLED * self.channels.mean():
            return None
        return int(np.argmax(self.channels >= self.channels.max() / 2))


def load(
    path: str | os.PathLike,
    sample_rate: int,
    min_seconds: float = 0.0,
    quietest: float = QUIETEST,
) -> np.ndarray:
    """Decode a file to int16 mono [n] at `sample_rate`.

    Channels are averaged, or a loud one is taken where they cancel one another; soxr resamples
    (its HQ setting, librosa's default), values are scaled by 32768, rounded to nearest and
    clipped. A 16-bit mono file already at `sample_rate` comes back bit for bit. Of several sound
    tracks the default one is decoded; files that were joined are decoded to the end of the last.

    Args:
      quietest: the least deviation from the mean that counts as sound, as a share of full scale.

    Raises:
      Unusable: the file is empty, unreadable, locked, not audio, corrupt, truncated (less than
        COMPLETE of what it promises, or an Ogg file without its end-of-stream page), longer than
        it promises, shorter than `min_seconds`, holds NaN or infinite samples, floats of another
        scale than -1..1, or no sound.
    """
    path = Path(path)
    try:
        _check_readable(path)
        sound = _decode(path, sample_rate)
    except OSError as error:
        raise Unusable(f"unreadable: {error.strerror or error}") from error
    audio = sound.audio
    if len(audio) < min_seconds * sample_rate:
        seconds = len(audio) / sample_rate
        raise Unusable(f"too short: {seconds:.2f} s, the minimum is {min_seconds:g} s")
    if sound.beyond > max(_FEW, _BEYOND * sound.floats):
        share = 100 * sound.beyond / sound.floats
        raise Unusable(
            f"out of scale: {share:.0f} % of its floats are beyond -1..1, up to {sound.peak:.4g}"
        )
    check_heard(audio, sample_rate, quietest)
    return audio


def check_heard(audio: np.ndarray, sample_rate: int, quietest: float = QUIETEST) -> None:
    """Raise Unusable for int16 [n] in which nothing can be heard.

    The tenth of a second at each end is ignored if the rest is longer: resampling makes a constant
    ring there.
    """
    if not audio.any():
        raise Unusable("no sound: digital silence")
    edge = sample_rate // 10
    inner = audio[edge:-edge] if len(audio) > 4 * edge else audio
    total = square = 0.0
    for start in range(0, len(inner), _BLOCK):
        block = inner[start : start + _BLOCK].astype(np.float64)
        total += block.sum()
        square += _energy(block)
    mean = total / len(inner)
    deviation = max(0.0, square / len(inner) - mean * mean) ** 0.5
    if deviation >= max(32768 * quietest, 1e-3):
        return
    if abs(mean) > max(deviation, 0.5):
        raise Unusable(f"no sound: a constant value of {mean / 32768:.3g}")
    if quietest:
        raise Unusable(f"no sound: below {20 * np.log10(quietest):.0f} dB")


def duration(path: str | os.PathLike) -> float:
    """Return a file's length in seconds by its header alone, or 0.0 if the header does not tell.

    For files that soundfile cannot read it is guessed from the size: starting a decoder would cost
    too much time.
    """
    path = Path(path)
    try:
        if not path.is_file():  # reading a named pipe would block
            return 0.0
        if kinds.needs_ffmpeg(kinds.kind(path)[0]):
            return path.stat().st_size / _BYTES_PER_SECOND.get(path.suffix.lower(), 16_000)
        return libsndfile.duration(path)
    except OSError:
        return 0.0


def _check_readable(path: Path) -> None:
    """Raise Unusable for what can be told without a decoder."""
    if not path.is_file():
        raise Unusable("unreadable: a broken link or not a regular file")
    if path.stat().st_size == 0:
        raise Unusable("empty: a file of 0 bytes")
    if kinds.is_pointer(path):
        raise Unusable("not audio: a pointer of Git LFS in place of the file; run git lfs pull")
    if kinds.is_locked(path):
        raise Unusable("locked: protected by DRM")
    if kinds.is_joined_mp4(path):
        raise Unusable("longer than it says: a second MP4 follows the first")


def _decode(path: Path, sample_rate: int) -> _Sound:
    """Decode with the decoder that the contents ask for, then with the other.

    If both fail, the reason is that of the first, unless only the second knows the file.
    """
    # kinds that libsndfile does not know
    kind, _ = kinds.kind(path)
    if kinds.needs_ffmpeg(kind):
        if not ffmpeg.is_installed():
            raise _no_decoder(kind)
        try:
            return _whole(ffmpeg.streams, path, sample_rate)
        except Unusable as error:
            if error.reason == UNKNOWN:
                raise Unusable(f"corrupt: {kind} that FFmpeg cannot open") from None
            raise

    # libsndfile, and FFmpeg where it gives up
    try:
        return _whole(libsndfile.streams, path, sample_rate)
    except Unusable as first:
        if not first.reason.startswith((UNKNOWN, "corrupt", "empty")):
            raise
        if not ffmpeg.is_installed():
            if first.reason.startswith(UNKNOWN) and path.suffix.lower() in _FFMPEG_SUFFIXES:
                raise _no_decoder(path.suffix) from None
            raise
        try:
            sound = _whole(functools.partial(ffmpeg.streams, strict=True), path, sample_rate)
        except Unusable as second:
            known = not second.reason.startswith(UNKNOWN)
            raise (second if first.reason.startswith(UNKNOWN) and known else first) from None
        if first.reason.startswith("corrupt") and abs(sound.seconds - sound.promised) > _FRAME:
            raise  # FFmpeg has left the damaged parts out
        return sound


def _energy(samples: np.ndarray) -> float:
    """Return the sum of squares; not by a matrix product, which would start threads."""
    samples = np.ascontiguousarray(samples)
    return float(np.einsum("n,n->", samples, samples))


def _no_decoder(kind: str) -> Unusable:
    return Unusable(f"no decoder: {kind} needs FFmpeg on this machine")


def _whole(decoder: _Decoder, path: Path, sample_rate: int) -> _Sound:
    """Decode a file and compare its length with what it promises."""
    mix = _Mix()
    sound = _convert(decoder, path, sample_rate, mix)
    if (channel := mix.alone) is not None:
        sound = _convert(decoder, path, sample_rate, _Mix(channel))
    seconds, promised = sound.seconds, sound.promised
    if seconds < COMPLETE * promised:
        raise Unusable(f"truncated: {seconds:.1f} of {promised:.1f} s are there")
    if promised and seconds > _TOO_LONG * promised + _GRACE:
        raise Unusable(f"longer than it says: {seconds:.1f} s instead of {promised:.1f} s")
    if not sound.samples:
        raise Unusable("empty: it holds no samples")
    return sound


def _convert(decoder: _Decoder, path: Path, sample_rate: int, mix: _Mix) -> _Sound:
    """Mix and resample the blocks of all parts of a file."""
    sound = _Sound(np.empty(0, np.int16))
    last = np.zeros((0, 1), np.float32)  # flushes the resampler
    with contextlib.closing(decoder(path)) as streams:
        for stream in streams:
            if stream.sample_rate < MIN_RATE:
                raise Unusable(f"not music: a sample rate of {stream.sample_rate} Hz")
            sound.promised += stream.promised
            expected = int(sound.promised * sample_rate) + _BLOCK
            if not len(sound.audio):
                sound.audio = np.empty(min(expected, _LARGEST_START), np.int16)

            resample = _resampler(stream.sample_rate, sample_rate)
            for block in _then(stream.blocks, last):
                if not np.isfinite(block).all():
                    raise Unusable("not finite: NaN or infinite samples")
                sound.seconds += len(block) / stream.sample_rate
                mono = mix(block) if block is not last else last[:, 0].copy()
                sound.add(resample(mono, block is last), stream.floats)
    sound.audio.resize(sound.samples, refcheck=False)
    return sound


def _then(blocks: Iterator[np.ndarray], last: np.ndarray) -> Iterator[np.ndarray]:
    yield from blocks
    yield last


def _resampler(source: int, target: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    if source == target:
        return lambda mono, last: mono
    stream = soxr.ResampleStream(source, target, 1, dtype="float32")
    return lambda mono, last: stream.resample_chunk(mono, last=last)
