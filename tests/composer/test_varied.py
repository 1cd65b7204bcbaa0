import hashlib

import numpy as np
import pytest

from data_pipelines.composer import parts, polyphony, synth, timbres, varied
from data_pipelines.composer.synth import Clip
from data_pipelines.composer.timbres import DRUMS, KIT

SEEDS = range(24)
SECONDS = 4.0


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [varied.clip(seed, SECONDS) for seed in SEEDS]


@pytest.fixture(scope="module")
def plain() -> list[Clip]:
    return [synth.clip(seed, SECONDS) for seed in SEEDS]


def _level(clip: Clip) -> float:
    return float(20 * np.log10(np.sqrt(np.mean((clip.audio / 32768.0) ** 2))))


def _pitches(clips: list[Clip]) -> np.ndarray:
    return np.array([n.pitch for clip in clips for n in clip.notes if n.instrument != DRUMS])


# Of some clips that probes are asked about: how many notes they have, a digest of them, the mean of
# the audio's absolute values and of its differences'. They tell of any change that is heard, and
# not of the last bit of a sample, in which processors differ.
LABELLED = {
    0: (64, "a6fec6f824dd4a65", 4057.586604, 1321.449838),
    24_000_005: (60, "574659a1028bd524", 1055.598302, 355.844836),
    48_000_011: (60, "cc968f9ec269d54c", 1148.048125, 347.666507),
}
STIMULI = {
    "target": (755.910562, 338.159661),
    "voices": (740.960719, 423.556736),
    "interval": (1255.251781, 201.198475),
    "chord": (1375.786812, 1571.515016),
}


@pytest.mark.parametrize("seed", LABELLED)
def test_the_clips_that_probes_are_asked_about_stay_as_they_are(seed):
    clip, (count, notes, level, difference) = synth.clip(seed, 6.0), LABELLED[seed]
    values = [
        (round(n.onset, 6), round(n.offset, 6), n.pitch, n.instrument, round(n.velocity, 6))
        for n in clip.notes
    ]
    assert len(values) == count
    assert hashlib.sha256(repr(values).encode()).hexdigest().startswith(notes)
    audio = clip.audio.astype(float)
    assert np.abs(audio).mean() == pytest.approx(level, rel=1e-5)
    assert np.abs(np.diff(audio)).mean() == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("name", polyphony.SETS)
def test_the_stimuli_of_several_voices_stay_as_they_are(name):
    stimulus = polyphony.design(name, {"train": 12, "validation": 12, "test": 12})["train"][5]
    audio = polyphony.sound(stimulus, (0, 0, 5), 16000).astype(float)
    level, difference = STIMULI[name]
    assert np.abs(audio).mean() == pytest.approx(level, rel=1e-5)
    assert np.abs(np.diff(audio)).mean() == pytest.approx(difference, rel=1e-5)


def test_a_seed_is_a_clip_and_not_that_of_the_plain_composer(clips, plain):
    again = varied.clip(7, SECONDS)
    np.testing.assert_array_equal(again.audio, clips[7].audio)
    assert again.notes == clips[7].notes
    assert again.notes != clips[8].notes
    assert all(a.notes != b.notes for a, b in zip(clips, plain, strict=True))


def test_a_clip_too_short_for_its_beats_is_refused():
    with pytest.raises(ValueError, match=r"seconds is 0\.5"):
        varied.clip(0, 0.5)


def test_annotations_are_consistent(clips):
    for clip in clips:
        assert clip.audio.dtype == np.int16
        assert len(clip.audio) == SECONDS * 16000
        assert len(clip.beats) == len(clip.positions) == len(clip.chords)
        assert list(clip.notes) == sorted(clip.notes)
        for note in clip.notes:
            assert 0 <= note.onset < note.offset <= SECONDS
            assert 0 < note.velocity <= 1
            assert note.pitch == int(note.pitch)
            if note.instrument == DRUMS:
                assert note.pitch in KIT
            else:
                timbre = timbres.TIMBRES[note.instrument]
                assert timbre.low <= note.pitch <= timbre.high


