"""Stimuli that test what is heard when several notes sound at once: the design of the notes.

Four sets, each with the questions that its clips answer:
  target    1 to 6 instruments, one of them always the voice: which pitch class does the voice have?
  voices    1 to 6 instruments: how many, which pitch class has the lowest and which the highest,
            and who plays the lowest?
  interval  two notes of one timbre: which interval, from a minor second to an octave?
  chord     four notes of one timbre, in root position: which quality?

Whatever could give an answer without listening is the same for every answer. At each level of a
set's first factor (how many sound, or which interval or chord) the other factors and answers are
balanced and shuffled. The outermost of 2 to 6 notes have the same distribution, so that register
and spread do not tell how many sound between them; triads have their root twice, so that every
chord has four notes. Notes begin together, each at a level of its own; clips have one length, and a
loudness of their own. No constellation of two or more notes (the pitches and who plays them) is in
two splits of a set. There are too few single notes for that: their splits differ in the players'
colour, tuning, room and level.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.composer import harmony, synth, timbres
from data_pipelines.composer.render import render
from data_pipelines.composer.timbres import Note

SECONDS = 2.0
VOICES = range(1, 7)
# Cents that every note is off equal temperament, up or down. Two notes are then at most 40 cents
# from their interval, so that the nearest in semitones is the one meant.
_DETUNING = (0, 10, 20)
_LOWEST = 48  # C3; the sets target and voices use the three octaves from here
PLAYERS = ("guitar", "harpsichord", "piano", "violin", "organ", "electric_piano", "synth", "voice")
_TARGET = "voice"
_SPAN = range(12, 24)  # semitones from the lowest to the highest voice
_TIMBRES = ("harpsichord", "piano", "violin", "organ", "electric_piano", "synth")  # from C2 to B5
_OCTAVES = (2, 3, 4)  # of the lowest note of an interval or a chord
INTERVALS = ("m2", "M2", "m3", "M3", "P4", "TT", "P5", "m6", "M6", "m7", "M7", "P8")
CHORDS = {  # semitones above the root
    name: (*steps, 12)[:4] for name, steps in harmony.QUALITIES.items() if steps
}
SPLITS = ("train", "validation", "test")


class Voice(NamedTuple):
    """A note that sounds: MIDI pitch, who plays it, cents that it is out of tune."""

    pitch: int
    player: str
    cents: int


@dataclasses.dataclass(frozen=True)
class Stimulus:
    """The voices of a clip from the lowest up, and what is known about them.

    octave: of the voice that is asked about, or of the lowest; C4 is middle C. timbre: of all
    voices, or "mixed". detuning: cents. labels: answers, as indices.
    """

    voices: tuple[Voice, ...]
    octave: int
    timbre: str
    detuning: int
    labels: Mapping[str, int]


class StimulusSet(NamedTuple):
    """What is drawn: a first factor, what is balanced at each of its levels, and from them a clip.

    `draw` is called again if its constellation is taken, so it makes random choices of its own.
    """

    first: str
    levels: Sequence
    balanced: Mapping[str, Sequence]
    draw: Callable[[np.random.Generator, dict], Stimulus]


def design(name: str, sizes: Mapping[str, int]) -> dict[str, list[Stimulus]]:
    """Return the clips of a set of SETS by split, given how many; each call returns the same ones.

    Raises:
      ValueError: there are not enough constellations.
    """
    taken: set[tuple[tuple[int, str], ...]] = set()
    clips = {}
    for split, size in sizes.items():
        rng = np.random.default_rng((list(SETS).index(name), SPLITS.index(split)))
        rows = _rows(rng, SETS[name], size)
        clips[split] = [_fresh(rng, name, row, taken) for row in rows]
        taken |= {constellation(stimulus) for stimulus in clips[split]}
    return clips


def constellation(stimulus: Stimulus) -> tuple[tuple[int, str], ...]:
    """Return the pitches that sound, and who plays them."""
    return tuple((voice.pitch, voice.player) for voice in stimulus.voices)


def sound(stimulus: Stimulus, seed: tuple[int, ...], sample_rate: int) -> np.ndarray:
    """Render a stimulus, int16 [n]; the seed draws the players' colours, levels and the room."""
    rng = np.random.default_rng(seed)
    onset = rng.uniform(0.05, 0.2)
    audio = np.zeros(round(SECONDS * sample_rate), np.float32)  # [n]
    for pitch, player, cents in stimulus.voices:
        instrument = timbres.INSTRUMENTS.index(player)
        note = Note(onset, SECONDS - 0.1, pitch + cents / 100, instrument)
        tone = render([note], SECONDS, sample_rate, seed)
        audio += tone * np.float32(10 ** (rng.uniform(-3, 3) / 20) / np.sqrt(np.mean(tone**2)))
    # Quieter than the composer's clips: a peak that had to be limited would tell how few play.
    return synth.loudness(rng, synth.room(rng, audio, sample_rate), -36, -22)


