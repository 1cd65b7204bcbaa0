"""The parts of a piece: melody, chords, inner voices, bass and drums, written in beats.

Each part is a function of a random generator, a plan (key, meter and the chord of every beat)
and a range of MIDI pitches, and returns events. synth.py chooses who plays what and when.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_pipelines.composer import harmony
from data_pipelines.composer.harmony import NO_CHORD, Chord
from data_pipelines.composer.timbres import (
    CRASH,
    HAT,
    KICK,
    KIT,
    OPEN_HAT,
    RIDE,
    RIM,
    SNARE,
    TOM,
)

PHRASE = 4  # bars
FORM = "AABA"
_Stroke = tuple[float, float, int | None]  # beat, length and voice
_COMMON = 4  # beats that a pattern is written for; a longer bar repeats it from there


class Event(NamedTuple):
    """A note in musical time: start and length in beats, MIDI pitch, accent in 0..1."""

    beat: float
    length: float
    pitch: int
    accent: float


class MusicPlan(NamedTuple):
    """What all parts share: key (index into KEYS), beats in a bar, the chord of each beat."""

    key: int
    meter: int
    chords: tuple[Chord, ...]

    def spans(self) -> Iterator[tuple[int, int, Chord]]:
        """Yield (first beat, one past the last beat, chord), cut at bar lines."""
        start = 0
        for beat in range(1, len(self.chords) + 1):
            if (
                beat == len(self.chords)
                or beat % self.meter == 0
                or self.chords[beat] != self.chords[start]
            ):
                yield start, beat, self.chords[start]
                start = beat

    def accent(self, beat: float) -> float:
        """Return the metrical weight of a position: downbeat 1, beat 0.8, off-beat 0.65."""
        if beat % self.meter == 0:
            return 1.0
        return 0.8 if beat % 1 == 0 else 0.65


# Lengths in beats that fill a bar of four or three; a negative length is a rest.
_RHYTHMS: dict[int, tuple[tuple[float, ...], ...]] = {
    4: (
        (1, 1, 1, 1), (1.5, 0.5, 1, 1), (2, 1, 1), (0.5, 0.5, 1, 0.5, 0.5, 1), (3, 1),
        (-1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5, 1, -1), (1, 0.5, 0.5, 2), (1.5, 1.5, 1),
        (-0.5, 0.5, 0.5, 0.5, 2), (0.25, 0.25, 0.5, 1, 0.5, 0.5, 1), (0.75, 0.25, 1, 0.75, 0.25, 1),
    ),
    3: (
        (1, 1, 1), (2, 1), (1.5, 0.5, 1), (0.5, 0.5, 1, 1), (1, 0.5, 0.5, 0.5, 0.5), (-1, 1, 1),
        (0.5, 0.5, 0.5, 0.5, 1),
    ),
    2: ((1, 1), (1.5, 0.5), (0.5, 0.5, 1), (2,), (-1, 1), (0.5, 0.5, 0.5, 0.5), (0.75, 0.25, 1)),
}  # fmt: skip
# Longer bars are put together from shorter ones, as they are counted: five is three and two.
_RHYTHMS |= {
    first + second: tuple(a + b for a in _RHYTHMS[first] for b in _RHYTHMS[second])
    for first, second in ((3, 2), (3, 3), (4, 3))
}
_CLOSING = {
    2: ((2,), (1, -1)),
    3: ((3,), (2, -1)),
    4: ((4,), (3, -1), (2, -2)),
    5: ((5,), (3, -2)),
    6: ((6,), (4, -2), (3, -3)),
    7: ((7,), (4, -3)),
}
DRUMMED = (3, 4)  # beats in a bar that `drums` has grooves for

# Per bar: (beat, length, voice of the chord from below; None is the whole chord).
_COMPING: dict[str, list[_Stroke]] = {
    "quarters": [(b, 0.9, None) for b in range(4)],
    "offbeats": [(b + 0.5, 0.4, None) for b in range(4)],
    "charleston": [(0, 1.4, None), (1.5, 0.6, None), (3, 0.5, None)],
    "afterbeats": [(1, 0.7, None), (2, 0.7, None), (3, 0.7, None)],
    "strum": [(b, 0.5, None) for b in (0, 1, 1.5, 2.5, 3, 3.5)],
    "arpeggio": [(i / 2, 0.9, (0, 1, 2, 3, 2, 1, 2, 1)[i]) for i in range(8)],
    "alberti": [(i / 2, 0.5, (0, 2, 1, 2)[i % 4]) for i in range(8)],
    "ripple": [(i / 4, 0.5, (0, 1, 2, 3)[i % 4]) for i in range(16)],
}

# Per bar: (beat, length, chord tone counted from the root; 3 is the octave).
_BASS_LINES: dict[str, list[_Stroke]] = {
    "twos": [(0, 1.8, 0), (2, 1.8, 2)],
    "quarters": [(b, 0.9, 0) for b in range(4)],
    "eighths": [(i / 2, 0.45, 0) for i in range(8)],
    "octaves": [(i / 2, 0.4, 3 * (i % 2)) for i in range(8)],
    "syncopated": [(0, 1.4, 0), (1.5, 0.9, 0), (2.5, 0.5, 2), (3, 0.9, 3)],
    "walking": [(0, 0.95, 0), (1, 0.95, 1), (2, 0.95, 2), (3, 0.95, 1)],
}

# Sixteenths of a bar; x is a stroke, o a soft one.
_GROOVES = {
    4: (
        {KICK: "x.......x.x.....", SNARE: "....x.......x...", HAT: "x.o.x.o.x.o.x.o."},
        {KICK: "x..x....x.......", SNARE: "....x..o.o..x...", HAT: "xoxoxoxoxoxoxoxo"},
        {KICK: "x...x...x...x...", SNARE: "....x.......x...", OPEN_HAT: "..x...x...x...x."},
        {KICK: "x.........x.....", SNARE: "........x.......", HAT: "x...o...x...o..."},
        {KICK: "x..xo..xx..xo..x", RIM: "x..x..x...x..x..", HAT: "o.o.o.o.o.o.o.o."},
        {RIDE: "x...x.o.x...x.o.", HAT: "....x.......x...", KICK: "o.......o......."},
        {KICK: "x..x..x...x.....", SNARE: "....x.......x..o", RIDE: "x.x.x.x.x.x.x.x."},
        {HAT: "x.x.x.x.x.x.x.x.", RIM: "....x.......x..."},
    ),
    3: (
        {KICK: "x...........", SNARE: "....o...o...", HAT: "x...x...x..."},
        {KICK: "x.....x.....", SNARE: "........x...", HAT: "x.o.x.o.x.o."},
        {RIDE: "x...x.o.x...", HAT: "....x...x...", KICK: "o..........."},
    ),
}  # fmt: skip


def melody(rng: np.random.Generator, plan: MusicPlan, low: int, high: int) -> list[Event]:
    """Write a tune in phrases of four bars; a phrase comes back when the form says so."""
    length = PHRASE * plan.meter
    tunes: dict[str, list[Event]] = {}
    events = []
    for number, start in enumerate(range(0, len(plan.chords), length)):
        letter = FORM[number % len(FORM)]
        if letter not in tunes:
            tunes[letter] = _tune(rng, plan, start, low, high)
        events += [event._replace(beat=event.beat + start) for event in tunes[letter]]
    end = len(plan.chords)
    return [e for e in events if e.beat < end and plan.chords[int(e.beat)] != NO_CHORD]


def _tune(
    rng: np.random.Generator, plan: MusicPlan, start: int, low: int, high: int
) -> list[Event]:
    """Write one phrase over the chords from beat `start` on; its events count from 0.

    Bar 3 repeats the rhythm of bar 1, and the last bar comes to rest on the root of its chord. On
    strong beats are chord tones; between them the line moves by small steps of the scale.
    """
    patterns = _RHYTHMS[plan.meter]
    first, second = (patterns[rng.integers(len(patterns))] for _ in range(2))
    closings = _CLOSING[plan.meter]
    last = closings[rng.integers(len(closings))]

    # a note for each length, until the chords end
    pitch = int(rng.integers(low + 4, high - 4))
    close = 3 * plan.meter
    events, beat = [], 0.0
    for length in (*first, *second, *first, *last):
        if length > 0 and start + beat < len(plan.chords):
            chord = plan.chords[int(start + beat)]
            allowed: tuple[int, ...]
            if beat >= close and chord != NO_CHORD:
                allowed = (chord.root,)
            elif chord != NO_CHORD and (beat % plan.meter in (0, 2) or length >= 1.5):
                allowed = chord.pitch_classes
            else:
                allowed = harmony.scale(plan.key, chord)
            pitch = _next_pitch(rng, allowed, pitch, low, high)
            events.append(Event(beat, length, pitch, plan.accent(beat)))
        beat += abs(length)
    return events


def _next_pitch(
    rng: np.random.Generator, allowed: tuple[int, ...], pitch: int, low: int, high: int
) -> int:
    """Return the next pitch of a line: mostly steps, some leaps, drawn to the middle."""
    pull = 3.0 * ((low + high) / 2 - pitch) / (high - low)
    target = pitch + pull + rng.normal(0, 3.0)
    ladder = [p for p in range(low, high) if p % 12 in allowed]
    return min(ladder, key=lambda p: (abs(p - target) + 2.5 * (p == pitch), p))


def chords(rng: np.random.Generator, plan: MusicPlan, low: int, high: int) -> list[Event]:
    """Write the accompaniment: close voicings, smoothly led, in one pattern or simply held."""
    style = str(rng.choice([*_COMPING, "held", "held"]))
    stagger = 0.03 if style == "strum" else 0.0  # beats between the strings of a strum
    events: list[Event] = []
    voices: tuple[int, ...] = ()
    for start, end, chord in plan.spans():
        if chord == NO_CHORD:
            continue
        voices = harmony.voicing(chord, voices, low, high)
        for beat, length, voice in _strokes(_COMPING.get(style), plan.meter, start, end):
            chosen = voices if voice is None else (voices[voice % len(voices)],)
            for rank, pitch in enumerate(chosen):
                late = stagger * rank
                accent = plan.accent(beat)
                events.append(Event(beat + late, max(length - late, 0.1), pitch, accent))
    return events


def _strokes(pattern: list[_Stroke] | None, meter: int, start: int, end: int) -> Iterator[_Stroke]:
    """Yield a bar pattern's (beat, length, voice) within a span; None: one held chord."""
    if pattern is None:
        yield start, end - start, None
        return
    bar = start - start % meter
    for first in range(0, meter, _COMMON):
        for offset, length, voice in pattern:
            beat = bar + first + offset
            if start <= beat < end and first + offset < meter:
                yield beat, min(length, end - beat), voice


