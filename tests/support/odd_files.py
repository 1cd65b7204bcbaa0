"""Sound in containers as other programs leave them; what is in each is known in closed form."""

import struct
from pathlib import Path

import numpy as np
import soundfile

ID3 = b"ID3\x03\x00\x00\x00\x00\x00\x64" + bytes(100)
ID3_FOOTER = b"ID3\x04\x00\x10\x00\x00\x00\x64" + bytes(100) + b"3DI\x04\x00\x10\x00\x00\x00\x64"
ID3V1 = b"TAG" + bytes(125)
_APE = struct.pack("<IIII", 2000, 64 + 32, 1, 1 << 31) + bytes(8)
APE = b"APETAGEX" + _APE + bytes(64) + b"APETAGEX" + _APE
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"a" + b"\nsize 9\n"
KINDS = ("wav", "flac", "mp3", "ogg", "aiff", "au", "caf", "w64", "rf64")


def music(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Twelve partials over a little noise, float32 [n] or [n, channels]; rms .1, peak .5."""
    random = np.random.default_rng(seed)
    samples = round(seconds * rate)
    hertz, phases = random.uniform(100, 3000, 12), random.uniform(0, 6, 12)
    tones = np.sin(2 * np.pi * np.outer(np.arange(samples) / rate, hertz) + phases)
    sound = 0.04 * tones.sum(axis=1, keepdims=True) + 0.01 * random.standard_normal(
        (samples, channels)
    )
    return sound[:, 0].astype(np.float32) if channels == 1 else sound.astype(np.float32)


def encoded(folder: Path, kind: str, audio: np.ndarray, rate: int, **options: object) -> bytes:
    """A file's bytes as libsndfile writes them; in small blocks, which its Vorbis encoder needs."""
    path = folder / f"encoded.{kind}"
    channels = audio.shape[1] if audio.ndim == 2 else 1
    with soundfile.SoundFile(path, "w", rate, channels, **options) as file:
        for start in range(0, len(audio), 4096):
            file.write(audio[start : start + 4096])
    content = path.read_bytes()
    path.unlink()
    return content


def without_header(mp3: bytes) -> bytes:
    """An mp3 of layer III, MPEG-1 or 2, without its first frame, which states the length."""
    ones = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]  # kbit/s
    twos = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    first = mp3[1] >> 3 & 3 == 3
    rates = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000)}[mp3[1] >> 3 & 3]
    kbits = (ones if first else twos)[mp3[2] >> 4]
    length = (144_000 if first else 72_000) * kbits // rates[mp3[2] >> 2 & 3] + (mp3[2] >> 1 & 1)
    return mp3[length:]


def with_frames(mp3: bytes, frames: int) -> bytes:
    """An mp3 whose Xing header states another number of frames."""
    place = max(mp3.find(b"Xing", 0, 400), mp3.find(b"Info", 0, 400)) + 8
    return mp3[:place] + struct.pack(">I", frames) + mp3[place + 4 :]


def frames(mp3: bytes) -> int:
    """The frames that an mp3's Xing header states."""
    place = max(mp3.find(b"Xing", 0, 400), mp3.find(b"Info", 0, 400)) + 8
    return int.from_bytes(mp3[place : place + 4], "big")


def with_size(content: bytes, size: int, name: bytes = b"data", form: str = "<I") -> bytes:
    """A file whose chunk of samples states another size."""
    place = content.index(name) + {"<q": 16}.get(form, 4)
    width = struct.calcsize(form)
    return content[:place] + struct.pack(form, size) + content[place + width :]


def with_samples(flac: bytes, samples: int) -> bytes:
    """A FLAC file whose header states another number of samples, 0 for none."""
    (packed,) = struct.unpack(">Q", flac[18:26])
    return flac[:18] + struct.pack(">Q", packed >> 36 << 36 | samples) + flac[26:]


