"""Deformations of audio: what each does, against measures that know nothing of how it is done."""

import types

import numpy as np
import pytest

from data_pipelines import deform
from data_pipelines.containers import ffmpeg

RATE, SECONDS = 16_000, 2
TIMES = np.arange(RATE * SECONDS) / RATE


def tone(hertz: float = 440.0, level: float = 8000) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * TIMES)).astype(np.int16)


def melody() -> np.ndarray:
    """A tone that sweeps from 200 to 1,200 Hz and swells: no part of it is like another."""
    swell = 1 + np.sin(2 * np.pi * 1.3 * TIMES)
    sweep = np.sin(2 * np.pi * (200 * TIMES + 250 * TIMES**2))
    return (6000 * swell * sweep).astype(np.int16)


def records(*audio: np.ndarray, labels: tuple[dict, ...] = ()) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        labels=labels or tuple({} for _ in audio),
        lengths=np.array([len(x) for x in audio]),
        sample_rate=RATE,
        digest="abc",
        read=lambda number: audio[number],
    )


def deformed(spec: str, *audio: np.ndarray) -> list[np.ndarray]:
    made = deform.Deformed(records(*audio), deform.parse(spec))
    return [made.read(number) for number in range(len(audio))]


def pitch(audio: np.ndarray) -> float:
    """The frequency of the strongest bin, between bins by a parabola."""
    spectrum = np.log(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) + 1e-9)
    peak = int(spectrum.argmax())
    left, middle, right = spectrum[peak - 1 : peak + 2]
    shift = 0.5 * (left - right) / (left - 2 * middle + right)
    return (peak + shift) * RATE / len(audio)


def test_noise_has_the_ratio_that_is_asked_for() -> None:
    audio = melody()
    first, second = deformed("noise:20", audio, audio)
    for heard in (first, second):
        added = heard.astype(float) - audio
        ratio = 10 * np.log10(np.mean(audio.astype(float) ** 2) / np.mean(added**2))
        assert ratio == pytest.approx(20, abs=0.1)
        spectrum = np.abs(np.fft.rfft(added)) ** 2
        low, high = np.split(spectrum[: len(spectrum) // 2 * 2], 2)
        assert low.mean() == pytest.approx(high.mean(), rel=0.1)  # white
    assert not np.array_equal(first, second)  # each record has its own
    np.testing.assert_array_equal(deformed("noise:20", audio)[0], first)  # and always the same


def test_gain_is_in_decibels_and_clips() -> None:
    audio = melody()
    (quiet,) = deformed("gain:-12", audio)
    np.testing.assert_allclose(quiet, audio * 10 ** (-12 / 20), atol=0.51)
    (loud,) = deformed("gain:+12", audio)
    assert loud.max() == 32767 and loud.min() == -32768
    np.testing.assert_array_equal(deformed("gain:0", audio)[0], audio)


def test_pitch_moves_and_time_does_not() -> None:
    (heard,) = deformed("pitch:50c", tone())
    assert len(heard) == len(TIMES)
    assert 1200 * np.log2(pitch(heard) / 440) == pytest.approx(50, abs=2)
    (lower,) = deformed("pitch:-100c", tone())
    assert 1200 * np.log2(pitch(lower) / 440) == pytest.approx(-100, abs=2)


def test_speed_moves_both_and_the_times_of_labels() -> None:
    labels = {
        "key": 3,
        "beat_times": np.array([0.51, 1.02], np.float32),
        "beats": {"time": np.array([1.02])},
        "notes": {"onset": np.array([0.0, 1.02]), "offset": np.array([1.02, 2.04]), "pitch": [1]},
    }
    made = deform.Deformed(records(tone(), labels=(labels,)), deform.parse("speed:1.02"))
    heard = made.read(0)
    assert len(heard) == made.lengths[0] == int(len(TIMES) / 1.02)
    assert pitch(heard) == pytest.approx(440 * 1.02, rel=1e-4)
    (moved,) = made.labels
    np.testing.assert_allclose(moved["beat_times"], [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(moved["notes"]["offset"], [1, 2])
    assert moved["key"] == 3 and moved["beats"]["time"] == pytest.approx([1.0])
    assert labels["beats"]["time"] == [1.02]  # the data set's own are as they were
    assert made.digest == "abc-speed:1.02"


@pytest.mark.skipif(not ffmpeg.is_installed(), reason="FFmpeg is not installed")
def test_mp3_is_heard_at_the_same_time_and_worse_with_fewer_bits() -> None:
    audio = melody()
    errors = []
    for spec in ("mp3:64", "mp3:16"):
        (heard,) = deformed(spec, audio)
        assert heard.dtype == np.int16 and len(heard) == len(audio)
        x, y = audio.astype(float), heard.astype(float)
        lags = np.fft.irfft(np.fft.rfft(y, 2 * len(x)) * np.conj(np.fft.rfft(x, 2 * len(x))))
        assert int(lags.argmax()) == 0  # neither the encoder's delay nor the decoder's
        errors.append(np.mean((x - y) ** 2) / np.mean(x**2))
    assert 0 < errors[0] < errors[1] < 0.05


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noise", "there is no deformation 'noise': use some of noise:20"),
        ("reverb:3", "there is no deformation 'reverb:3'"),
        ("pitch:50", "there is no deformation 'pitch:50'"),
        ("gain:-12c", "there is no deformation"),
        ("speed:0", "use an amount from 0.5 to 2"),
        ("mp3:1000", "use an amount from 8 to 320"),
    ],
)
def test_what_is_not_known_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deform.parse(spec)


def test_mp3_without_ffmpeg_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: False)
    with pytest.raises(ValueError, match="mp3:64 needs FFmpeg"):
        deform.parse("mp3:64")
