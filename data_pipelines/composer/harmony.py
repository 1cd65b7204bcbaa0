"""Keys, chords and functional progressions: the grammar of the composer in synth.py."""

import itertools
from typing import NamedTuple

import numpy as np

PITCH_CLASSES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
_MODES = ("major", "minor")
KEYS = tuple(f"{tonic} {mode}" for mode, tonic in itertools.product(_MODES, PITCH_CLASSES))

# Intervals above the root, in semitones; the names are those of mir_eval. N is "no chord".
QUALITIES: dict[str, tuple[int, ...]] = {
    "N": (),
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dim": (0, 3, 6),
    "sus4": (0, 5, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "hdim7": (0, 3, 6, 10),
}


class Chord(NamedTuple):
    """A chord: the pitch class of its root (0-11; -1 for no chord) and a name of QUALITIES."""

    root: int
    quality: str

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """The pitch classes of the chord, root first; empty for no chord."""
        return tuple((self.root + interval) % 12 for interval in QUALITIES[self.quality])


NO_CHORD = Chord(-1, "N")


class Degree(NamedTuple):
    """A degree of a key: semitones above the tonic, its triad, and what may follow, by weight."""

    interval: int
    quality: str
    followers: dict[str, float]


# Semitones above the tonic, triad, and the degrees that may follow with their weights.
# A "/" marks a secondary dominant; iv and bVII in major are borrowed from the minor mode.
_MAJOR: dict[str, Degree] = {
    "I": Degree(
        0,
        "maj",
        {"IV": 4, "V": 3, "vi": 4, "ii": 2, "iii": 1, "I": 2, "V/vi": 0.4, "bVII": 0.3},
    ),
    "ii": Degree(2, "min", {"V": 6, "vii": 1, "IV": 1}),
    "iii": Degree(4, "min", {"vi": 4, "IV": 3}),
    "IV": Degree(5, "maj", {"V": 4, "I": 3, "ii": 2, "iv": 0.6}),
    "V": Degree(7, "maj", {"I": 5, "vi": 2.5, "IV": 1}),
    "vi": Degree(9, "min", {"IV": 4, "ii": 3, "I": 1, "V": 1, "V/V": 0.4}),
    "vii": Degree(11, "dim", {"I": 4, "iii": 1}),
    "V/V": Degree(2, "7", {"V": 1}),
    "V/vi": Degree(4, "7", {"vi": 1}),
    "iv": Degree(5, "min", {"I": 2, "V": 1}),
    "bVII": Degree(10, "maj", {"IV": 2, "I": 1}),
}
_MINOR: dict[str, Degree] = {
    "I": Degree(0, "min", {"IV": 4, "VI": 4, "V": 3, "VII": 1.5, "ii": 1.5, "I": 2, "III": 0.7}),
    "ii": Degree(2, "dim", {"V": 1}),
    "III": Degree(3, "maj", {"VI": 4, "IV": 2, "VII": 2}),
    "IV": Degree(5, "min", {"V": 4, "I": 3, "VII": 2}),
    "V": Degree(7, "maj", {"I": 5, "VI": 2}),
    "VI": Degree(8, "maj", {"III": 1, "IV": 3, "VII": 3, "V": 1.5, "ii": 1}),
    "VII": Degree(10, "maj", {"III": 3, "I": 2, "VI": 1}),
}
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_SEVENTHS = {"maj": "maj7", "min": "min7", "dim": "hdim7", "7": "7"}


def progression(
    rng: np.random.Generator, key: int, length: int, cadence: str, sevenths: float
) -> list[Chord]:
    """Return a phrase of `length` >= 3 chords in a key (index into KEYS) from the tonic on.

    The last two chords make the cadence: "full" (V I), "half" (IV or ii, then V) or "open" (the
    walk goes on). `sevenths` is the probability that a triad gets its seventh.
    """
    degrees = _MAJOR if key < 12 else _MINOR
    names = ["I"]
    while len(names) < length:
        choices = degrees[names[-1]].followers
        weights = np.array(list(choices.values()))
        names.append(str(rng.choice(list(choices), p=weights / weights.sum())))
    if cadence == "full":
        names[-2:] = ["V", "I"]
    elif cadence == "half":
        names[-2:] = [str(rng.choice(["IV", "ii"])), "V"]
    return [_chord(rng, key, name, degrees, sevenths) for name in names]


def _chord(
    rng: np.random.Generator, key: int, name: str, degrees: dict[str, Degree], sevenths: float
) -> Chord:
    """Return the chord of a degree, sometimes with its seventh or, on V, a suspended fourth."""
    interval, quality, _ = degrees[name]
    if rng.random() < sevenths:
        quality = "7" if name == "V" else _SEVENTHS[quality]
    elif name == "V" and rng.random() < 0.1:
        quality = "sus4"
    return Chord((key + interval) % 12, quality)


def scale(key: int, chord: Chord) -> tuple[int, ...]:
    """Return the sorted pitch classes a melody may use over a chord in a key.

    They are the key's own scale, except that a degree gives way to the chord's alteration of it:
    the natural seventh of minor to the leading tone over V, the third to iv's borrowed sixth.
    """
    tones = {(key + step) % 12 for step in _SCALES["major" if key < 12 else "minor"]}
    for interval in QUALITIES[chord.quality]:
        tone = (chord.root + interval) % 12
        if tone not in tones:
            # A major third from outside the key is a raised degree, everything else a lowered one.
            tones.discard((tone + (-1 if interval == 4 else 1)) % 12)
            tones.add(tone)
    return tuple(sorted(tones))


def voicing(chord: Chord, previous: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """Return the close position of a chord in [low, high) nearest to the previous voicing."""
    tones = chord.pitch_classes
    options = []
    for inversion in range(len(tones)):
        turned = tones[inversion:] + tones[:inversion]
        for octave in range(11):
            pitches = [12 * octave + turned[0]]
            for tone in turned[1:]:
                pitches.append(pitches[-1] + (tone - pitches[-1]) % 12)
            if low <= pitches[0] and pitches[-1] < high:
                options.append(tuple(pitches))
    if not options:
        raise ValueError(f"voicing: no position of {chord} fits in [{low}, {high}); widen it")
    target = np.mean(previous) if previous else (low + high) / 2
    return min(options, key=lambda pitches: (abs(np.mean(pitches) - target), pitches))
