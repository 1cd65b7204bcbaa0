"""FFmpeg as a decoder of files: chooses a stream, finds its length, and reads its samples.

FFmpeg's messages for people are not parsed, since a title may look like any of them.
"""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from data_pipelines.containers import kinds
from data_pipelines.containers.parts import COMPLETE, UNKNOWN, Stream, Unusable

_ENTRIES = (
    "format=format_name,duration,probe_score"
    ":stream=index,codec_type,codec_name,sample_fmt,sample_rate,duration,start_time"
    ":stream_disposition=default,attached_pic:stream_tags=DURATION"
)
# Formats without a stated length, for which ffprobe guesses it from the bit rate.
_RAW = frozenset("aac ac3 dts dtshd eac3 loas mlp mp2 mp3 truehd".split())  # noqa: SIM905
# Formats whose first header says how much follows; FFmpeg looks no further than that.
_ONE_AFTER_ANOTHER = frozenset(("ape", "flv", "mpc", "mpc8", "tta", "wv"))
_SURE = 50  # of 100: the least score at which a format is more than a guess from a few odd bytes
_BLOCK = 1 << 16  # samples of each channel at a time


class Track(NamedTuple):
    """A sound track: its number among the streams, its seconds (0: not known), float samples."""

    number: int
    seconds: float
    floats: bool


def is_installed() -> bool:
    """Return whether `ffmpeg` and `ffprobe` are installed."""
    return bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))


def probe(path: Path) -> Track:
    """Choose the track of a file: the first that is marked as default, or else the first.

    Raises:
      Unusable: FFmpeg finds no sound in it.
    """
    found = _ffprobe(path, "-show_entries", _ENTRIES)
    streams = found.get("streams", [])
    sounds = [s for s in streams if s.get("codec_type") == "audio" and _number(s, "sample_rate")]
    if _number(found.get("format", {}), "probe_score") < _SURE:
        guess = found.get("format", {}).get("format_name")  # FFmpeg is never sure of "mpeg"
        if guess != "mpeg" or kinds.kind(path)[0] != kinds.PROGRAM_STREAM:
            raise Unusable(UNKNOWN)
    if not sounds:
        raise Unusable("no sound: no sound track")
    chosen = next((s for s in sounds if s["disposition"]["default"]), sounds[0])
    pictures = sum(s.get("disposition", {}).get("attached_pic", 0) for s in streams)
    alone = len(streams) - pictures == 1
    formats = set(found.get("format", {}).get("format_name", "").split(","))
    if formats & _ONE_AFTER_ANOTHER:
        _check_end(path, chosen["index"])
    if "matroska" in formats and not alone:
        chosen["start_time"] = _start(path, chosen["index"])
    seconds = _seconds(chosen, found.get("format", {}), alone)
    codec = chosen.get("codec_name", "")
    floats = codec.startswith("pcm_f") or (
        codec == "wavpack" and chosen.get("sample_fmt", "").startswith(("flt", "dbl"))
    )
    return Track(chosen["index"], seconds, floats)


def _ffprobe(path: Path, *options: str) -> dict[str, Any]:
    """Return what ffprobe says about a file, or nothing if it cannot open it."""
    command: list[str | bytes] = ["ffprobe", "-v", "error", "-of", "json", *options]
    command += ["-protocol_whitelist", "file", "-i", _name(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        return json.loads(done.stdout.decode(errors="replace") or "{}")
    except ValueError:
        return {}


def _start(path: Path, track: int) -> float:
    """Return the second at which a track begins relative to others, not by its own header."""
    options = ["-select_streams", str(track), "-read_intervals", "%+#1"]
    packets = _ffprobe(path, *options, "-show_entries", "packet=pts_time").get("packets", [])
    return _number(packets[0], "pts_time") if packets else 0.0


def _check_end(path: Path, track: int) -> None:
    """Raise Unusable if much of a file comes after the last packet that FFmpeg finds in it."""
    options = ["-select_streams", str(track), "-show_entries", "packet=pos,size"]
    packets = _ffprobe(path, *options).get("packets", [])
    end = max((_number(x, "pos") + _number(x, "size") for x in packets), default=0.0)
    size = path.stat().st_size
    if end and size - end > (1 - COMPLETE) * size:
        raise Unusable(f"longer than it says: it goes on after {end:,.0f} of {size:,} bytes")


def _seconds(stream: dict[str, Any], container: dict[str, Any], alone: bool) -> float:
    """Return the stated length of a stream, or 0.0 if none is stated."""
    if _RAW & set(container.get("format_name", "").split(",")):
        return 0.0
    try:  # Matroska: the time at which the stream ends
        hours, minutes, seconds = stream["tags"]["DURATION"].split(":")
        end = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        return max(0.0, end - _number(stream, "start_time"))
    except (KeyError, ValueError):
        whole = _number(container, "duration") if alone else 0.0
        return _number(stream, "duration") or whole


def _number(values: dict[str, Any], key: str) -> float:
    try:
        return float(values.get(key, 0))
    except (TypeError, ValueError):  # "N/A"
        return 0.0


def streams(path: Path, strict: bool = False) -> Generator[Stream, None, None]:
    """Decode a file's track with its own rate and channels, which FFmpeg's output begins with.

    Args:
      strict: whether any error of the decoder ends it; otherwise undecodable frames are left out.

    Raises:
      Unusable: nothing can be decoded, or decoding does not reach the end.
    """
    track = probe(path)
    quiet = ["ffmpeg", "-nostdin", "-v", "quiet", "-protocol_whitelist", "file,pipe"]
    command: list[str | bytes] = [*quiet]
    command += ["-xerror", "-err_detect", "explode"] if strict else []
    command += ["-i", _name(path), "-map", f"0:{track.number}", "-c:a", "pcm_f32be"]
    command += ["-f", "au", "pipe:1"]

    # the head of the output, then blocks of samples
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None  # it was asked for
    try:
        head = process.stdout.read(24)
        if len(head) < 24:
            raise Unusable(UNKNOWN)
        _, start, _, _, rate, channels = struct.unpack(">4sIIIII", head)
        process.stdout.read(start - len(head))
        yield Stream(
            rate, track.seconds, _blocks(process, process.stdout, channels, rate), track.floats
        )
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _blocks(
    process: subprocess.Popen, stream: IO[bytes], channels: int, rate: int
) -> Iterator[np.ndarray]:
    decoded = 0
    while raw := stream.read(4 * channels * _BLOCK):
        whole = len(raw) - len(raw) % (4 * channels)
        decoded += whole // (4 * channels)
        yield np.frombuffer(raw[:whole], ">f4").reshape(-1, channels).astype(np.float32)
    if process.wait():
        if not decoded:
            raise Unusable(UNKNOWN)
        raise Unusable(f"corrupt: the decoder fails after {decoded / rate:.1f} s")


def _name(path: Path) -> bytes:
    """Return a name that FFmpeg takes for a file's, whatever characters it contains."""
    return b"file:" + os.path.abspath(os.fsencode(path))
