"""The renderer: any list of notes, played by the instruments of timbres.py, as audio.

Tones are read from band-limited wavetables by phase accumulation, so a note costs a few table
look-ups a sample whatever its number of harmonics, and its pitch and onset are exact.
"""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.signal

from data_pipelines.composer.timbres import (
    DRUMS,
    FOREVER,
    KIT,
    TIMBRES,
    Layer,
    Noise,
    Note,
    Timbre,
    drum_seconds,
    frequency,
)

_TABLE_SIZE = 2048
_HIGHEST = 0.47  # of the sample rate: no partial is above
_NOISE_SECONDS = 4.0


def render(
    notes: Iterable[Note],
    seconds: float,
    sample_rate: int,
    seed: int | tuple[int, ...] = 0,
    timbres: Sequence[Timbre] = TIMBRES,
) -> np.ndarray:
    """Render notes into dry float32 audio [n], n = round(seconds * sample_rate).

    A note is silent before the sample nearest to its onset, whatever its instrument, and its
    level at velocity 1 is about 1 RMS while it is held, so that the caller sets the headroom.
    The seed colours each instrument (brighter, darker, vibrato rate) and draws noise and phases;
    the same arguments give the same samples on one machine. `timbres` are the pitched
    instruments, by their index.

    Raises:
      ValueError: a note starts before 0, ends before it starts, is too high for the sample rate,
        or is of a drum that the kit does not have.
    """
    n = round(seconds * sample_rate)
    parts: dict[int, list[Note]] = {}
    for note in notes:
        _check(note, sample_rate)
        parts.setdefault(note.instrument, []).append(note)
    audio = np.zeros(n, np.float32)  # [n]
    for instrument, part in sorted(parts.items()):
        rng = np.random.default_rng((*np.atleast_1d(seed).tolist(), instrument))
        if instrument == DRUMS:
            audio += _render_drums(part, n, sample_rate, rng)
        else:
            audio += _render_part(timbres[instrument], part, n, sample_rate, rng)
    return audio


def _check(note: Note, sample_rate: int) -> None:
    """Raise ValueError for a note that cannot be rendered."""
    if not 0 <= note.onset < note.offset:
        raise ValueError(f"render: {note} must have 0 <= onset < offset")
    if note.instrument == DRUMS and note.pitch not in KIT:
        raise ValueError(f"render: {note} is not a drum of the kit; it has pitches {sorted(KIT)}")
    if note.instrument != DRUMS and frequency(note.pitch) > _HIGHEST * sample_rate:
        raise ValueError(f"render: {note} is too high for a sample rate of {sample_rate} Hz")