def folder(root: Path) -> dict[str, str]:
    """Write a folder of odd files, and return what cannot be used of it: how each reason begins.

    The other files hold 10 s of music each, but for joined ones.
    """
    root.mkdir()
    sound = music(10, 16_000)
    scratch = root / "albums"
    wav = encoded(_made(scratch), "wav", sound, 16_000)
    flac = encoded(scratch, "flac", sound, 16_000)
    mp3 = encoded(scratch, "mp3", sound, 16_000, bitrate_mode="VARIABLE")
    ogg = encoded(scratch, "ogg", sound, 16_000)
    bare = without_header(mp3)

    def floats(audio: np.ndarray) -> bytes:
        return encoded(scratch, "wav", audio, 16_000, subtype="FLOAT")

    good = {
        "joined.mp3": 3 * mp3,
        "tags and junk.mp3": ID3 + ID3 + APE + np.random.default_rng(0).bytes(3000) + bare + ID3V1,
        "footer.mp3": ID3_FOOTER + bare,
        "counts too few.mp3": with_frames(mp3, frames(mp3) // 3),
        "tag longer than the file.mp3": b"ID3\x03\0\0" + 4 * b"\x7f" + mp3,
        "chained.ogg": 2 * ogg,
        "died.wav": with_size(wav, 0),
        "streamed.wav": with_size(wav, 0xFFFFFFFF),
        "piped.flac": with_samples(flac, 0),
        "really wav.m4a": wav,
        "really mp3.wav": mp3,
        "channels cancel.wav": encoded(scratch, "wav", np.stack([sound, -sound], 1), 16_000),
        "four channels.wav": floats(np.stack([sound] * 4, 1)),
        "low rate.aiff": encoded(scratch, "aiff", music(10, 8_000), 8_000),
        "high rate.w64": encoded(scratch, "w64", music(10, 96_000), 96_000),
        "umläut ' \" $(x) [1].caf": encoded(scratch, "caf", sound, 16_000),
        "caf\udce9: x.au": encoded(scratch, "au", sound, 16_000),
    }
    quiet = np.random.default_rng(0).choice([-1, 1], 160_000).astype(np.int16)
    bad = {
        "cut short.mp3": (with_frames(mp3, 3 * frames(mp3)), "truncated: 10.0 of 30"),
        "half.flac": (flac[: len(flac) // 2], "truncated: "),
        "half.ogg": (ogg[: len(ogg) // 2], "truncated: "),
        "half.wav": (wav[: len(wav) // 2], "truncated: 5.0 of 10.0 s are there"),
        "zeros.mp3": (bare[: len(bare) // 3] + bytes(len(bare)), "truncated: the last "),
        "mp3 behind.ogg": (ogg + mp3, "longer than it says: "),
        "mp3 behind.flac": (flac + mp3, "longer than it says: "),
        "states less.wav": (with_size(wav, len(wav) // 3 & ~1), "longer than it says: "),
        "scaled.wav": (floats(32_768 * sound), "out of scale: "),
        "infinite.wav": (floats(np.full(160_000, np.inf)), "not finite: "),
        "constant.wav": (floats(np.full(160_000, 0.1)), "no sound: a constant value of 0.1"),
        "silence.flac": (encoded(scratch, "flac", 0 * sound, 16_000), "no sound: digital silence"),
        "quiet.wav": (encoded(scratch, "wav", quiet, 16_000), "no sound: below -80 dB"),
        "short.wav": (encoded(scratch, "wav", sound[:16_000], 16_000), "too short: 1.00 s"),
        "empty.ogg": (b"", "empty: "),
        "text.mp3": (b"no music at all, but words " * 100, "not audio"),
        "pointer.flac": (LFS_POINTER, "not audio: a pointer of Git LFS"),
        "bought.m4p": (
            b"\0\0\0\x0cftypM4P \0\0\0\x10moov\0\0\0\x08sinf",
            "locked: protected by DRM",
        ),
    }
    for name, content in good.items():
        (_made(scratch / name[0]) / name).write_bytes(content)
    for name, (content, _) in bad.items():
        (_made(root / "broken") / name).write_bytes(content)
    (root / "broken/gone.wav").symlink_to("nowhere.wav")
    (scratch / "round").symlink_to(root)
    for name in ("lost+found/x.wav", ".trash/x.wav", "albums/._x.wav", "albums/cover.jpg"):
        (_made((root / name).parent) / Path(name).name).write_bytes(b"x")
    reasons = {name: reason for name, (_, reason) in bad.items()}
    return reasons | {"gone.wav": "unreadable: a broken link"}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
