"""Sixteen synthetic instruments: what a note is, and how each instrument makes its tone.

A pitched instrument is a sum of layers. A layer is a set of harmonics with its own attack and
decay, so a tone changes colour while it sounds: a piano's high partials die first, a trumpet's
arrive last. Around the layers are an envelope, vibrato, breath or hammer noise, body resonances
(the formants of a voice, the box of a violin) and, for the overdriven guitar, a saturating
amplifier. The last instrument is a drum kit, whose pitches are those of the General MIDI
percussion map. render.py turns notes into sound.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

FOREVER = 1e6  # seconds; the decay of a layer that sounds as long as it is held


class Note(NamedTuple):
    """One note: seconds, MIDI pitch (may be fractional), index into INSTRUMENTS, amplitude.

    `offset` is the moment of release, not the end of the sound: a release and the room follow it.
    For the drum kit, `pitch` names the drum and `offset` is when its sound has died away.
    """

    onset: float
    offset: float
    pitch: float
    instrument: int
    velocity: float = 0.7


class Layer(NamedTuple):
    """Harmonics `first` to `last` of `ratio` x f0, rising and dying with time constants (s)."""

    first: int
    last: int
    level: float
    decay: float = FOREVER
    attack: float = 0.0
    ratio: float = 1.0


class Formant(NamedTuple):
    """A resonance: centre and half width in Hz, gain over the instrument's floor."""

    centre: float
    width: float
    gain: float


class Noise(NamedTuple):
    """Breath, bow or hammer: a band of noise (Hz) that dies with the time constant `decay` (s)."""

    level: float
    low: float
    high: float
    decay: float = FOREVER


@dataclasses.dataclass(frozen=True)
class Timbre:
    """A pitched instrument; times in seconds, vibrato in cents, range in MIDI pitches."""

    name: str
    family: str
    low: int
    high: int
    layers: tuple[Layer, ...]
    tilt: float = 1.0  # harmonic h has amplitude h ** -tilt before everything else
    even: float = 1.0  # gain of the even harmonics: a closed pipe has hardly any
    pluck: float = 0.0  # where the string is struck, as a share of its length
    floor: float = 1.0  # gain far away from every formant
    formants: tuple[Formant, ...] = ()
    noise: Noise | None = None
    attack: float = 0.004
    release: float = 0.08
    vibrato: float = 0.0
    tremolo: float = 0.0
    drive: float = 0.0
    level: float = 1.0


_STRINGS = (Layer(1, 6, 1.0, 1.6), Layer(7, 40, 1.0, 0.35, ratio=1.0005))

