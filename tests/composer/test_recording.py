import numpy as np
import pytest

from data_pipelines.composer import recording

RATE = 16000


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(audio.astype(np.float64) ** 2)))


@pytest.mark.parametrize("seed", range(6))
def test_a_room_keeps_the_direct_sound_in_place(seed):
    impulse = np.zeros(RATE, np.float32)
    impulse[1000] = 1.0
    heard = recording.room(np.random.default_rng(seed), impulse, RATE)
    assert heard.shape == impulse.shape
    assert np.abs(heard[:1000]).max() < 1e-6
    assert heard[1000] == pytest.approx(1.0, abs=1e-5)
    assert 10 ** (-35 / 20) < np.sqrt(np.sum(heard[1001:] ** 2)) < 10 ** (-3 / 20)


def test_rooms_are_dry_and_wide():
    impulse = np.zeros(4 * RATE, np.float32)
    impulse[0] = 1.0

    def ringing(seed: int) -> float:
        """Seconds until all but a hundredth of the tail's energy has been."""
        tail = recording.room(np.random.default_rng(seed), impulse, RATE)[1:].astype(float) ** 2
        return float(np.searchsorted(np.cumsum(tail), 0.99 * tail.sum())) / RATE

    seconds = [ringing(seed) for seed in range(24)]
    assert min(seconds) < 0.15
    assert max(seconds) > 0.7


def test_recordings_differ_in_colour_and_have_one_level():
    noise = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    bands = []
    for seed in range(24):
        heard = recording.record(np.random.default_rng(seed), noise, RATE)
        assert heard.dtype == np.float32
        assert heard.shape == noise.shape
        assert _rms(heard) == pytest.approx(1.0, abs=1e-3)
        power = np.abs(np.fft.rfft(heard)) ** 2
        bands.append([10 * np.log10(part.mean()) for part in np.array_split(power, 8)])
    spread = np.ptp(np.array(bands), axis=0)  # of each band's level over the recordings
    assert spread.min() > 6  # dB


def test_a_compressor_brings_loud_and_soft_together():
    """Half a second of a soft tone, then of a loud one: 20 dB apart before, less after."""
    t = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * t) * np.where(t < 0.5, 0.1, 1.0)
    audio = (tone / _rms(tone)).astype(np.float32)
    for seed in range(5):
        heard = recording._compress(np.random.default_rng(seed), audio, RATE)
        soft, loud = _rms(heard[4000:8000]), _rms(heard[12000:])
        assert 1 < loud / soft < 0.95 * 10


def test_an_equaliser_changes_its_frequency_alone():
    """Far from the middle, at 0 Hz and at half the rate, the level stays as it is."""
    impulse = np.zeros(RATE, np.float32)
    impulse[0] = 1.0
    for seed in range(5):
        response = np.abs(
            np.fft.rfft(recording._resonance(np.random.default_rng(seed), impulse, RATE))
        )
        assert response[[0, -1]] == pytest.approx(1.0, abs=1e-3)
        decibels = 20 * np.log10(response)
        assert 0.1 < np.abs(decibels).max() < 9.1