def inner(rng: np.random.Generator, plan: MusicPlan, low: int, high: int) -> list[Event]:
    """Write one to three held voices that move as little as the chords let them."""
    count = int(rng.integers(1, 4))
    events: list[Event] = []
    voices: tuple[int, ...] = ()
    for start, end, chord in plan.spans():
        if chord == NO_CHORD:
            continue
        voices = harmony.voicing(chord, voices, low, high)
        for pitch in voices[-count:]:
            events.append(Event(start, end - start, pitch, 0.8))
    return events


def bass(rng: np.random.Generator, plan: MusicPlan, low: int, high: int) -> list[Event]:
    """Write a bass line: the root where the chord changes, then its pattern."""
    style = str(rng.choice([*_BASS_LINES, "held"]))
    events = []
    for start, end, chord in plan.spans():
        if chord == NO_CHORD:
            continue
        root = low + (chord.root - low) % 12
        tones = [root + interval for interval in harmony.QUALITIES[chord.quality][:3]] + [root + 12]
        for beat, length, tone in _strokes(_BASS_LINES.get(style), plan.meter, start, end):
            pitch = root if beat == start else tones[tone or 0]
            pitch -= 12 if pitch >= high else 0
            events.append(Event(beat, length, pitch, plan.accent(beat)))
    return events