def _rows(rng: np.random.Generator, of: StimulusSet, size: int) -> list[dict]:
    """Draw the levels of all factors for each clip, balanced at each level of the first factor."""
    first = np.resize(np.arange(len(of.levels)), size)
    columns = {of.first: np.asarray(of.levels)[first]}
    for name, levels in of.balanced.items():
        column = np.empty(size, int)  # an index into levels
        for level in range(len(of.levels)):
            here = np.flatnonzero(first == level)
            each = np.resize(rng.permutation(len(levels)), len(here))
            column[here] = rng.permutation(each)
        columns[name] = np.asarray(levels)[column]
    values = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _fresh(rng: np.random.Generator, name: str, row: dict, taken: set) -> Stimulus:
    """Draw a stimulus for a row: of one note, or of a constellation that is not in `taken`."""
    for _ in range(1000):
        stimulus = SETS[name].draw(rng, row)
        if len(stimulus.voices) == 1 or constellation(stimulus) not in taken:
            return stimulus
    raise ValueError(f"polyphony: no constellation of set {name} is left for {row}: make fewer")


def _target(rng: np.random.Generator, row: dict) -> Stimulus:
    rank = row["rank"] % row["voices"]
    pitches = _pitches(rng, row, rank)
    candidates = [player for player in PLAYERS if player != _TARGET]
    others = [str(name) for name in rng.permutation(candidates)]
    players = [*others[:rank], _TARGET, *others[rank:]][: row["voices"]]
    labels = {"target": row["pitch_class"]}
    return _stimulus(rng, pitches, players, row["detuning"], labels, rank)


def _voices(rng: np.random.Generator, row: dict) -> Stimulus:
    pitches = _pitches(rng, row, 0)
    others = rng.permutation([name for name in PLAYERS if name != row["player"]])
    players = [row["player"], *(str(name) for name in others[: row["voices"] - 1])]
    labels = {
        "count": row["voices"] - 1,
        "lowest": int(pitches[0] % 12),
        "highest": int(pitches[-1] % 12),
        "instrument": PLAYERS.index(row["player"]),
    }
    return _stimulus(rng, pitches, players, row["detuning"], labels)


def _interval(rng: np.random.Generator, row: dict) -> Stimulus:
    labels = {"interval": row["interval"] - 1}
    return _of_one_timbre(rng, (0, row["interval"]), row, labels)


def _chord(rng: np.random.Generator, row: dict) -> Stimulus:
    labels = {"quality": list(CHORDS).index(row["chord"])}
    return _of_one_timbre(rng, CHORDS[row["chord"]], row, labels)


def _of_one_timbre(
    rng: np.random.Generator, steps: Sequence[int], row: dict, labels: dict[str, int]
) -> Stimulus:
    pitches = 12 * (row["octave"] + 1) + rng.integers(12) + np.array(steps)
    return _stimulus(rng, pitches, [row["timbre"]] * len(steps), row["detuning"], labels)


def _stimulus(
    rng: np.random.Generator,
    pitches: np.ndarray,
    players: Sequence[str],
    detuning: int,
    labels: dict[str, int],
    asked: int = 0,
) -> Stimulus:
    cents = (detuning * rng.choice([-1, 1], len(pitches))).tolist()
    voices = tuple(Voice(*each) for each in zip(pitches.tolist(), players, cents, strict=True))
    timbre = players[0] if len(set(players)) == 1 else "mixed"
    return Stimulus(voices, voices[asked].pitch // 12 - 1, timbre, detuning, labels)


def _pitches(rng: np.random.Generator, row: dict, rank: int) -> np.ndarray:
    """Draw ascending MIDI pitches, two semitones apart; that of a rank has the row's pitch class.

    The lowest of two or more is in the first octave, a single note in any of the three.
    """
    count, span = row["voices"], row["span"]
    if count == 1:
        return np.array([_LOWEST + 12 * row["octave"] + row["pitch_class"]])
    inner = np.sort(rng.choice(span - count, count - 2, replace=False))
    steps = np.array([0, *(inner + 2 + np.arange(count - 2)), span])
    return _LOWEST + (row["pitch_class"] - steps[rank]) % 12 + steps


_BAND = {"pitch_class": range(12), "span": _SPAN, "octave": range(3), "detuning": _DETUNING}
_TIMBRE = {"octave": _OCTAVES, "timbre": _TIMBRES, "detuning": _DETUNING}
SETS = {
    "target": StimulusSet("voices", VOICES, _BAND | {"rank": range(60)}, _target),
    "voices": StimulusSet("voices", VOICES, _BAND | {"player": PLAYERS}, _voices),
    "interval": StimulusSet("interval", range(1, 13), _TIMBRE, _interval),
    "chord": StimulusSet("chord", tuple(CHORDS), _TIMBRE, _chord),
}
