"""A seeded composer: clips of tonal music with exact annotations, from nothing but NumPy.

A piece is written in beats (parts.py, on the chords of harmony.py), performed in seconds (swing,
tempo drift, timing jitter) and rendered by timbres.py; a room and a loudness finish it. Textures
run from a lone flute to a full band. It is a demonstration and test corpus: music-like, not music.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.signal

from data_pipelines.composer import harmony, parts, timbres
from data_pipelines.composer.harmony import NO_CHORD, Chord
from data_pipelines.composer.parts import Event, MusicPlan
from data_pipelines.composer.render import render
from data_pipelines.composer.timbres import Note

_TEXTURES = (
    ("melody",),
    ("melody", "inner", "bass"),
    ("melody", "chords"),
    ("chords", "bass", "drums"),
    ("melody", "chords", "bass"),
    ("melody", "chords", "bass", "drums"),
    ("melody", "chords", "bass", "drums"),
    ("melody", "inner", "bass", "drums"),
    ("melody", "chords", "inner", "bass", "drums"),
)


_METERS = (4, 4, 4, 3)  # beats in a bar, equally likely
_TEMPI = (64, 176)  # beats a minute


class Role(NamedTuple):
    """How a part is written, who may play it, in which range of MIDI pitches, and how loud."""

    write: Callable[[np.random.Generator, MusicPlan, int, int], list[Event]]
    instruments: tuple[str, ...]
    low: int
    high: int
    velocity: float


_ROLES = {
    "melody": Role(
        parts.melody, (
            "flute", "clarinet", "trumpet", "violin", "voice", "synth", "guitar", "piano",
            "marimba", "vibraphone", "overdriven_guitar", "electric_piano", "harpsichord", "organ",
        ), 60, 84, 0.7,
    ),
    "chords": Role(
        parts.chords, (
            "piano", "guitar", "electric_piano", "organ", "harpsichord", "synth", "vibraphone",
            "overdriven_guitar", "marimba",
        ), 48, 76, 0.4,
    ),
    "inner": Role(
        parts.inner, ("violin", "voice", "organ", "clarinet", "trumpet", "synth"), 50, 76, 0.3,
    ),
    "bass": Role(
        parts.bass, ("bass", "bass", "bass", "synth", "piano", "violin", "organ"), 28, 50, 0.4,
    ),
    "drums": Role(lambda rng, plan, low, high: parts.drums(rng, plan), ("drums",), 0, 128, 0.7),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clip:
    """Audio and everything that is known about it.

    audio: int16 [n]. key: index into harmony.KEYS. tempo: mean beats a minute.
    beats: seconds [beats]. positions: of each beat in its bar, from 1, [beats].
    chords: one for each beat. notes: by onset; none begins before the clip.
    """

    audio: np.ndarray
    sample_rate: int
    key: int
    tempo: float
    beats: np.ndarray
    positions: np.ndarray
    chords: tuple[Chord, ...]
    notes: tuple[Note, ...]


class Grid(NamedTuple):
    """Musical time: the second of each beat [beats], beats in a bar, where the off-beat falls."""

    times: np.ndarray
    meter: int
    swing: float

    def seconds(self, beat: float) -> float:
        """Return the second of a position in beats, the second half of each beat swung."""
        whole, part = divmod(beat, 1.0)
        late = self.swing
        part = part * 2 * late if part < 0.5 else late + (part - 0.5) * 2 * (1 - late)
        return float(np.interp(whole + part, np.arange(len(self.times)), self.times))


def clip(seed: int, seconds: float = 30.0, sample_rate: int = 16000) -> Clip:
    """Compose, perform and render one clip; the same arguments give the same clip.

    The 24 seeds from any multiple of 24 on have the 24 keys once each.
    """
    if seconds < 2.0:
        raise ValueError(f"clip: seconds is {seconds}; a clip needs at least 2 for its first beats")

    # the plan: a key (each of the 24 once in 24 seeds), then meter, tempo and chords
    rng = np.random.default_rng(seed)
    key = int(np.random.default_rng((seed // 24, 24)).permutation(24)[seed % 24])
    grid, skipped = draw_grid(rng, seconds)
    plan = MusicPlan(
        key, grid.meter, draw_chords(rng, key, len(grid.times) // grid.meter, grid.meter)
    )

    heard = slice(skipped, int(np.searchsorted(grid.times, seconds)))
    notes = within(_perform(rng, plan, grid, skipped), seconds)

    audio = render(notes, seconds, sample_rate, seed)  # [n]
    return Clip(
        audio=loudness(rng, room(rng, audio, sample_rate)),
        sample_rate=sample_rate,
        key=key,
        tempo=float(60 / np.mean(np.diff(grid.times[heard]))),
        beats=grid.times[heard],
        positions=np.arange(len(grid.times))[heard] % grid.meter + 1,
        chords=plan.chords[heard],
        notes=tuple(sorted(notes)),
    )


def within(notes: Sequence[Note], seconds: float) -> list[Note]:
    """Return the notes of a clip, cut at its end, without those that have hardly begun there."""
    cut = [note._replace(offset=min(note.offset, seconds)) for note in notes]
    return [note for note in cut if note.onset + 0.02 < note.offset]


def room(rng: np.random.Generator, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Add the reverberation of a random room to audio [n]; the direct sound stays in place."""
    decay = rng.uniform(0.2, 1.1)  # seconds to -60 dB
    wet = 10 ** (rng.uniform(-26, -11) / 20)
    t = np.arange(int(decay * sample_rate)) / sample_rate  # [taps]
    response = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay)
    response[: int(rng.uniform(0.004, 0.02) * sample_rate)] = 0.0
    # Air and walls swallow the high end: a one-pole low-pass on the response.
    response = scipy.signal.lfilter([0.5], [1.0, -0.5], response)
    return reverberated(audio, response, wet)