def test_levels_stay_within_their_bounds_and_nothing_clips(clips):
    levels = [_level(clip) for clip in clips]
    assert varied.LEVELS[0] - 0.5 < min(levels)
    assert max(levels) < varied.LEVELS[1] + 0.5
    assert max(levels) - min(levels) > 20
    assert max(np.abs(clip.audio.astype(int)).max() for clip in clips) < 32767


def test_meters_tempi_and_registers_are_wider_than_those_of_the_plain_composer(clips, plain):
    assert {int(clip.positions.max()) for clip in plain} == {3, 4}
    meters = [int(clip.positions.max()) for clip in clips]
    assert set(meters) <= {*varied.METERS, 1}
    assert len(set(meters)) >= 5
    tempi, usual = ([clip.tempo for clip in several] for several in (clips, plain))
    assert min(tempi) < min(usual)
    assert max(tempi) > max(usual)
    assert _pitches(clips).min() < 40
    assert _pitches(clips).max() > _pitches(plain).max()


def test_textures_run_from_one_player_to_many(clips):
    at_once = []
    for clip in clips:
        onsets = np.array([note.onset for note in clip.notes])
        offsets = np.array([note.offset for note in clip.notes])
        at_once.append(
            max(int(((onsets <= t) & (t < offsets)).sum()) for t in np.arange(0, SECONDS, 0.1))
        )
    assert min(at_once) <= 2
    assert max(at_once) >= 8
    played = {note.pitch for clip in clips for note in clip.notes if note.instrument == DRUMS}
    assert len(played) > 10
    players = {note.instrument for clip in clips for note in clip.notes}
    assert len(players) == len(timbres.INSTRUMENTS)


def test_a_player_has_many_tones():
    """The spectra of one note by forty trumpets lie further apart than those of the plain one."""

    def brightness(players: list) -> np.ndarray:
        index = timbres.INSTRUMENTS.index("trumpet")
        note = [timbres.Note(0.0, 0.5, 60, index)]
        centroids = []
        for seed, timbre in enumerate(players):
            given = [timbre] * (index + 1)
            audio = varied.render(note, 0.5, 16000, seed, given)
            power = np.abs(np.fft.rfft(audio)) ** 2
            centroids.append(np.log2((np.arange(len(power)) * 2 * power).sum() / power.sum()))
        return np.array(centroids)

    trumpet = next(timbre for timbre in timbres.TIMBRES if timbre.name == "trumpet")
    changed = [varied.colour(np.random.default_rng(seed), trumpet) for seed in range(40)]
    assert brightness(changed).std() > 2 * brightness([trumpet] * 40).std()


@pytest.mark.parametrize("meter", varied.METERS)
def test_melodies_fill_bars_of_every_meter(meter):
    plan = parts.MusicPlan(0, meter, synth.draw_chords(np.random.default_rng(1), 0, 8, meter))
    tune = parts.melody(np.random.default_rng(2), plan, 60, 84)
    bars = {int(event.beat // meter) for event in tune}
    assert len(bars) >= 6
    strokes = list(parts._strokes(parts._COMPING["quarters"], meter, meter, 2 * meter))
    assert [beat for beat, _, _ in strokes] == list(range(meter, 2 * meter))


def test_a_canon_is_the_melody_again_later_and_octaves_away():
    plan = parts.MusicPlan(0, 4, synth.draw_chords(np.random.default_rng(1), 0, 8, 4))
    tune = parts.melody(np.random.default_rng(2), plan, 60, 84)
    later = varied._later(np.random.default_rng(3), tune, plan, 36, 62)
    assert later
    first = {(event.beat, event.pitch % 12) for event in tune}
    answers = {event.beat - late for event in later for late in (4, 8)}
    assert answers & {beat for beat, _ in first}
    late = next(late for late in (4, 8)
                if {(e.beat - late, e.pitch % 12) for e in later} <= first)  # fmt: skip
    assert late in (4, 8)
    assert max(event.pitch for event in later) < 62
