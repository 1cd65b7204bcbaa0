"""Kinds of file that need FFmpeg, and files that libsndfile gives up; made and read by FFmpeg."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import decode
from data_pipelines.containers import ffmpeg
from tests.support.odd_files import ID3, ID3V1, music

RATE = 16_000
pytestmark = pytest.mark.skipif(not ffmpeg.is_installed(), reason="FFmpeg is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s of stereo at 44.1 kHz."""
    path = tmp_path_factory.mktemp("source") / "source.wav"
    soundfile.write(path, music(6, 44_100, 2), 44_100)
    return path


def make(path: Path, source: Path, *options: str) -> Path:
    """Lets FFmpeg write a file; the test is left out where it lacks the encoder."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", source, *options, f"file:{path}"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown encoder" in made.stderr:
        pytest.skip(made.stderr.strip().splitlines()[-1])
    assert made.returncode == 0, made.stderr
    return path


def seconds(path: Path) -> float:
    audio = decode.load(path, RATE)
    assert 0.09 < audio.std() / 32_768 < 0.11  # music to the end, not zeros
    return len(audio) / RATE


def reason(path: Path) -> str:
    with pytest.raises(decode.Unusable) as error:
        decode.load(path, RATE)
    assert "\n" not in error.value.reason
    return error.value.reason


@pytest.mark.parametrize(
    "name, codec",
    [
        *(("a.m4a", "aac"), ("a.m4a", "alac"), ("a.aac", "aac"), ("a.wma", "wmav2")),
        *(("a.wv", "wavpack"), ("a.tta", "tta"), ("a.ac3", "ac3"), ("a.webm", "libopus")),
        *(("a.mka", "libvorbis"), ("a.mka", "pcm_f32le"), ("a.oga", "flac"), ("a.wav", "ac3")),
        *(("a.wav", "wmav2"), ("a.ogg", "libspeex"), ("a.caf", "alac")),
    ],
)
def test_kinds(tmp_path, source, name, codec):
    rate = ["-ar", "32000"] if codec == "libspeex" else []
    path = make(tmp_path / name, source, "-c:a", codec, *rate)
    audio = decode.load(path, RATE)
    assert len(audio) / RATE == pytest.approx(6, abs=0.06)
    expected = decode.load(source, RATE)
    if codec == "libspeex":  # a codec of speech, one channel louder
        return
    spectra = [np.abs(np.fft.rfft(x[: 5 * RATE])) for x in (audio, expected)]
    assert np.corrcoef(*spectra)[0, 1] > 0.99


def test_contents_count_and_not_names(tmp_path, source):
    for kind, codec, other in (
        ("m4a", "aac", "mp3"),
        ("aac", "aac", "mp3"),
        ("mka", "flac", "ogg"),
    ):
        path = make(tmp_path / f"a.{kind}", source, "-c:a", codec)
        assert seconds(path.rename(tmp_path / f"b.{other}")) == pytest.approx(6, abs=0.06)
    path = make(tmp_path / "a.aac", source, "-c:a", "aac")
    path.write_bytes(ID3 + path.read_bytes())
    assert seconds(path) == pytest.approx(6, abs=0.06)


@pytest.mark.parametrize(
    "text",
    [
        *("title=Audio: live", "comment=Duration: 00:01:00.0", "title=Invalid data found"),
        *(
            "title=A\nAudio: x, 8000 Hz, mono, s16",
            "artist=No such file\n  Stream #0:0: Audio: 1 Hz",
        ),
    ],
)
def test_tags_are_not_read_as_facts(tmp_path, source, text):
    assert seconds(make(tmp_path / "a.m4a", source, "-c:a", "aac", "-metadata", text)) == (
        pytest.approx(6, abs=0.06)
    )


@pytest.mark.parametrize(
    "channels, layout", [(4, "quad"), (4, "4.0"), (6, "5.1"), (6, "hexagonal")]
)
def test_all_channels_are_averaged(tmp_path, channels, layout):
    audio = np.stack([music(4, RATE, seed=seed) for seed in range(channels)], axis=1)
    path = tmp_path / "all.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    options = ["-af", f"aformat=channel_layouts={layout}", "-c:a", "pcm_f32le"]
    made = make(tmp_path / "a.mka", path, *options)
    wav = make(tmp_path / "a.wav", path, *options)
    stored = soundfile.read(wav)[0].mean(axis=1)
    assert len(stored) == 4 * RATE
    np.testing.assert_allclose(decode.load(made, RATE), 32_768 * stored, atol=0.51)


def test_default_of_two_tracks(tmp_path, source):
    other = tmp_path / "other.wav"
    soundfile.write(other, music(6, 22_050, seed=1), 22_050)
    both = ["-i", str(other), "-map", "0:a", "-map", "1:a", "-c:a", "flac"]
    expected = {name: decode.load(path, RATE) for name, path in (("0", source), ("1", other))}
    for default in ("0", "1"):
        flags = [f"-disposition:a:{default}", "default", f"-disposition:a:{1 - int(default)}", "0"]
        path = make(tmp_path / "a.mka", source, *both, *flags)
        np.testing.assert_allclose(decode.load(path, RATE), expected[default], atol=2)


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "aac"), ("a.webm", "libopus"), ("a.mkv", "flac")]
)
def test_picture_may_be_longer_than_the_sound(tmp_path, source, name, codec):
    picture = ["-f", "lavfi", "-i", "color=c=red:s=64x64:r=5:d=12", "-map", "0:a", "-map", "1:v"]
    path = make(tmp_path / name, source, *picture, "-c:a", codec)
    assert seconds(path) == pytest.approx(6, abs=0.06)
    late = make(tmp_path / f"late{path.suffix}", path, "-map", "0:v", "-c", "copy", "-an")
    assert reason(late) == "no sound: no sound track"


def test_sound_that_begins_after_the_picture(tmp_path, source):
    picture = ["-f", "lavfi", "-i", "color=c=red:s=64x64:r=5:d=14"]
    delayed = ["-itsoffset", "7", "-i", str(source), "-map", "1:v", "-map", "2:a"]
    for name, codecs in (("a.webm", ["libvpx", "libopus"]), ("a.mkv", ["mpeg4", "flac"])):
        options = [*picture, *delayed, "-c:v", codecs[0], "-c:a", codecs[1]]
        path = make(tmp_path / name, source, *options)
        assert seconds(path) == pytest.approx(6, abs=0.06)


def test_cut_files(tmp_path, source):
    path = make(tmp_path / "a.m4a", source, "-c:a", "aac", "-movflags", "faststart")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert reason(path).startswith("truncated: ") and reason(path).endswith("of 6.0 s are there")
    path = make(path, source, "-c:a", "aac")  # its index is at the end
    path.write_bytes(path.read_bytes()[: len(whole) // 2])
    assert reason(path) == "corrupt: MP4 that FFmpeg cannot open"


@pytest.mark.parametrize(
    "name, codec", [("a.tta", "tta"), ("a.wv", "wavpack"), ("a.flv", "libmp3lame")]
)
def test_joined_files_of_which_ffmpeg_reads_the_first_are_told(tmp_path, source, name, codec):
    path = make(tmp_path / name, source, "-c:a", codec)
    whole = path.read_bytes()
    path.write_bytes(whole + ID3V1)
    assert seconds(path) == pytest.approx(6, abs=0.06)
    path.write_bytes(whole + whole)
    assert reason(path).startswith("longer than it says: it goes on after ")


@pytest.mark.parametrize("layout", ["mpeg", "mpegts"])
def test_mp3_that_is_a_stream_of_packets(tmp_path, source, layout):
    """They hold frames of MPEG audio, but are no file of such frames."""
    path = make(tmp_path / "a.mp3", source, "-c:a", "mp2", "-f", layout)
    assert seconds(path) == pytest.approx(6, abs=0.06)
    picture = ["-f", "lavfi", "-i", "color=c=red:s=64x64:r=25:d=6", "-map", "0:a", "-map", "1:v"]
    path = make(path, source, *picture, "-c:a", "mp2", "-c:v", "mpeg1video", "-f", layout)
    assert seconds(path) == pytest.approx(6, abs=0.06)
    make(path, source, *picture[:4], "-map", "1:v", "-c:v", "mpeg1video", "-f", layout)
    assert reason(path) == "no sound: no sound track"
    path.write_bytes(path.read_bytes()[:4] + bytes(187) if layout == "mpeg" else b"G" * 1000)
    assert reason(path).startswith("corrupt: an MPEG ")
    assert reason(path).endswith(" stream that FFmpeg cannot open")


def test_joined_files_are_told(tmp_path, source):
    for kind, codec in (("m4a", "aac"), ("mka", "flac"), ("webm", "libopus")):
        path = make(tmp_path / f"a.{kind}", source, "-c:a", codec)
        path.write_bytes(2 * path.read_bytes())
        assert reason(path).startswith("longer than it says: ")


def test_damage_that_libsndfile_finds_is_not_passed_over(tmp_path):
    """The second decoder would leave the damaged frames out."""
    for kind in ("flac", "mp3"):
        path = tmp_path / f"a.{kind}"
        soundfile.write(path, music(10, 44_100), 44_100)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 2000] = np.random.default_rng(2).bytes(2000)
        path.write_bytes(content)
        assert reason(path).startswith("corrupt: ")


def test_floats_of_another_scale(tmp_path, source):
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, 32_768 * music(4, RATE), RATE, subtype="FLOAT")
    path = make(tmp_path / "a.mka", loud, "-c:a", "copy")
    assert reason(path).startswith("out of scale: ")


def test_names_that_mean_something_to_ffmpeg(tmp_path, source, monkeypatch):
    path = make(tmp_path / "plain.m4a", source, "-c:a", "aac")
    content = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in ("http:x.m4a", "-i.m4a", "%03d.m4a", "a: b/x.m4a", "pipe:.m4a"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
        assert seconds(Path(name)) == pytest.approx(6, abs=0.06)
    name = os.fsdecode(b"caf\xe9.m4a")
    Path(name).write_bytes(content)
    assert seconds(Path(name)) == pytest.approx(6, abs=0.06)


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "wma"])
def test_lists_of_other_files_are_not_followed(tmp_path, source, suffix):
    path = tmp_path / f"a.{suffix}"
    for text in (f"#EXTM3U\n#EXTINF:10\n{source}\n", f"ffconcat version 1.0\nfile '{source}'\n"):
        path.write_text(text)
        assert reason(path).startswith("not audio, or a kind that cannot be read")
    picture = ["-map", "1:v", "-frames:v", "1", "-f", "image2"]
    make(path, source, "-f", "lavfi", "-i", "color=c=red:s=64x64", *picture)
    assert reason(path).startswith(("not audio", "no sound"))
    path.write_bytes(np.random.default_rng(1).bytes(300_000))
    assert reason(path).startswith("not audio, or a kind that cannot be read")