def reverberated(audio: np.ndarray, response: np.ndarray, wet: float) -> np.ndarray:
    """Return audio [n] and, at a level of `wet`, its echoes; the response [taps] is changed."""
    response *= wet / np.linalg.norm(response)
    response[0] = 1.0
    full = scipy.signal.oaconvolve(audio, response.astype(np.float32))  # [n + taps - 1]
    return full[: len(audio)]


def loudness(
    rng: np.random.Generator, audio: np.ndarray, low: float = -30, high: float = -14
) -> np.ndarray:
    """Scale audio [n] to a random level of `low` to `high` dBFS RMS, peaks below -0.3 dBFS, int16.

    A hiss of -80 to -60 dBFS lies under it, as under any recording: no stretch of it is digital
    silence, which has no variance to normalise by.
    """
    gain = 10 ** (rng.uniform(low, high) / 20) / (np.sqrt(np.mean(audio**2)) + 1e-9)
    gain = min(gain, 0.965 / (np.max(np.abs(audio)) + 1e-9))
    hiss = rng.standard_normal(len(audio), np.float32) * np.float32(
        10 ** (rng.uniform(-80, -60) / 20)
    )
    return np.round(32767 * np.clip(audio * np.float32(gain) + hiss, -1, 1)).astype(np.int16)


def draw_grid(
    rng: np.random.Generator,
    seconds: float,
    meters: Sequence[int] = _METERS,
    tempi: tuple[float, float] = _TEMPI,
) -> tuple[Grid, int]:
    """Draw meter, tempo, drift and swing; return the grid and the beats before the clip.

    The clip begins inside the first bar: the beats of that bar before it have negative times.
    """
    meter = int(rng.choice(list(meters)))
    period = 60 / float(np.exp(rng.uniform(*(np.log(tempo) for tempo in tempi))))
    count = meter * (int(seconds / period / meter) + 3)
    # Players wander: a random walk of the tempo, within about one per cent.
    wander = np.cumsum(rng.normal(0, 0.0015, count))
    lengths = 1 + np.clip(wander - wander.mean(), -0.012, 0.012)
    times = np.cumsum(lengths) * period / lengths.mean()
    skipped = int(rng.integers(meter))
    times += rng.uniform(0.05, 0.95) * period - times[skipped]
    swing = 0.5 if rng.random() < 0.6 else rng.uniform(0.52, 0.64)
    return Grid(times, meter, swing), skipped


