import numpy as np
import pytest

from data_pipelines.composer import harmony
from data_pipelines.composer.harmony import Chord

C_MAJOR, A_MINOR = harmony.KEYS.index("C major"), harmony.KEYS.index("A minor")


def _names(pitch_classes):
    return {harmony.PITCH_CLASSES[tone] for tone in pitch_classes}


def test_keys_are_24_in_chromatic_order_major_first():
    assert len(set(harmony.KEYS)) == 24
    assert harmony.KEYS[0] == "C major"
    assert harmony.KEYS[13] == "Db minor"


@pytest.mark.parametrize(
    ("chord", "tones"),
    [
        (Chord(0, "maj"), {"C", "E", "G"}),
        (Chord(9, "min7"), {"A", "C", "E", "G"}),
        (Chord(11, "hdim7"), {"B", "D", "F", "A"}),
        (Chord(7, "7"), {"G", "B", "D", "F"}),
        (harmony.NO_CHORD, set()),
    ],
)
def test_chords_spell_as_in_theory_books(chord, tones):
    assert _names(chord.pitch_classes) == tones


@pytest.mark.parametrize(
    ("key", "chord", "tones"),
    [
        (C_MAJOR, Chord(7, "7"), {"C", "D", "E", "F", "G", "A", "B"}),
        (A_MINOR, Chord(9, "min"), {"A", "B", "C", "D", "E", "F", "G"}),
        (A_MINOR, Chord(4, "7"), {"A", "B", "C", "D", "E", "F", "Ab"}),  # leading tone for G
        (C_MAJOR, Chord(2, "7"), {"C", "D", "E", "Gb", "G", "A", "B"}),  # V/V: F sharp for F
        (C_MAJOR, Chord(5, "min"), {"C", "D", "E", "F", "G", "Ab", "B"}),  # iv: A flat for A
    ],
)
def test_melodies_avoid_what_the_chord_alters(key, chord, tones):
    assert _names(harmony.scale(key, chord)) == tones


@pytest.mark.parametrize("key", range(24))
def test_progressions_start_on_the_tonic_and_close_as_asked(key):
    rng = np.random.default_rng(key)
    tonic = key % 12
    for _ in range(20):
        full = harmony.progression(rng, key, 4, "full", sevenths=0.5)
        half = harmony.progression(rng, key, 8, "half", sevenths=0.5)
        assert (len(full), len(half)) == (4, 8)
        assert full[0].root == half[0].root == full[-1].root == tonic
        assert full[-2].root == half[-1].root == (tonic + 7) % 12
        assert half[-2].root in ((tonic + 2) % 12, (tonic + 5) % 12)
        third = 4 if key < 12 else 3
        assert (tonic + third) % 12 in full[-1].pitch_classes


def test_voicings_hold_the_chord_and_move_little():
    rng = np.random.default_rng(1)
    voices = ()
    for chord in harmony.progression(rng, 3, 60, "full", sevenths=0.5):
        before, voices = voices, harmony.voicing(chord, voices, 50, 74)
        assert {pitch % 12 for pitch in voices} == set(chord.pitch_classes)
        assert min(voices) >= 50
        assert max(voices) < 74
        if before:
            assert abs(np.mean(voices) - np.mean(before)) <= 4


def test_a_range_too_narrow_for_a_chord_is_named():
    with pytest.raises(ValueError, match=r"\[60, 64\)"):
        harmony.voicing(Chord(0, "maj"), (), 60, 64)
