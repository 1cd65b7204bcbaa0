"""What files hold, beside what their headers and names say of it: without FFmpeg."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import decode
from data_pipelines.containers import chunks, ffmpeg, libsndfile
from tests.support import odd_files
from tests.support.odd_files import APE, ID3, ID3_FOOTER, ID3V1, encoded, music

RATE = 16_000
JUNK = np.random.default_rng(1).bytes(5000)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile is the only decoder."""
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: False)


def load(folder: Path, content: bytes, name: str = "a.mp3", **options: float) -> np.ndarray:
    path = folder / name
    path.write_bytes(content)
    return decode.load(path, RATE, **options)


def seconds(folder: Path, content: bytes, name: str = "a.mp3") -> float:
    audio = load(folder, content, name)
    assert 0.08 < audio.std() / 32_768 < 0.12  # music to the end, not zeros
    return len(audio) / RATE


def reason(folder: Path, content: bytes, name: str = "a.mp3") -> str:
    with pytest.raises(decode.Unusable) as error:
        load(folder, content, name)
    assert "\n" not in error.value.reason
    return error.value.reason


@pytest.fixture(scope="module")
def mp3(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """10 s, with a header that states it."""
    folder = tmp_path_factory.mktemp("mp3")
    return encoded(folder, "mp3", music(10, 44_100, 2), 44_100, bitrate_mode="VARIABLE")


@pytest.fixture(scope="module")
def bare(mp3: bytes) -> bytes:
    return odd_files.without_header(mp3)


def test_joined_mp3s_are_read_to_the_end_of_the_last(tmp_path, mp3, bare):
    assert seconds(tmp_path, mp3) == 10
    assert seconds(tmp_path, 3 * mp3) == pytest.approx(30, abs=0.2)
    assert seconds(tmp_path, bare + ID3V1 + ID3 + mp3 + APE + bare) == pytest.approx(30, abs=0.2)
    low = encoded(tmp_path, "mp3", music(5, 22_050), 22_050)
    for parts in ([mp3, low], [low, mp3], [bare, low, bare]):  # other rates, one channel or two
        whole = 10 * len(parts) - 5
        assert seconds(tmp_path, b"".join(parts)) == pytest.approx(whole, abs=0.2)


@pytest.mark.parametrize(
    "before",
    [ID3 + bytes(3000), ID3 + JUNK, ID3 + ID3, ID3_FOOTER, APE, JUNK, bytes(3000)],
    ids=["zeros", "junk", "two tags", "footer", "APE", "junk alone", "zeros alone"],
)
def test_mp3_begins_at_its_first_frame(tmp_path, bare, before):
    assert seconds(tmp_path, before + bare) == pytest.approx(10, abs=0.1)


def test_tag_that_says_it_is_longer_than_the_file(tmp_path, mp3, bare):
    """As a damaged one does; the frames count, wherever they begin."""
    id3 = b"ID3\x03\0\0" + 4 * b"\x7f" + bytes(100)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 0xFFFFFFFF, 1, 0) + bytes(8)
    for content in (id3 + mp3, id3 + bare, ape + bare, bare + ape, mp3 + ape, bytes(200_000) + mp3):
        assert seconds(tmp_path, content) == pytest.approx(10, abs=0.1)
    assert reason(tmp_path, id3).startswith("not audio")