def draw_chords(rng: np.random.Generator, key: int, bars: int, meter: int) -> tuple[Chord, ...]:
    """Return the chord of each beat, four-bar phrases in the form that the melody follows."""
    sevenths = float(rng.choice([0.0, 0.15, 0.8]))
    slot = 2 if meter == 4 and rng.random() < 0.3 else meter  # beats to a chord
    phrases = {}
    for letter, cadences in (("A", ("full", "full", "half")), ("B", ("open", "half"))):
        slots = parts.PHRASE * meter // slot
        phrases[letter] = harmony.progression(rng, key, slots, str(rng.choice(cadences)), sevenths)

    # each phrase in its turn, each of its chords for `slot` beats, up to the last bar
    chords: list[Chord] = []
    for phrase in range(-(-bars // parts.PHRASE)):
        for chord in phrases[parts.FORM[phrase % len(parts.FORM)]]:
            chords += [chord] * slot
    chords = chords[: bars * meter]
    if rng.random() < 0.15:  # a bar in which everyone but the drummer stops
        start = meter * int(rng.integers(1, bars - 1))
        chords[start : start + meter] = [NO_CHORD] * meter
    return tuple(chords)


def _perform(rng: np.random.Generator, plan: MusicPlan, grid: Grid, first: int) -> list[Note]:
    """Choose a texture and its players, have each part written, and play it from a beat on."""
    texture = _TEXTURES[rng.integers(len(_TEXTURES))]
    notes = []
    for number, name in enumerate(texture):
        role = _ROLES[name]
        instrument = timbres.INSTRUMENTS.index(str(rng.choice(role.instruments)))
        low, high = role.low, role.high
        if instrument != timbres.DRUMS:
            timbre = timbres.TIMBRES[instrument]
            low, high = max(low, timbre.low), min(high, timbre.high)
        events = role.write(rng, plan, low, high)
        # Now and then a player other than the first waits for a bar or two.
        entry = plan.meter * int(rng.integers(1, 4)) if number and rng.random() < 0.25 else first
        events = from_beat(events, entry)
        notes += play(rng, events, instrument, role.velocity, grid)
    return notes


def from_beat(events: list[Event], first: int) -> list[Event]:
    """Leave out what ends before a beat, and start on it what would be sounding there."""
    heard = [event for event in events if event.beat + event.length > first + 0.2]
    return [
        event
        if event.beat >= first
        else event._replace(beat=first, length=event.beat + event.length - first)
        for event in heard
    ]


def play(
    rng: np.random.Generator, events: list[Event], instrument: int, velocity: float, grid: Grid
) -> list[Note]:
    """Turn events into notes: a touch of jitter, an articulation, louder and softer strokes."""
    articulation = rng.uniform(0.7, 1.0)
    velocity *= 10 ** (rng.uniform(-3, 3) / 20)
    jitter = np.clip(rng.normal(0, 0.006, len(events)), -0.015, 0.015).tolist()  # seconds
    touch = rng.uniform(0.85, 1.0, len(events)).tolist()

    # from the last note backwards, so that each ends before its pitch sounds again
    free: dict[int, float] = {}  # when a pitch that sounds again must have ended
    notes = []
    for event, late, strength in sorted(zip(events, jitter, touch, strict=True), reverse=True):
        onset = grid.seconds(event.beat) + late
        offset = grid.seconds(event.beat + event.length * articulation) + late
        if instrument == timbres.DRUMS:
            offset = onset + timbres.drum_seconds(event.pitch)
        offset = min(offset, free.get(event.pitch, np.inf))
        free[event.pitch] = onset
        strength *= velocity * (0.4 + 0.6 * event.accent)
        notes.append(Note(onset, offset, event.pitch, instrument, strength))
    return notes
