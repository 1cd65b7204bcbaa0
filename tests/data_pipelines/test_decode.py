"""Decoding against signals known in closed form, and every kind of file that cannot be used."""

import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import decode
from data_pipelines.containers import ffmpeg, kinds

RATE = 16_000


def tone(rate: int, seconds: float, hertz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    """Returns a sine, float64 [n]."""
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def noise(seconds: float, rate: int = RATE) -> np.ndarray:
    """Returns seeded noise, float32 [n]."""
    generator = np.random.default_rng(0)
    return generator.normal(0, 0.1, round(rate * seconds)).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int, **options: str) -> Path:
    """Writes a file in small blocks: libsndfile's Vorbis encoder overflows its stack on large."""
    channels = audio.shape[1] if audio.ndim == 2 else 1
    with soundfile.SoundFile(str(path), "w", rate, channels, **options) as file:
        for start in range(0, len(audio), 4096):
            file.write(audio[start : start + 4096])
    return path


def bare_mp3(path: Path, audio: np.ndarray, mode: str) -> bytes:
    """Returns an mp3 without its first frame, which is the one that states the length."""
    options = {"bitrate_mode": mode, "compression_level": 0.3}
    with soundfile.SoundFile(str(path), "w", 44_100, 1, **options) as file:
        file.write(audio)
    whole = path.read_bytes()
    rates = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]  # kbit/s, layer III
    length = 144_000 * rates[whole[2] >> 4] // 44_100 + (whole[2] >> 1 & 1)
    return whole[length:]


def reason(path: Path, min_seconds: float = 2.0) -> str:
    with pytest.raises(decode.Unusable) as error:
        decode.load(path, RATE, min_seconds)
    assert "\n" not in error.value.reason
    return error.value.reason


def test_sixteen_bit_mono_at_the_rate_is_bit_exact(tmp_path):
    samples = np.random.default_rng(1).integers(-32768, 32768, 70_001).astype(np.int16)
    for suffix in ("wav", "flac"):
        path = write(tmp_path / f"a.{suffix}", samples, RATE)
        np.testing.assert_array_equal(decode.load(path, RATE), samples)