TIMBRES = (
    Timbre(
        "guitar", "plucked", 40, 84, _STRINGS, tilt=1.3, pluck=0.23, level=1.4,
        formants=(Formant(110, 40, 1.0), Formant(220, 60, 0.8)),
        noise=Noise(0.3, 800, 4000, 0.008), attack=0.002, release=0.12,
    ),
    Timbre(
        "harpsichord", "plucked", 36, 86,
        (Layer(1, 40, 1.0, 0.9), Layer(1, 30, 0.6, 0.6, ratio=2.0)),
        tilt=0.45, pluck=0.11, noise=Noise(0.5, 2000, 7000, 0.006), attack=0.001, release=0.05,
    ),
    Timbre(
        "piano", "struck", 28, 96,
        (
            Layer(1, 4, 1.0, 1.8),
            Layer(5, 9, 1.0, 0.7, ratio=1.001),
            Layer(10, 24, 1.0, 0.3, ratio=1.004),
        ),
        tilt=1.2, pluck=0.12, noise=Noise(0.35, 100, 1200, 0.02), attack=0.003, level=1.4,
    ),
    Timbre(
        "marimba", "mallet", 45, 96,
        (
            Layer(1, 1, 1.0, 0.35), Layer(1, 1, 0.45, 0.07, ratio=3.93),
            Layer(1, 1, 0.2, 0.03, ratio=9.2),
        ),
        noise=Noise(0.4, 300, 2500, 0.008), attack=0.001, release=0.3, level=1.8,
    ),
    Timbre(
        "vibraphone", "mallet", 53, 89,
        (
            Layer(1, 1, 1.0, 2.5), Layer(1, 1, 0.35, 1.0, ratio=4.0),
            Layer(1, 1, 0.1, 0.2, ratio=10.0),
        ),
        attack=0.002, release=0.5, tremolo=0.35, level=1.2,
    ),
    Timbre(
        "flute", "blown", 60, 96, (Layer(1, 2, 1.0), Layer(3, 8, 0.7, attack=0.05)),
        tilt=1.9, noise=Noise(0.1, 900, 3500), attack=0.045, release=0.07, vibrato=14,
    ),
    Timbre(
        "clarinet", "reed", 50, 89, (Layer(1, 5, 1.0), Layer(6, 25, 1.0, attack=0.03)),
        tilt=1.1, even=0.06, formants=(Formant(1500, 500, 1.0),),
        noise=Noise(0.03, 1500, 6000), attack=0.025, release=0.05, vibrato=3,
    ),
    Timbre(
        "trumpet", "brass", 52, 86,
        (Layer(1, 3, 0.9), Layer(4, 9, 1.2, attack=0.05), Layer(10, 30, 1.2, attack=0.09)),
        tilt=0.55, formants=(Formant(1200, 500, 1.2), Formant(2400, 900, 0.6)),
        floor=0.5, attack=0.02, release=0.06, vibrato=7,
    ),
    Timbre(
        "violin", "bowed", 36, 96, (Layer(1, 8, 1.0), Layer(9, 60, 1.0, attack=0.06)),
        tilt=0.95, floor=0.5, attack=0.07, release=0.12, vibrato=18,
        formants=(Formant(290, 60, 0.8), Formant(480, 90, 1.0), Formant(2700, 800, 1.5)),
        noise=Noise(0.07, 1500, 7000),
    ),
    Timbre(
        "organ", "organ", 36, 96,
        (
            Layer(1, 1, 1.0), Layer(1, 1, 0.8, ratio=2.0), Layer(1, 1, 0.5, ratio=3.0),
            Layer(1, 1, 0.5, ratio=4.0), Layer(1, 1, 0.35, ratio=8.0),
        ),
        noise=Noise(0.25, 1500, 6000, 0.004), attack=0.006, release=0.03, tremolo=0.12,
    ),
    Timbre(
        "electric_piano", "electric", 36, 93,
        (Layer(1, 3, 1.0, 1.6), Layer(2, 8, 0.8, 0.3), Layer(1, 1, 0.35, 0.09, ratio=14.0)),
        tilt=1.6, attack=0.002, release=0.1, tremolo=0.2, level=1.3,
    ),
    Timbre(
        "synth", "electric", 28, 96,
        (Layer(1, 80, 1.0), Layer(1, 80, 0.8, ratio=0.9955), Layer(1, 80, 0.8, ratio=1.0045)),
        tilt=1.0, formants=(Formant(500, 900, 2.0),), floor=0.3, attack=0.012, release=0.15,
    ),
    Timbre(
        "overdriven_guitar", "electric", 40, 86,
        (Layer(1, 4, 1.0, 1.6), Layer(5, 12, 1.0, 0.5)), tilt=1.0, pluck=0.17,
        noise=Noise(0.2, 800, 4000, 0.008), release=0.06, vibrato=5, drive=5.0, level=0.8,
    ),
    Timbre(
        "voice", "voice", 45, 84,
        (Layer(1, 60, 1.0), Layer(1, 60, 0.5, ratio=0.997), Layer(1, 60, 0.5, ratio=1.003)),
        tilt=0.8, floor=0.02, attack=0.08, release=0.12, vibrato=22,
        formants=(Formant(700, 110, 1.0), Formant(1150, 130, 0.6), Formant(2800, 250, 0.35)),
        noise=Noise(0.04, 2000, 7000),
    ),
    Timbre(
        "bass", "bass", 24, 60, (Layer(1, 3, 1.0, 1.4), Layer(4, 20, 1.0, 0.25)),
        tilt=1.2, pluck=0.3, noise=Noise(0.3, 300, 2500, 0.006), attack=0.003, level=1.4,
    ),
)  # fmt: skip