def test_header_that_counts_other_frames_than_there_are(tmp_path, mp3):
    frames = odd_files.frames(mp3)
    for fewer in (frames // 3, 1, 0):
        few = odd_files.with_frames(mp3, fewer)
        assert seconds(tmp_path, few) == pytest.approx(10, abs=0.1)
    more = odd_files.with_frames(mp3, 3 * frames)
    assert reason(tmp_path, more) == "truncated: 10.0 of 30.1 s are there"


def test_mp3_that_is_not_whole(tmp_path, bare):
    third = len(bare) // 3
    lost = 2 * third
    zeros = bare[:third] + bytes(lost)  # as a download that was ended leaves it
    assert reason(tmp_path, zeros).startswith("truncated: the last ")
    hole = bare[:third] + bytes(third) + bare[2 * third :]
    assert "bytes are not frames of MPEG audio" in reason(tmp_path, hole)
    noise = bare[:third] + np.random.default_rng(2).bytes(lost)
    assert "bytes are not frames of MPEG audio" in reason(tmp_path, noise)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_to_the_end_of_the_last_link(tmp_path, subtype):
    options = {"format": "OGG", "subtype": subtype}
    rates = (48_000, 24_000)
    links = [encoded(tmp_path, "ogg", music(5, rate, 2, rate), rate, **options) for rate in rates]
    assert seconds(tmp_path, links[0], "a.ogg") == pytest.approx(5, abs=0.02)
    assert seconds(tmp_path, links[0] * 2, "a.ogg") == pytest.approx(10, abs=0.05)
    chain = links[0] + JUNK[:100] + links[1] + links[0]
    assert seconds(tmp_path, chain, "a.ogg") == pytest.approx(15, abs=0.05)
    audio = load(tmp_path, chain, "a.ogg")
    second = load(tmp_path, links[1], "b.ogg")
    begin = round(5 * RATE)
    near = [audio[begin + k : begin + k + RATE] for k in range(-800, 800)]
    assert max(np.corrcoef(part, second[:RATE])[0, 1] for part in near) > 0.99
    assert reason(tmp_path, chain[: -len(links[0]) // 2], "a.ogg").startswith("truncated: ")


def test_damage_in_an_ogg_file_is_told(tmp_path):
    whole = encoded(tmp_path, "ogg", music(10, 44_100, 2), 44_100)
    for place in (len(whole) // 2, len(whole) - 1000):
        content = bytearray(whole)
        content[place] ^= 1
        assert reason(tmp_path, content, "a.ogg").startswith(("corrupt: ", "truncated: "))
    assert seconds(tmp_path, whole + ID3V1, "a.ogg") == pytest.approx(10, abs=0.02)


def test_flac_whose_header_does_not_state_its_length(tmp_path):
    audio = music(10, 44_100, 2)
    for subtype in ("PCM_16", "PCM_24"):
        whole = encoded(tmp_path, "flac", audio, 44_100, subtype=subtype)
        expected = load(tmp_path, whole, "a.flac")
        for stated in (0, 4 * 44_100):
            other = odd_files.with_samples(whole, stated)
            for content in (other, ID3 + other + ID3V1):
                np.testing.assert_array_equal(load(tmp_path, content, "a.flac"), expected)
        assert seconds(tmp_path, whole + odd_files.with_samples(whole, 0), "a.flac") == 20
    more = odd_files.with_samples(whole, 30 * 44_100)
    assert reason(tmp_path, more, "a.flac") == "truncated: 10.0 of 30.0 s are there"
    half = whole[: len(whole) // 2]
    assert reason(tmp_path, half, "a.flac").startswith("truncated: ")
    assert reason(tmp_path, odd_files.with_samples(half, 0), "a.flac").startswith("corrupt: ")


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_something_else_behind_the_sound_is_told(tmp_path, mp3, kind):
    whole = encoded(tmp_path, kind, music(10, RATE), RATE)
    for behind in (mp3, ID3 + mp3, encoded(tmp_path, "wav", music(5, RATE), RATE), 40 * JUNK):
        told = reason(tmp_path, whole + behind, f"a.{kind}")
        assert told.startswith("longer than it says: ")
    for tags in (ID3V1, APE, APE + ID3V1, bytes(100_000)):
        assert seconds(tmp_path, whole + tags, f"a.{kind}") == pytest.approx(10, abs=0.02)


SIZES = {  # kind: name of the chunk of samples, how its size is written
    "wav": (b"data", "<I"),
    "aiff": (b"SSND", ">I"),
    "au": (b".snd\0\0\0\x18", ">I"),
    "caf": (b"data", ">q"),
    "w64": (b"data\xf3\xac", "<q"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_size_that_is_a_placeholder(tmp_path, kind):
    """0 where the writer died, all ones where it could not go back."""
    content = encoded(tmp_path, kind, music(10, RATE), RATE)
    expected = load(tmp_path, content, f"a.{kind}")
    name, form = SIZES[kind]
    for size in (0, -1 if form[1] == "q" else 0xFFFFFFFF):
        if kind == "au":
            other = content[:8] + size.to_bytes(4, "big") + content[12:]
        else:
            other = odd_files.with_size(content, size, name, form)
        audio = load(tmp_path, other, f"a.{kind}")
        assert abs(len(audio) - len(expected)) <= 16  # a few bytes of a header more or less
        assert np.abs(audio[:-100]).max() == np.abs(expected[:-100]).max()


def test_wav_that_holds_more_than_it_states(tmp_path):
    content = encoded(tmp_path, "wav", music(10, RATE), RATE)
    third = odd_files.with_size(content, 2 * 10 * RATE // 3 & ~1)
    assert "its header states 106,666 of 320,000" in reason(tmp_path, third, "a.wav")
    with_list = content + b"LIST" + (400_000).to_bytes(4, "little") + bytes(400_000)
    for behind in (with_list, content + ID3V1, content + ID3 + JUNK, content + bytes(90_000)):
        assert seconds(tmp_path, behind, "a.wav") == 10
    silent = odd_files.with_size(
        encoded(tmp_path, "wav", np.pad(music(5, RATE), RATE * 2), RATE), 0
    )
    assert len(load(tmp_path, silent, "a.wav")) == 9 * RATE


def test_wav_of_more_than_32_bits(tmp_path):
    """The size that a header states is what is left over of a multiple of 4 GiB."""
    path = tmp_path / "a.wav"
    content = encoded(tmp_path, "wav", music(1, RATE), RATE)
    with path.open("wb") as file:
        file.write(odd_files.with_size(content, 2 * RATE))
        file.write(JUNK)
        file.truncate(len(content) + (1 << 32))  # no bytes on the disk
    (part,) = chunks.parts(path, 0)
    with libsndfile.opened(path, part) as file:
        assert file.frames >= (1 << 31) - 100


def test_contents_count_and_not_names(tmp_path, mp3):
    wav = encoded(tmp_path, "wav", music(10, RATE), RATE)
    flac = encoded(tmp_path, "flac", music(10, RATE), RATE)
    for content, name in ((mp3, "a.wav"), (wav, "a.m4a"), (flac, "a.mp3"), (ID3 + wav, "a.ogg")):
        assert seconds(tmp_path, content, name) == 10


def test_floats_of_another_scale(tmp_path):
    audio = music(5, RATE, 2)
    scaled = encoded(tmp_path, "wav", 32_768 * audio, RATE, subtype="FLOAT")
    told = reason(tmp_path, scaled, "a.wav")
    assert told.startswith("out of scale: ") and "% of its floats are beyond -1..1, up to " in told
    loud = encoded(tmp_path, "wav", 3 * audio, RATE, subtype="DOUBLE")
    assert len(load(tmp_path, loud, "a.wav")) == 5 * RATE  # some peaks are clipped


@pytest.mark.parametrize("subtype, factor", [("PCM_16", -1), ("PCM_24", -0.9999), ("FLOAT", -0.97)])
def test_channels_that_cancel(tmp_path, subtype, factor):
    left = music(5, 44_100)
    stereo = np.stack([left, factor * left], axis=1)
    content = encoded(tmp_path, "wav", stereo, 44_100, subtype=subtype)
    alone = encoded(tmp_path, "wav", left, 44_100, subtype=subtype)
    np.testing.assert_array_equal(load(tmp_path, content, "a.wav"), load(tmp_path, alone, "b.wav"))
    wide = np.stack([left, music(5, 44_100, seed=5)], axis=1)  # unlike each other: their mean
    content = encoded(tmp_path, "wav", wide, 44_100, subtype="FLOAT")
    mean = encoded(tmp_path, "wav", wide.mean(axis=1), 44_100, subtype="FLOAT")
    np.testing.assert_allclose(
        load(tmp_path, content, "a.wav"), load(tmp_path, mean, "b.wav"), atol=1
    )


def test_no_sound_has_its_reasons(tmp_path):
    generator = np.random.default_rng(0)
    for rate in (RATE, 44_100):
        least = generator.integers(-1, 2, 5 * rate).astype(np.int16)
        wav = encoded(tmp_path, "wav", least, rate)
        assert reason(tmp_path, wav, "a.wav") == "no sound: below -80 dB"
        assert len(load(tmp_path, wav, "a.wav", quietest=0)) == 5 * RATE
        wav = encoded(tmp_path, "wav", np.full(5 * rate, 0.1), rate)
        assert reason(tmp_path, wav, "a.wav") == "no sound: a constant value of 0.1"
        wav = encoded(tmp_path, "wav", np.zeros(5 * rate), rate)
        assert reason(tmp_path, wav, "a.wav") == "no sound: digital silence"


def test_pointer_of_git_lfs_is_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    assert "a pointer of Git LFS" in reason(tmp_path, pointer)


@pytest.mark.parametrize("name", ["text", "html", "zeros", "noise", "json"])
@pytest.mark.parametrize("suffix", ["mp3", "wav", "flac"])
def test_what_is_no_audio_is_told_alike(tmp_path, name, suffix):
    contents = {
        "text": b"no audio\n" * 5000,
        "html": b"<!DOCTYPE html>" + b"<p>x</p>" * 4000,
        "zeros": bytes(300_000),
        "noise": np.random.default_rng(3).bytes(300_000),
        "json": json.dumps(list(range(9000))).encode(),
    }
    told = reason(tmp_path, contents[name], f"a.{suffix}")
    assert told == "not audio, or a kind that cannot be read: Format not recognised"


@pytest.mark.parametrize("kind", odd_files.KINDS)
def test_fuzz(tmp_path, kind):
    """Parts lost, added, doubled: the music is there, or a reason; nothing is left out unsaid."""
    whole = encoded(tmp_path, kind, music(3, RATE), RATE)
    random = np.random.default_rng(odd_files.KINDS.index(kind))
    for _ in range(40):
        content, least, most = changed(whole, random)
        try:
            audio = load(tmp_path, content, f"a.{kind}")
        except decode.Unusable as unusable:
            assert unusable.reason and "\n" not in unusable.reason
        else:
            assert least <= len(audio) / RATE <= most


def changed(whole: bytes, random: np.random.Generator) -> tuple[bytes, float, float]:
    """A file of 3 s with a fault, and the seconds between which it may be taken for music."""
    place = int(random.integers(len(whole)))
    lost = whole[:place]
    match random.integers(7):
        case 0:
            return lost, 2.8 * place / len(whole), 3.1
        case 1:
            return lost + bytes(len(whole) - place), 2.8, 3.1
        case 2:
            return ID3 * int(random.integers(1, 4)) + whole, 2.9, 3.1
        case 3:
            return whole + whole, 5.9, 6.4
        case 4:
            return whole + random.bytes(int(random.integers(1, 1000))), 2.8, 3.2
        case 5:
            size = min(int(random.integers(1, 400)), len(whole) - place)
            return lost + random.bytes(size) + whole[place + size :], 0.0, np.inf
        case _:
            flipped = bytearray(whole)
            for at in random.integers(0, min(200, len(whole)), 3):
                flipped[at] ^= 1 << int(random.integers(8))
            return bytes(flipped), 0.0, np.inf


def test_a_name_may_be_any_bytes(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9: %03d -x.wav"))
    soundfile.write(os.fsencode(path), music(3, RATE), RATE)
    assert len(decode.load(path, RATE)) == 3 * RATE