def _render_part(
    timbre: Timbre, notes: list[Note], n: int, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Render the notes of one instrument, audio [n]."""
    player = _Player(timbre, sample_rate, rng)
    audio = np.zeros(n, np.float32)  # [n]
    for note in notes:
        start = round(note.onset * sample_rate)
        tone = player.tone(note)[: max(n - start, 0)]  # [samples of the tone inside the clip]
        audio[start : start + len(tone)] += tone
    if timbre.drive:
        # Saturating the sum, as an amplifier does, is what makes distorted chords growl; it also
        # makes a constant, which the filter blocks.
        audio = np.tanh(timbre.drive * audio) * np.float32(0.5)
        audio = scipy.signal.lfilter([1.0, -1.0], [1.0, -0.99], audio).astype(np.float32)
    return audio


def _render_drums(
    notes: list[Note], n: int, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Render the notes of the drum kit, audio [n]."""
    tuning = 2.0 ** rng.uniform(-0.25, 0.25)
    hits = {pitch: _drum_hit(pitch, sample_rate, tuning, rng) for pitch in KIT}
    audio = np.zeros(n, np.float32)  # [n]
    for note in notes:
        start = round(note.onset * sample_rate)
        hit = hits[int(note.pitch)][: max(n - start, 0)]
        audio[start : start + len(hit)] += np.float32(note.velocity) * hit
    return audio


def _drum_hit(pitch: int, sample_rate: int, tuning: float, rng: np.random.Generator) -> np.ndarray:
    """Render one drum, audio [n]; its sine falls to its frequency within some 20 ms."""
    drum = KIT[pitch]
    t = np.arange(int(drum_seconds(pitch) * sample_rate)) / sample_rate  # [n]
    cycles = tuning * drum.frequency * (t - drum.sweep * 0.02 * np.expm1(-t / 0.02))
    tone = drum.body * np.sin(2 * np.pi * cycles) * np.exp(-t / drum.decay)
    hiss = _noise(sample_rate, drum.low, drum.high)
    start = int(rng.integers(len(hiss) - len(t)))
    tone += drum.hiss * hiss[start : start + len(t)] * np.exp(-t / drum.hiss_decay)
    return (tone * np.minimum(1.0, (len(t) - np.arange(len(t))) / 64)).astype(np.float32)


class _Player:
    """One timbre at one sample rate in one mood: keeps the wavetables of the pitches it played."""

    def __init__(self, timbre: Timbre, sample_rate: int, rng: np.random.Generator):
        self.timbre, self.sample_rate, self.rng = timbre, sample_rate, rng
        self.tilt = timbre.tilt + rng.uniform(-0.15, 0.15)
        self.formant_shift = 2.0 ** rng.uniform(-0.12, 0.12)
        self.vibrato = timbre.vibrato * rng.uniform(0.6, 1.3)
        self.rate = rng.uniform(4.6, 6.4)  # Hz, of vibrato and tremolo
        self.tables: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {}

    def tone(self, note: Note) -> np.ndarray:
        """Render one note, audio [n]; it outlasts the note's length by the timbre's release."""
        timbre, f0 = self.timbre, float(frequency(note.pitch))
        held = max(round((note.offset - note.onset) * self.sample_rate), 1)
        n = held + int(timbre.release * self.sample_rate)
        t = np.arange(n, dtype=np.float32) / np.float32(self.sample_rate)  # [n]
        cycles = self._cycles(f0, t)  # [n]
        # Low strings ring longer than high ones.
        ringing = (220.0 / f0) ** 0.5
        audio = np.zeros(n, np.float32)  # [n]

        # the layers of the tone, then its breath and tremolo
        for layer, (table, slope) in zip(timbre.layers, self._tables(note.pitch), strict=True):
            # Playing softly is playing darker: the upper layers follow velocity more steeply.
            gain = layer.level * (note.velocity ** (0.6 if layer.first > 1 else 0.0))
            audio += (
                np.float32(gain)
                * _lookup(table, slope, cycles * layer.ratio + self.rng.random())
                * _contour(t, layer, ringing)
            )
        if timbre.noise:
            audio += self._breath(timbre.noise, t)
        if timbre.tremolo:
            audio *= 1 - np.float32(timbre.tremolo / 2) * (1 - self._wobble(t))
        return (
            audio
            * _envelope(n, held, timbre.attack * self.sample_rate)
            * np.float32(note.velocity * timbre.level)
        )

    def _cycles(self, f0: float, t: np.ndarray) -> np.ndarray:
        """Return the phase in cycles [n], in float64: float32 would detune long high notes."""
        if not self.vibrato:
            return np.arange(len(t)) * (f0 / self.sample_rate)
        depth = self.vibrato * np.log(2) / 1200
        # Vibrato sets in a moment after the note does; its mean over a cycle is the pitch.
        bend = 1.0 + depth * np.minimum(t / 0.3, 1.0) * self._wobble(t)
        return np.cumsum(bend, dtype=np.float64) * (f0 / self.sample_rate)

    def _wobble(self, t: np.ndarray) -> np.ndarray:
        """Return a slow sine [n] at the player's own rate."""
        return np.sin(np.float32(2 * np.pi * self.rate) * t)

    def _breath(self, noise: Noise, t: np.ndarray) -> np.ndarray:
        """Return the timbre's noise [n], another stretch of it for each note."""
        band = _noise(self.sample_rate, noise.low, noise.high)
        start = int(self.rng.integers(len(band)))
        audio = band.take(np.arange(start, start + len(t)), mode="wrap")  # [n]
        return np.float32(noise.level) * audio * np.exp(t * np.float32(-1 / noise.decay))

    def _tables(self, pitch: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (table, slope) [_TABLE_SIZE] of each layer, together of unit RMS."""
        if pitch not in self.tables:
            spectra = [self._spectrum(layer, pitch) for layer in self.timbre.layers]
            power = sum(
                np.sum((layer.level * spectrum) ** 2) / 2
                for layer, spectrum in zip(self.timbre.layers, spectra, strict=True)
            )
            self.tables[pitch] = [_table(s / np.sqrt(power)) for s in spectra]
        return self.tables[pitch]

    def _spectrum(self, layer: Layer, pitch: float) -> np.ndarray:
        """Return the amplitudes of harmonics 0, 1, 2, ... up to the highest allowed."""
        timbre, f0 = self.timbre, float(frequency(pitch)) * layer.ratio
        h = np.arange(min(layer.last, int(_HIGHEST * self.sample_rate / f0), _TABLE_SIZE // 4) + 1)
        hertz = h * f0 / self.formant_shift
        amplitude = np.maximum(h, 1.0) ** -self.tilt
        amplitude *= np.where(h % 2, 1.0, timbre.even)
        if timbre.pluck:
            amplitude *= np.abs(np.sin(np.pi * h * timbre.pluck)) / np.sin(np.pi * timbre.pluck)
        amplitude *= timbre.floor + sum(
            f.gain * np.exp(-(((hertz - f.centre) / f.width) ** 2)) for f in timbre.formants
        )
        return np.where(h >= layer.first, amplitude, 0.0)


def _table(spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one period of the waveform and its differences, float32 [_TABLE_SIZE] each."""
    h = np.arange(len(spectrum))
    # Phases that grow with h squared spread the energy over the period: no clicks, more headroom.
    coefficients = spectrum * np.exp(1j * np.pi * h * h / 7.3) * (_TABLE_SIZE / 2)
    table = np.fft.irfft(coefficients, _TABLE_SIZE)
    return table.astype(np.float32), (np.roll(table, -1) - table).astype(np.float32)


def _lookup(table: np.ndarray, slope: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    """Read a wavetable at phases in cycles [n] with linear interpolation, float32 [n]."""
    position = cycles * _TABLE_SIZE
    index = position.astype(np.int32)
    fraction = (position - index).astype(np.float32)
    index &= _TABLE_SIZE - 1
    return table[index] + fraction * slope[index]


def _contour(t: np.ndarray, layer: Layer, ringing: float) -> np.ndarray | np.float32:
    """Return the gain of a layer over time [n], or 1 for a steady layer."""
    contour: np.ndarray | np.float32 = np.float32(1.0)
    if layer.decay < FOREVER:
        contour = np.exp(t * np.float32(-1 / (layer.decay * ringing)))
    if layer.attack:
        contour = contour * -np.expm1(t * np.float32(-1 / layer.attack))
    return contour


def _envelope(n: int, held: int, attack: float) -> np.ndarray:
    """Return a rise of `attack` samples, a plateau to `held`, and a fade to zero at n, [n]."""
    envelope = np.ones(n, np.float32)
    rise = min(int(attack) + 1, held)
    envelope[:rise] = np.sin(np.linspace(0, np.pi / 2, rise + 1)[1:]) ** 2
    fade = np.linspace(1, 0, n - held, dtype=np.float32)
    envelope[held:] = fade**3
    return envelope


@functools.lru_cache(maxsize=64)
def _noise(sample_rate: int, low: float, high: float) -> np.ndarray:
    """Return some seconds of unit-variance noise between two frequencies in Hz, float32 [n]."""
    n = int(_NOISE_SECONDS * sample_rate)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(n))
    hertz = np.fft.rfftfreq(n, 1 / sample_rate)
    # Second-order slopes on both sides, as a gentle band-pass filter has.
    spectrum *= hertz**2 / (hertz**2 + low**2) / (1 + (hertz / high) ** 2)
    noise = np.fft.irfft(spectrum, n)
    noise = (noise / noise.std()).astype(np.float32)
    noise.flags.writeable = False  # it is shared between clips
    return noise