def drums(rng: np.random.Generator, plan: MusicPlan) -> list[Event]:
    """Write a groove, a crash where a phrase begins, a fill where one ends."""
    grooves = _GROOVES[plan.meter]
    groove = grooves[rng.integers(len(grooves))]
    crashes, fills = rng.random(2) < 0.6
    events = []

    for bar in range(len(plan.chords) // plan.meter):
        start = bar * plan.meter
        fill = plan.meter - 1 if fills and bar % PHRASE == PHRASE - 1 else plan.meter
        for drum, steps in groove.items():
            for step, mark in enumerate(steps):
                if mark != "." and step / 4 < fill:
                    accent = plan.accent(step / 4) if mark == "x" else 0.4
                    events.append(Event(start + step / 4, 0.25, drum, accent))
        if fill < plan.meter:
            for step in range(4):
                drum = SNARE if step < 2 else TOM
                events.append(Event(start + fill + step / 4, 0.25, drum, rng.uniform(0.6, 1.0)))
        if crashes and bar % PHRASE == 0:
            events.append(Event(start, 0.25, CRASH, 0.9))
    return events


def percussion(rng: np.random.Generator, plan: MusicPlan) -> list[Event]:
    """Write a bar's rhythm for two to five pieces of the kit, with evenly spread strokes.

    A rhythm has k strokes in the n steps of a bar, as evenly as steps allow (Euclidean rhythms;
    Toussaint, BRIDGES 2005), and starts at a step of its own; one stroke in eight is left out.
    """
    kit = [int(drum) for drum in rng.choice(list(KIT), int(rng.integers(2, 6)), replace=False)]
    steps = plan.meter * int(rng.choice([2, 3, 4]))  # of a bar
    rhythms = []
    for drum in kit:
        strokes, turn = int(rng.integers(1, max(steps // 2, 2) + 1)), int(rng.integers(steps))
        at = [step for step in range(steps) if (step + turn) * strokes % steps < strokes]
        rhythms.append((drum, at, float(rng.uniform(0.4, 1.0))))

    events = []
    for start in range(0, len(plan.chords), plan.meter):
        for drum, at, weight in rhythms:
            for step in at:
                beat = step * plan.meter / steps
                if rng.random() < 0.875:
                    events.append(Event(start + beat, 0.25, drum, weight * plan.accent(beat)))
    return events


def drone(rng: np.random.Generator, plan: MusicPlan, low: int, high: int) -> list[Event]:
    """Hold the tonic, or tonic and fifth, a phrase at a time."""
    tonic = low + (plan.key - low) % 12
    pitches = (tonic, tonic + 7) if tonic + 7 < high and rng.random() < 0.5 else (tonic,)
    length, end = PHRASE * plan.meter, len(plan.chords)
    return [
        Event(start, min(length, end - start), pitch, 0.8)
        for start in range(0, end, length)
        for pitch in pitches
    ]
