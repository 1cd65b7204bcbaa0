"""Deformations of audio that should not disturb an encoder: noise, MP3, gain, pitch, speed.

noise:20    white noise, 20 dB below the record
mp3:64      MP3 of 64 kbit/s and back, by FFmpeg
gain:-12    12 dB less; what exceeds 16 bits is clipped
pitch:50c   half a semitone up, at the same speed
speed:1.02  2 % faster, and higher by as much, as a tape; the times of labels move along
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import soundfile
import soxr

from data_pipelines.containers import ffmpeg

KNOWN = "noise:20, mp3:64, gain:-12, pitch:50c, speed:1.02"
_SPEC = re.compile(r"(noise|mp3|gain|pitch|speed):([+-]?\d+(?:\.\d+)?)(c?)")
_BOUNDS = {  # of what can be asked for
    "noise": (-40, 100),
    "mp3": (8, 320),
    "gain": (-60, 60),
    "pitch": (-1200, 1200),
    "speed": (0.5, 2),
}


class Records(Protocol):
    """What is deformed: the part of `labelled_records.Labelled` that is used here."""

    @property
    def labels(self) -> Sequence[Mapping[str, Any]]:
        """Return the labels of each record."""

    @property
    def lengths(self) -> np.ndarray:
        """Return the samples of each record."""

    @property
    def sample_rate(self) -> int:
        """Return Hz of what `read` gives."""

    @property
    def digest(self) -> str:
        """Return a digest of the audio."""

    def read(self, record: int) -> np.ndarray:
        """Read a record's audio, int16 [n]."""


class Deformation(NamedTuple):
    """One deformation: its kind, and how much of it."""

    kind: str
    amount: float

    @property
    def speed(self) -> float:
        """Return how many times as fast the audio becomes."""
        return self.amount if self.kind == "speed" else 1.0


def parse(spec: str) -> Deformation:
    """Read a deformation such as "noise:20".

    Raises:
      ValueError: its name is unknown, its amount is out of bounds, or FFmpeg is missing.
    """
    match = _SPEC.fullmatch(spec.strip())
    if not match or (match[3] == "c") != (match[1] == "pitch"):
        raise ValueError(f"there is no deformation {spec.strip()!r}: use some of {KNOWN}")
    kind, amount = match[1], float(match[2])
    least, most = _BOUNDS[kind]
    if not least <= amount <= most:
        raise ValueError(f"{spec.strip()}: use an amount from {least} to {most}")
    if kind == "mp3" and not ffmpeg.is_installed():
        raise ValueError(f"{spec.strip()} needs FFmpeg: install it, or leave this deformation out")
    return Deformation(kind, amount)


class Deformed(NamedTuple):
    """The records of a split, deformed as they are read; fields as of `labelled_records.Labelled`.

    records: as they were.
    """

    records: Records
    deformation: Deformation

    @property
    def labels(self) -> Sequence[Mapping[str, Any]]:
        """Return the labels; where the speed changes, their times are those of the new audio."""
        speed = self.deformation.speed
        return [at_speed(record, speed) for record in self.records.labels]

    @property
    def lengths(self) -> np.ndarray:
        """Return the samples of each record, int64 [records]."""
        return (self.records.lengths / self.deformation.speed).astype(np.int64)

    @property
    def digest(self) -> str:
        """Return a digest of the audio and of what is done to it."""
        kind, amount = self.deformation
        return f"{self.records.digest}-{kind}:{amount:g}"

    def read(self, record: int) -> np.ndarray:
        """Read a record's audio, deformed: int16 [n]."""
        audio, rate = self.records.read(record), self.records.sample_rate
        kind, amount = self.deformation
        if kind == "noise":
            return noise(audio, amount, record)
        return _KINDS[kind](audio, amount, rate)


def at_speed(record: Mapping[str, Any], speed: float) -> Mapping[str, Any]:
    """Return a record's labels with every time in them divided by a speed."""
    if speed == 1:
        return record
    moved = dict(record)
    if "beat_times" in record:
        moved["beat_times"] = np.asarray(record["beat_times"]) / speed
    for name, times in (("beats", ("time",)), ("notes", ("onset", "offset"))):
        if name in record:
            inner = dict(record[name])
            moved[name] = inner | {x: np.asarray(inner[x]) / speed for x in times if x in inner}
    return moved


def noise(audio: np.ndarray, decibels: float, seed: int) -> np.ndarray:
    """Add white noise whose power is the given number of decibels below that of the audio [n]."""
    x = audio.astype(np.float64)
    level = math.sqrt(np.mean(x**2)) * 10 ** (-decibels / 20)
    return _int16(x + level * np.random.default_rng(seed).standard_normal(len(x)))


def _int16(x: np.ndarray) -> np.ndarray:
    return np.clip(np.round(x), -32768, 32767).astype(np.int16)


def _gain(audio: np.ndarray, decibels: float, rate: int) -> np.ndarray:
    return _int16(audio * 10 ** (decibels / 20))


def _pitch(audio: np.ndarray, cents: float, rate: int) -> np.ndarray:
    import librosa  # it takes seconds to import

    x = audio.astype(np.float32) / 32768
    moved = librosa.effects.pitch_shift(x, sr=rate, n_steps=cents, bins_per_octave=1200)
    return _int16(32768 * moved)


def _speed(audio: np.ndarray, speed: float, rate: int) -> np.ndarray:
    moved = soxr.resample(audio.astype(np.float32), speed * rate, rate)
    return _fitted(_int16(moved), int(len(audio) / speed))


def _mp3(audio: np.ndarray, kilobits: float, rate: int) -> np.ndarray:
    """Encode and decode; the padding that FFmpeg adds at both ends is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        plain, coded, decoded = (Path(folder, name) for name in ("a.wav", "b.mp3", "c.wav"))
        soundfile.write(plain, audio, rate)
        quiet = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i"]
        encode = [*quiet, plain, "-c:a", "libmp3lame", "-b:a", f"{kilobits:g}k", coded]
        for command in (encode, [*quiet, coded, "-ar", str(rate), decoded]):
            done = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, check=False
            )
            if done.returncode:
                said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
                raise ValueError(f"mp3:{kilobits:g} failed: {said[0]}")
        heard, _ = soundfile.read(decoded, dtype="int16")
    return _fitted(heard, len(audio))


def _fitted(audio: np.ndarray, length: int) -> np.ndarray:
    """Cut audio to a length, or pad it with silence."""
    return np.pad(audio[:length], (0, max(length - len(audio), 0)))


_KINDS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "mp3": _mp3,
    "gain": _gain,
    "pitch": _pitch,
    "speed": _speed,
}