INSTRUMENTS = (*(timbre.name for timbre in TIMBRES), "drums")
DRUMS = len(TIMBRES)  # the drum kit's index in INSTRUMENTS


class Drum(NamedTuple):
    """One piece of the kit: a falling sine and a band of noise, each with a level and decay."""

    decay: float  # seconds, of the sine
    frequency: float  # Hz, where the sine settles
    sweep: float  # its start, as a multiple of `frequency` above it
    body: float  # level of the sine
    hiss: float  # level of the noise
    low: float  # Hz
    high: float  # Hz
    hiss_decay: float  # seconds


KICK, RIM, SNARE, HAT, OPEN_HAT, TOM, CRASH, RIDE = 36, 37, 38, 42, 46, 45, 49, 51
CLAP, HIGH_TOM, TAMBOURINE, COWBELL, HIGH_CONGA, CONGA, SHAKER, CLAVES = (
    39, 48, 54, 56, 63, 64, 70, 75,
)  # fmt: skip
KIT = {
    KICK: Drum(0.11, 50, 3.0, 2.2, 0.3, 1000, 4000, 0.006),
    RIM: Drum(0.02, 900, 0.3, 1.0, 0.5, 1500, 5000, 0.010),
    SNARE: Drum(0.06, 185, 0.5, 0.9, 1.0, 700, 7500, 0.085),
    HAT: Drum(0.01, 5200, 0.0, 0.0, 0.5, 4500, 20000, 0.022),
    OPEN_HAT: Drum(0.01, 5200, 0.0, 0.0, 0.5, 4000, 20000, 0.16),
    TOM: Drum(0.16, 110, 0.6, 1.6, 0.2, 300, 2000, 0.03),
    CRASH: Drum(0.01, 5200, 0.0, 0.0, 0.8, 2200, 20000, 0.55),
    RIDE: Drum(0.20, 3400, 0.0, 0.1, 0.3, 3000, 20000, 0.20),
    # What follows is played in varied.py alone. New pieces go to the end: a kit is tuned, and
    # its noise drawn, from the first piece to the last.
    CLAP: Drum(0.01, 1000, 0.0, 0.0, 1.1, 900, 3000, 0.06),
    HIGH_TOM: Drum(0.12, 180, 0.6, 1.5, 0.2, 400, 2500, 0.03),
    TAMBOURINE: Drum(0.01, 8000, 0.0, 0.0, 0.6, 5500, 20000, 0.09),
    COWBELL: Drum(0.09, 560, 0.0, 0.8, 0.3, 700, 2500, 0.03),
    HIGH_CONGA: Drum(0.10, 330, 0.2, 1.3, 0.2, 500, 3000, 0.01),
    CONGA: Drum(0.14, 220, 0.2, 1.4, 0.2, 400, 2500, 0.012),
    SHAKER: Drum(0.01, 6000, 0.0, 0.0, 0.5, 3500, 20000, 0.045),
    CLAVES: Drum(0.03, 2450, 0.0, 1.0, 0.1, 2000, 5000, 0.004),
}


def frequency(pitch: float | np.ndarray) -> float | np.ndarray:
    """Return the frequency in Hz of a MIDI pitch, A4 = 69 = 440 Hz."""
    return 440.0 * 2.0 ** ((np.asarray(pitch) - 69.0) / 12.0)


def drum_seconds(pitch: int) -> float:
    """Return how long a drum sounds: until its slower part has fallen by 43 dB."""
    drum = KIT[pitch]
    return 5.0 * max(drum.decay if drum.body else 0.0, drum.hiss_decay)