def test_rounds_to_nearest_clips_and_averages_channels(tmp_path):
    steps = np.array([0.4, 0.6, -0.4, -0.6, 1.5, 2.5, 40_000, -40_000, 32_767, -32_768.0])
    expected = [0, 1, 0, -1, 2, 2, 32_767, -32_768, 32_767, -32_768]  # halves to even
    path = write(tmp_path / "mono.wav", steps / 32_768, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(decode.load(path, RATE), expected)
    three = np.stack([noise(1.0), noise(1.0)[::-1], tone(RATE, 1.0)], axis=1)  # [n, channels]
    path = write(tmp_path / "three.wav", three, RATE, subtype="FLOAT")
    np.testing.assert_allclose(decode.load(path, RATE), 32_768 * three.mean(axis=1), atol=0.51)


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("target", [16_000, 24_000])
def test_resampling_keeps_tones_in_place(tmp_path, source, target):
    """Against the tone itself, sampled at the target rate; 3 s, so that blocks are joined."""
    path = write(tmp_path / "tone.wav", tone(source, 3.0, 1000.0), source, subtype="FLOAT")
    audio = decode.load(path, target)
    assert len(audio) == 3 * target
    inner = slice(target // 10, -target // 10)  # the filter rings at the ends
    expected = 32_768 * tone(target, 3.0, 1000.0)
    np.testing.assert_allclose(audio[inner], expected[inner], atol=4)


def test_resampling_does_not_alias(tmp_path):
    path = write(tmp_path / "high.wav", tone(44_100, 2.0, 10_000.0), 44_100, subtype="FLOAT")
    assert np.abs(decode.load(path, RATE, quietest=0)[1600:-1600]).max() <= 1  # -90 dB


@pytest.mark.parametrize("name", ["a.flac", "a.aiff", "a.au", "a.caf", "a.w64", "a.mp3", "a.ogg"])
def test_kinds_of_file(tmp_path, name):
    stereo = np.stack([tone(44_100, 4.0), tone(44_100, 4.0, 660.0)], axis=1)
    path = write(tmp_path / name, stereo, 44_100)
    expected = 16_384 * (tone(RATE, 4.0) + tone(RATE, 4.0, 660.0))
    audio = decode.load(path, RATE)
    assert len(audio) == len(expected)
    inner = slice(1600, -1600)
    error = np.std(audio[inner] - expected[inner]) / np.std(expected)
    assert error < (0.03 if path.suffix in (".mp3", ".ogg") else 1e-3)
    assert decode.duration(path) == pytest.approx(4.0)


def test_opus(tmp_path):
    path = write(tmp_path / "a.opus", tone(48_000, 4.0), 48_000, format="OGG", subtype="OPUS")
    audio = decode.load(path, RATE)
    spectrum = np.abs(np.fft.rfft(audio[:RATE]))
    assert abs(len(audio) - 4 * RATE) < 800 and spectrum.argmax() == 440


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_that_does_not_state_its_length_is_read_to_its_end(tmp_path, mode):
    """Loud, then quiet: a guess by the first frames' bit rate would stop a variable one early."""
    loud_then_quiet = noise(30.0, 44_100) * np.where(np.arange(30 * 44_100) < 4 * 44_100, 2, 1e-3)
    bare = bare_mp3(tmp_path / "whole.mp3", loud_then_quiet, mode)
    id3 = b"ID3\x03\x00\x00\x00\x00\x02\x00" + bytes(256)
    ape = b"art" * 9000 + b"APETAGEX" + struct.pack("<IIIIQ", 2000, 27_032, 1, 0, 0)
    for name, content in {"bare": bare, "tags": id3 + bare + ape + b"TAG" + bytes(125)}.items():
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(content)
        assert len(decode.load(path, RATE)) / RATE == pytest.approx(30.0, abs=0.1)


def test_memory_is_the_result_and_little_more(tmp_path):
    path = write(tmp_path / "long.wav", np.tile(noise(6.0, 48_000)[:, None], (40, 2)), 48_000)
    tracemalloc.start()
    audio = decode.load(path, RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(audio) == 240 * RATE
    assert peak < audio.nbytes + 4e6  # the decoded floats alone would be 92 MB


CUT = {  # how a file of 10 s looks that has lost its second half, by kind
    "wav": "truncated: 5.0 of 10.0 s",
    "aiff": "truncated: 5.0 of 10.0 s",
    "au": "truncated: 5.0 of 10.0 s",
    "w64": "truncated: 5.0 of 10.0 s",
    "mp3": "truncated: [45].[0-9] of 10.0 s",
    "ogg": "truncated: the Ogg end-of-stream page is missing",
    "flac": "truncated: [45].[0-9] of 10.0 s",
    "caf": "truncated: [45].[0-9] of 10.0 s",
    "rf64": "truncated: 5.0 of 10.0 s",
}


@pytest.mark.parametrize("kind", sorted(CUT))
def test_truncated(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", noise(10.0), RATE)
    assert len(decode.load(path, RATE)) == 10 * RATE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(decode.Unusable, match=CUT[kind]):
        decode.load(path, RATE)


def test_nearly_whole_is_usable_and_unstated_length_is_not_truncated(tmp_path):
    path = write(tmp_path / "a.wav", noise(10.0), RATE)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: int(0.97 * len(content))])
    assert len(decode.load(path, RATE)) == pytest.approx(9.7 * RATE, abs=100)
    data = content.index(b"data") + 4
    for unstated in (b"\xff\xff\xff\xff", bytes(4)):  # as a pipe's writer leaves it, or a dead one
        content[data : data + 4] = content[4:8] = unstated
        path.write_bytes(content)
        assert len(decode.load(path, RATE)) == 10 * RATE


def test_corrupt_in_the_middle(tmp_path):
    for kind in ("flac", "mp3"):
        path = write(tmp_path / f"a.{kind}", noise(10.0), RATE)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 3000] = np.random.default_rng(2).bytes(3000)
        path.write_bytes(content)
        assert reason(path).startswith("corrupt: ")


def test_what_is_no_music(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    assert reason(path) == "empty: a file of 0 bytes"
    path.write_text("this is not audio")
    assert reason(path).startswith("not audio, or a kind that cannot be read")
    write(path, np.zeros(0), RATE)
    assert reason(path) == "empty: it holds no samples"
    write(path, np.zeros(5 * RATE), RATE)
    assert reason(path) == "no sound: digital silence"
    write(path, noise(5.0) * 1e-9, RATE, subtype="FLOAT")  # less than half a step of 16 bits
    assert reason(path) == "no sound: digital silence"
    write(path, noise(1.5), RATE)
    assert reason(path) == "too short: 1.50 s, the minimum is 2 s"
    assert len(decode.load(path, RATE, 1.5)) == 1.5 * RATE
    for bad in (np.nan, np.inf, -np.inf):
        audio = noise(5.0)
        audio[70_000] = bad
        write(path, audio, RATE, subtype="FLOAT")
        assert reason(path).startswith("not finite")
    write(path, noise(5.0), 1000)
    assert reason(path) == "not music: a sample rate of 1000 Hz"
    path.unlink()
    assert reason(path).startswith("unreadable")
    path.symlink_to(tmp_path / "nowhere.wav")
    assert reason(path).startswith("unreadable")
    assert decode.duration(path) == 0.0


def box(kind: bytes, *content: bytes) -> bytes:
    """Returns a box of an MP4 file."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def test_locked(tmp_path):
    path = tmp_path / "a.m4p"
    start, media = box(b"ftyp", b"M4P "), box(b"mdat", b"sinf" * 100)
    large = struct.pack(">I4sQ", 1, b"mdat", 16 + 8) + bytes(8)  # a box with a 64-bit length
    for drm in (True, False):
        index = box(b"moov", box(b"trak", b"drms", box(b"sinf", b"frma") if drm else b""))
        for content in (start + index + media, start + media + large + index):
            path.write_bytes(content)
            assert kinds.is_locked(path) is drm
    path.write_bytes(start + box(b"moov", b"sinf"))
    assert reason(path) == "locked: protected by DRM"
    asf = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(100)
    lock = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")
    path = tmp_path / "a.wma"
    for drm in (True, False):
        path.write_bytes(asf + lock * drm)
        assert kinds.is_locked(path) is drm


KINDS = {  # that FFmpeg reads, by their first bytes
    "MP4": box(b"ftyp", b"isom"),
    "QuickTime": box(b"wide"),
    "Matroska or WebM": bytes.fromhex("1a45dfa3"),
    "WMA": bytes.fromhex("3026b2758e66cf11"),
    "WavPack": b"wvpk",
    "TTA": b"TTA1",
    "Monkey's Audio": b"MAC ",
    "Musepack": b"MP+\x07",
    "AAC": bytes.fromhex("fff15080"),  # layer 0; 1 to 3 are MPEG audio
    "AC-3": b"\x0bw",
    "DTS": bytes.fromhex("7ffe8001"),
    "Flash video": b"FLV\x01",
    "an MPEG program stream": b"\x00\x00\x01\xba",
    "an MPEG transport stream": 3 * (b"G" + bytes(187)),
    "RealMedia": b".RMF",
}


def test_files_are_told_by_their_first_bytes(tmp_path):
    path = tmp_path / "a.mp3"
    for name, heads in {
        "chunks": (b"RIFF", b"RF64", b"FORM", b"caff", b".snd"),
        "flac": (b"fLaC",),
        "ogg": (b"OggS",),
        "": (bytes.fromhex("fffb9064"), b"text", b"G" + bytes(187), b""),
    }.items():
        for head in heads:
            path.write_bytes(head + bytes(16))
            assert kinds.kind(path) == (name, 0)
            path.write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x05" + bytes(5) + head + bytes(16))
            assert kinds.kind(path) == (name, 15)


def test_other_kinds_without_a_decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: False)
    path = tmp_path / "a.mp3"
    path.write_bytes(box(b"ftyp", b"M4A ") + bytes(64_000))
    assert decode.duration(path) == pytest.approx(4.0, abs=0.01)  # a guess, at 128 kbit/s
    assert reason(path) == "no decoder: MP4 needs FFmpeg on this machine"
    for name, head in KINDS.items():  # what stands in a file counts, not its name
        for tag in (b"", b"ID3\x04\x00\x00\x00\x00\x00\x05" + bytes(5)):
            path.write_bytes(tag + head + bytes(64_000))
            assert reason(path) == f"no decoder: {name} needs FFmpeg on this machine"
    path = tmp_path / "a.ape"
    path.write_bytes(bytes(1000))
    assert reason(path) == "no decoder: .ape needs FFmpeg on this machine"


def test_unusable_crosses_processes():
    error = pickle.loads(pickle.dumps(decode.Unusable("empty: nothing")))
    assert isinstance(error, decode.Unusable) and error.reason == "empty: nothing"
