"""Clips to learn from: as those of synth.py, but wider in everything that music varies in.

The clips of synth.py are what probes are asked about, and stay as they are. An encoder that is to
learn music hears more here: bars of two to seven beats, tempi from 40 to 220 a minute, one to ten
parts that any player may have in any of its registers, several melodies at once and melodies that
follow each other, drones, percussion of sixteen pieces, crescendi and accents, players that are
mistuned and whose tone differs from clip to clip, and the rooms and recordings of recording.py.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data_pipelines.composer import parts, recording, synth, timbres
from data_pipelines.composer.parts import Event, MusicPlan
from data_pipelines.composer.render import render
from data_pipelines.composer.synth import Clip, Grid
from data_pipelines.composer.timbres import Layer, Note, Timbre

_STREAM = 5  # beside the seed: other numbers than those of synth.clip
METERS = (2, 3, 3, 4, 4, 4, 4, 5, 6, 7)  # equally likely
TEMPI = (40, 220)
LEVELS = (-42, -12)  # dBFS RMS
_SPAN = 26  # semitones that a part has, of those that its player can play
_CANON = 0.25  # the probability that a second melody is the first, a bar or two later
_PITCHED = len(timbres.TIMBRES)
_HIGHEST_TUNED = 0.4  # semitones


class _Part(NamedTuple):
    """What a player plays: how often it is there, how many times at most, how loud."""

    share: float
    most: int
    velocity: float


_PARTS = {
    "melody": _Part(0.8, 3, 0.6),
    "chords": _Part(0.55, 2, 0.35),
    "inner": _Part(0.3, 1, 0.3),
    "bass": _Part(0.55, 1, 0.4),
    "drone": _Part(0.12, 1, 0.3),
    "drums": _Part(0.3, 1, 0.6),
    "percussion": _Part(0.3, 1, 0.5),
}


def clip(seed: int, seconds: float = 30.0, sample_rate: int = 16000) -> Clip:
    """Compose, perform, render and record one clip; the same arguments give the same clip.

    Annotations are those of `synth.clip`. A varied instrument has the name of the one from which
    its tone was made.

    Raises:
      ValueError: the clip is too short for its first beats.
    """
    if seconds < 2.0:
        raise ValueError(f"clip: seconds is {seconds}; a clip needs at least 2 for its first beats")

    # the plan: key, meter, tempo and chords
    rng = np.random.default_rng((seed, _STREAM))
    key = int(rng.integers(24))
    grid, skipped = synth.draw_grid(rng, seconds, METERS, TEMPI)
    bars = len(grid.times) // grid.meter
    plan = MusicPlan(key, grid.meter, synth.draw_chords(rng, key, bars, grid.meter))

    heard = slice(skipped, int(np.searchsorted(grid.times, seconds)))
    played = _perform(rng, plan, grid, skipped, seconds)
    notes = [note for note in synth.within(played, seconds) if note.onset >= 0]

    # by players in their own colours and tuning, in a room, on a recording
    players = tuple(colour(rng, timbre) for timbre in timbres.TIMBRES)
    cents = rng.normal(0, 0.12, _PITCHED + 1).clip(-_HIGHEST_TUNED, _HIGHEST_TUNED)
    cents[timbres.DRUMS] = 0
    tuned = [note._replace(pitch=note.pitch + float(cents[note.instrument])) for note in notes]
    audio = render(tuned, seconds, sample_rate, (seed, _STREAM), players)  # [n]
    if rng.random() < 0.85:
        audio = recording.room(rng, audio, sample_rate)
    audio = recording.record(rng, audio, sample_rate)
    return Clip(
        audio=synth.loudness(rng, audio, *LEVELS),
        sample_rate=sample_rate,
        key=key,
        tempo=float(60 / np.mean(np.diff(grid.times[heard]))),
        beats=grid.times[heard],
        positions=np.arange(len(grid.times))[heard] % grid.meter + 1,
        chords=plan.chords[heard],
        notes=tuple(sorted(notes)),
    )


def colour(rng: np.random.Generator, timbre: Timbre) -> Timbre:
    """Return a timbre with a tone of its own: of another instrument maker, hall and player."""

    def about(value: float, octaves: float) -> float:
        return value * float(2 ** rng.uniform(-octaves, octaves))

    def layer(of: Layer) -> Layer:
        decay = of.decay if of.decay == timbres.FOREVER else about(of.decay, 1.0)
        return of._replace(level=about(of.level, 1.0), decay=decay, attack=about(of.attack, 1.0))

    formants = [f._replace(centre=about(f.centre, 0.4), gain=about(f.gain, 1.0))
                for f in timbre.formants]  # fmt: skip
    if rng.random() < 0.3:  # a body that this instrument usually does not have
        centre = about(900, 2.0)
        formants.append(timbres.Formant(centre, centre * rng.uniform(0.1, 0.5), about(1.5, 1.0)))
    noise = timbre.noise
    return dataclasses.replace(
        timbre,
        layers=tuple(layer(of) for of in timbre.layers),
        tilt=max(timbre.tilt + rng.uniform(-0.45, 0.45), 0.3),
        even=min(about(timbre.even, 1.5), 1.0),
        pluck=min(about(timbre.pluck, 0.7), 0.5),
        floor=min(about(timbre.floor, 1.0), 1.0),
        formants=tuple(formants),
        noise=noise and noise._replace(level=about(noise.level, 1.5)),
        attack=about(timbre.attack, 1.2),
        release=about(timbre.release, 1.0),
        vibrato=timbre.vibrato * rng.uniform(0, 2) if rng.random() < 0.7 else 0.0,
        tremolo=min(timbre.tremolo * rng.uniform(0, 2), 0.6),
        drive=about(timbre.drive, 1.0) if rng.random() < 0.9 else rng.uniform(1.0, 4.0),
    )


def _perform(
    rng: np.random.Generator, plan: MusicPlan, grid: Grid, first: int, seconds: float
) -> list[Note]:
    """Choose parts and players, have each part written, and play it from a beat on."""
    cast = [
        name
        for name, part in _PARTS.items()
        for _ in range(part.most)
        if rng.random() < part.share / (1 + (part.most - 1) / 2)
    ]
    notes: list[Note] = []
    tune: list[Event] = []
    for name in cast or ["melody"]:
        drums = name in ("drums", "percussion")
        instrument = timbres.DRUMS if drums else int(rng.integers(_PITCHED))
        low, high = (0, 128) if drums else _register(rng, timbres.TIMBRES[instrument])
        if name == "melody" and tune and rng.random() < _CANON:
            events = _later(rng, tune, plan, low, high)
        else:
            events = _write(rng, name, plan, low, high)
        tune = events if name == "melody" else tune
        # Every third player waits for some bars, or leaves before the end.
        entry, leave = first, len(plan.chords)
        if notes and rng.random() < 0.33:
            entry = plan.meter * int(rng.integers(1, 4))
        elif notes and rng.random() < 0.15:
            leave = plan.meter * int(rng.integers(2, max(len(plan.chords) // plan.meter, 3)))
        events = [e for e in synth.from_beat(events, entry) if e.beat < leave]
        velocity = _PARTS[name].velocity * float(10 ** (rng.uniform(-9, 3) / 20))
        notes += _shaped(rng, synth.play(rng, events, instrument, velocity, grid), seconds)
    return notes


def _register(rng: np.random.Generator, timbre: Timbre) -> tuple[int, int]:
    """Return a range of MIDI pitches [low, high) that a part is written in."""
    low = int(rng.integers(timbre.low, max(timbre.high - _SPAN, timbre.low) + 1))
    return low, min(low + _SPAN, timbre.high)


def _write(
    rng: np.random.Generator, name: str, plan: MusicPlan, low: int, high: int
) -> list[Event]:
    """Write a part of _PARTS."""
    if name == "percussion" or (name == "drums" and plan.meter not in parts.DRUMMED):
        return parts.percussion(rng, plan)
    if name == "drums":
        return parts.drums(rng, plan)
    write = {
        "melody": parts.melody,
        "chords": parts.chords,
        "inner": parts.inner,
        "bass": parts.bass,
        "drone": parts.drone,
    }[name]
    return write(rng, plan, low, high)


def _later(
    rng: np.random.Generator, tune: list[Event], plan: MusicPlan, low: int, high: int
) -> list[Event]:
    """Return a melody that follows another by a bar or two, octaves away: a canon."""
    late = plan.meter * int(rng.integers(1, 3))
    shift = 12 * round(((low + high) / 2 - np.mean([event.pitch for event in tune])) / 12)
    moved = [event._replace(beat=event.beat + late, pitch=event.pitch + shift) for event in tune]
    end = len(plan.chords)
    return [e for e in moved if e.beat < end and low <= e.pitch < high]


def _shaped(rng: np.random.Generator, notes: list[Note], seconds: float) -> list[Note]:
    """Make a part's notes louder and softer over the clip, by up to 18 dB, and one by one."""
    decibels = rng.uniform(-18, 0, 4) if rng.random() < 0.5 else np.zeros(4)
    decibels = decibels - decibels.max()
    touch = rng.uniform(0, 6, len(notes)) if rng.random() < 0.5 else np.zeros(len(notes))
    at = [note.onset for note in notes]
    gains = np.interp(at, np.linspace(0, seconds, 4), decibels) - touch
    gains = 10 ** (gains / 20)
    return [
        note._replace(velocity=note.velocity * float(gain))
        for note, gain in zip(notes, gains, strict=True)
    ]
