import hashlib

import librosa
import mir_eval
import numpy as np
import pytest

from data_pipelines.composer import harmony, synth
from data_pipelines.composer.timbres import DRUMS, INSTRUMENTS
from tests.support import commands

SEEDS = range(100, 124)


@pytest.fixture(scope="module")
def clips() -> list[synth.Clip]:
    return [synth.clip(seed, seconds=12.0) for seed in SEEDS]


def _float(clip: synth.Clip) -> np.ndarray:
    return clip.audio.astype(np.float32) / 32768


def heard(seed: int) -> None:
    clip = synth.clip(seed, 5.0)
    print(hashlib.sha256(clip.audio.tobytes()).hexdigest(), repr(clip.notes))


def test_a_seed_is_a_clip_in_any_process(capsys):
    """Another process, whose caches are cold and whose hashes are others, renders the same."""
    process = commands.Process(heard, 7)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    synth.clip(8, 5.0)
    heard(7)
    assert output == capsys.readouterr().out
    heard(8)
    assert output.split()[0] != capsys.readouterr().out.split()[0]


def test_the_sample_rate_changes_the_audio_and_nothing_else():
    low, high = synth.clip(11, 6.0, 16000), synth.clip(11, 6.0, 24000)
    assert (len(low.audio), len(high.audio)) == (96000, 144000)
    assert low.notes == high.notes
    assert low.chords == high.chords


def test_a_clip_too_short_for_its_beats_is_refused():
    with pytest.raises(ValueError, match=r"seconds is 0\.5"):
        synth.clip(0, seconds=0.5)


def test_annotations_are_consistent(clips):
    for clip in clips:
        assert clip.audio.dtype == np.int16
        assert len(clip.audio) == 12 * 16000
        assert len(clip.beats) == len(clip.positions) == len(clip.chords)
        assert clip.beats[0] >= 0
        assert clip.beats[-1] < 12
        period = 60 / clip.tempo
        assert clip.beats[0] < period
        assert 12 - clip.beats[-1] < 1.05 * period
        np.testing.assert_allclose(np.diff(clip.beats), period, rtol=0.03)
        meter = clip.positions.max()
        assert set(np.diff(clip.positions)) == {1, 1 - meter}
        assert list(clip.notes) == sorted(clip.notes)
        for note in clip.notes:
            assert 0 <= note.onset < note.offset <= 12
            assert 0 < note.velocity <= 1


def test_24_seeds_have_the_24_keys_and_the_corpus_is_varied(clips):
    assert {synth.clip(seed, 2.0).key for seed in range(48, 72)} == set(range(24))
    players = [{note.instrument for note in clip.notes} for clip in clips]
    assert set().union(*players) == set(range(len(INSTRUMENTS)))
    assert {len(instruments) for instruments in players} >= {1, 2, 3, 4}
    assert {int(clip.positions.max()) for clip in clips} == {3, 4}
    tempi = [clip.tempo for clip in clips]
    assert min(tempi) < 90
    assert max(tempi) > 140
    qualities = {chord.quality for clip in clips for chord in clip.chords}
    assert qualities >= {"maj", "min", "7", "dim", "N"}


def test_loudness_varies_and_nothing_clips(clips):
    peaks = [np.abs(clip.audio.astype(np.int32)).max() for clip in clips]
    levels = [20 * np.log10(np.std(_float(clip))) for clip in clips]
    assert max(peaks) < 32000
    assert min(levels) > -31
    assert max(levels) < -13
    assert max(levels) - min(levels) > 8
    for clip in clips:
        windows = clip.audio.reshape(-1, 8000)  # [n] -> [half seconds, samples]
        assert np.all(windows.std(axis=1) > 0.5)


@pytest.mark.slow
def test_the_notes_that_sound_are_the_notes_that_are_heard(clips):
    """The strongest pitch class of every half second is one of the annotated ones."""
    right, total = 0, 0
    for clip in clips[:12]:
        chroma = librosa.feature.chroma_stft(
            y=_float(clip), sr=16000, n_fft=4096, hop_length=1600, tuning=0.0
        )  # [12, t]
        for frame in range(5, chroma.shape[1] - 5, 5):
            time = frame * 0.1
            sounding = {
                round(note.pitch) % 12
                for note in clip.notes
                if note.instrument != DRUMS and note.onset < time + 0.1 and note.offset > time - 0.1
            }
            if sounding:
                right += int(np.argmax(chroma[:, frame])) in sounding
                total += 1
    assert total > 200
    assert right / total > 0.95


def test_sound_begins_at_annotated_onsets(clips):
    """Detected onsets are annotated ones, within 50 ms, far more often than by chance."""
    precision, chance = [], []
    for clip in clips[:12]:
        heard = librosa.onset.onset_detect(y=_float(clip), sr=16000, hop_length=160, units="time")
        onsets = np.unique(np.round([note.onset for note in clip.notes], 3))
        precision.append(mir_eval.onset.f_measure(onsets, heard)[1])
        shifted = np.sort((heard + 1.37) % 12)
        chance.append(mir_eval.onset.f_measure(onsets, shifted)[1])
    assert np.mean(precision) > 0.9
    assert np.mean(chance) < 0.75


def test_a_beat_tracker_finds_the_annotated_beats(clips):
    """Told the tempo, it finds the beats of clips with drums."""
    scores = []
    for clip in clips:
        if any(note.instrument == DRUMS for note in clip.notes):
            _, beats = librosa.beat.beat_track(
                y=_float(clip), sr=16000, hop_length=256, units="time", bpm=clip.tempo
            )
            scores.append(mir_eval.beat.f_measure(clip.beats, beats))
    assert len(scores) >= 6
    assert np.mean(scores) > 0.85


def test_the_music_is_in_its_key(clips):
    """Krumhansl's key profiles, on the notes, name the key of most clips, or a close one."""
    profiles = [
        (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
        (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
    ]
    templates = [np.roll(profile, tonic) for profile in profiles for tonic in range(12)]
    scores = []
    for clip in clips:
        weights = np.zeros(12)
        for note in clip.notes:
            if note.instrument != DRUMS:
                weights[round(note.pitch) % 12] += note.offset - note.onset
        best = int(np.argmax([np.corrcoef(weights, template)[0, 1] for template in templates]))
        scores.append(mir_eval.key.weighted_score(harmony.KEYS[clip.key], harmony.KEYS[best]))
    assert np.mean(scores) > 0.75


def test_the_room_keeps_the_direct_sound_in_place():
    impulse = np.zeros(16000, np.float32)
    impulse[1000] = 1.0
    heard = synth.room(np.random.default_rng(0), impulse, 16000)
    assert heard.shape == impulse.shape
    assert np.abs(heard[:1000]).max() < 1e-6
    assert heard[1000] == pytest.approx(1.0, abs=1e-5)
    tail = np.sqrt(np.sum(heard[1001:] ** 2))
    assert 10 ** (-27 / 20) < tail < 10 ** (-10 / 20)
