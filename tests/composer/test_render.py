import librosa
import numpy as np
import pytest

from data_pipelines.composer import timbres
from data_pipelines.composer.render import render
from data_pipelines.composer.timbres import DRUMS, INSTRUMENTS, KIT, TIMBRES, Note, frequency

RATE = 16000
PITCHED = [pytest.param(i, id=timbre.name) for i, timbre in enumerate(TIMBRES)]


def _lowest_partial(audio: np.ndarray) -> float:
    """Returns the mean frequency in Hz of the lowest partial within 32 dB of the strongest.

    It is the centre of power of a band of three semitones, so vibrato, tremolo and detuned
    voices, which spread a partial around its pitch, do not move it.
    """
    n = 1 << 18
    power = np.abs(np.fft.rfft(audio * np.blackman(len(audio)), n)) ** 2
    lowest = np.flatnonzero(power > power.max() * 10**-3.2)[0]
    peak = lowest + np.argmax(power[lowest : int(lowest * 1.06) + 9])
    band = np.arange(int(peak / 1.09), int(peak * 1.09))
    return np.sum(band * power[band]) / np.sum(power[band]) * RATE / n


@pytest.mark.parametrize("instrument", PITCHED)
def test_every_timbre_sounds_at_its_pitch(instrument):
    timbre = TIMBRES[instrument]
    for pitch in (timbre.low + 12, (timbre.low + timbre.high) // 2 + 0.37, timbre.high):
        audio = render([Note(0.0, 4.0, pitch, instrument)], 4.0, RATE, seed=4)
        heard = _lowest_partial(audio[int(0.1 * RATE) :])
        cents = 1200 * np.log2(heard / frequency(pitch))
        assert abs(cents) < 3, f"{timbre.name} at {pitch}: {cents:.1f} cents"


@pytest.mark.parametrize("instrument", PITCHED)
def test_notes_start_on_time_and_end_with_their_release(instrument):
    onset, offset = 0.1234, 0.6
    timbre = TIMBRES[instrument]
    pitch = (timbre.low + timbre.high) // 2
    audio = render([Note(onset, offset, pitch, instrument)], 1.5, RATE)
    assert abs(np.flatnonzero(audio)[0] / RATE - onset) < 0.001
    assert abs(np.flatnonzero(np.abs(audio) > 1e-4)[-1] / RATE - (offset + timbre.release)) < 0.1
    attack, end = int((onset + 0.15) * RATE), int(offset * RATE)
    assert np.std(audio[attack:end]) > 0.05


@pytest.mark.parametrize("drum", KIT)
def test_drums_start_on_time_and_last_as_long_as_said(drum):
    audio = render([Note(0.25, 0.5, drum, DRUMS)], 4.0, RATE)
    sounding = np.flatnonzero(audio)
    assert abs(sounding[0] / RATE - 0.25) < 0.001
    assert abs((sounding[-1] - sounding[0]) / RATE - timbres.drum_seconds(drum)) < 0.01


@pytest.mark.slow
def test_instruments_are_at_least_12_and_told_apart_by_their_spectra():
    """The nearest of all instruments, played in another mood, is the same instrument."""
    assert len(set(INSTRUMENTS)) == len(INSTRUMENTS) >= 12

    def sound(instrument: int, seed: int) -> np.ndarray:
        pitches = [36, 38, 42] if instrument == DRUMS else [57, 60, 64]
        notes = [Note(0.4 * i, 0.4 * i + 0.35, p, instrument) for i, p in enumerate(pitches)]
        audio = render(notes, 1.2, RATE, seed)
        mel = librosa.feature.melspectrogram(y=audio, sr=RATE, n_mels=48, n_fft=1024)  # [f, t]
        # Log-mel with a floor at -60 dB: breath far below the tone is not what tells them apart.
        return librosa.power_to_db(mel, ref=np.max, top_db=60).ravel()

    first = np.stack([sound(i, 1) for i in range(len(INSTRUMENTS))])
    second = np.stack([sound(i, 2) for i in range(len(INSTRUMENTS))])
    distance = np.linalg.norm(first[:, None] - second[None], axis=-1)  # [first, second]
    assert list(distance.argmin(axis=1)) == list(range(len(INSTRUMENTS)))


def test_one_note_of_several_sounds_the_same_alone():
    """Instruments do not disturb each other: what polyphony stimuli are built on."""
    notes = [Note(0.1 * i, 0.9, 50.5 + 3 * i, i, 0.3) for i in range(5)]
    alone = [render([note], 1.0, RATE, seed=9) for note in notes]
    together = render(notes, 1.0, RATE, seed=9)
    assert np.any(alone[0])
    np.testing.assert_allclose(together, np.sum(alone, axis=0), atol=1e-5)


def test_no_partial_is_above_half_the_sample_rate():
    """The highest note at a low rate is the same tone as at a high rate, low-passed."""
    violin = INSTRUMENTS.index("violin")
    spectra = [
        np.abs(np.fft.rfft(render([Note(0, 1, 95, violin)], 1.0, rate)[:rate]))[:3900] / rate
        for rate in (8000, 48000)
    ]
    folded = spectra[0] > 0.02 * spectra[0].max()
    assert folded.sum() > 0
    assert np.all(spectra[1][folded] > 0.002 * spectra[1].max())


def test_levels_follow_velocity():
    organ = INSTRUMENTS.index("organ")
    soft, loud = (
        np.std(render([Note(0, 1, 60, organ, velocity)], 1.0, RATE)) for velocity in (0.1, 0.8)
    )
    assert loud == pytest.approx(8 * soft, rel=0.05)
    assert 0.3 < loud < 1.2


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (Note(-0.1, 0.5, 60, 0), "onset=-0.1"),
        (Note(0.5, 0.5, 60, 0), "onset < offset"),
        (Note(0.0, 0.5, 130, 0), "too high"),
        (Note(0.0, 0.5, 60, DRUMS), "not a drum"),
    ],
)
def test_a_note_that_cannot_be_played_is_named(note, message):
    with pytest.raises(ValueError, match=message):
        render([note], 1.0, RATE)
