"""Rooms and recordings: what a performance goes through before anybody hears it.

A room is early reflections and a tail; a recording is equalisation, a band limit, saturation,
compression and noise. Each is there or not, and differs from clip to clip, so that an encoder that
learns from such clips hears the music through all of them.
"""

import numpy as np
import scipy.signal

from data_pipelines.composer import synth

_EARLY_SECONDS = 0.06  # in which the first reflections arrive
_BLOCK = 64  # samples that a compressor's gain is computed for
_NOISE_SLOPES = (0.0, 0.5, 1.0)  # of the amplitude over frequency: white, pink, brown


def room(rng: np.random.Generator, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Put audio [n] into a random room, from a dry booth to a cathedral; onsets stay in place."""
    decay = float(np.exp(rng.uniform(np.log(0.15), np.log(3.0))))  # seconds to -60 dB
    wet = 10 ** (rng.uniform(-34, -4) / 20)
    t = np.arange(int(decay * sample_rate)) / sample_rate  # [taps]
    response = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay)
    response[: int(rng.uniform(0.004, 0.04) * sample_rate)] = 0.0
    early = rng.integers(1, min(int(_EARLY_SECONDS * sample_rate), len(t)), rng.integers(0, 7))
    response[early] += rng.choice([-1, 1], len(early)) * np.abs(response).max() * rng.uniform(1, 6)
    dull = rng.uniform(0.2, 0.9)  # of a one-pole low-pass, as air and walls are
    response = scipy.signal.lfilter([1 - dull], [1.0, -dull], response)
    return synth.reverberated(audio, response, wet)


def record(rng: np.random.Generator, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Record audio [n] through a random chain; what comes out has an RMS of 1."""
    audio = _unit(audio)
    for _ in range(int(rng.integers(0, 4))):
        audio = _resonance(rng, audio, sample_rate)
    if rng.random() < 0.3:
        audio = _band(rng, audio, sample_rate)
    if rng.random() < 0.3:
        audio = _compress(rng, _unit(audio), sample_rate)
    if rng.random() < 0.3:  # a tape or a valve: odd harmonics, and where it is biased even ones
        drive, bias = rng.uniform(0.2, 1.2), rng.uniform(0, 0.3)
        audio = np.tanh(drive * _unit(audio) + bias) - np.tanh(bias)
    if rng.random() < 0.5:
        level = 10 ** (rng.uniform(-60, -26) / 20)
        audio = _unit(audio) + np.float32(level) * _noise(rng, len(audio))
    return _unit(audio)


def _unit(audio: np.ndarray) -> np.ndarray:
    """Scale audio [n] to a mean of 0 and an RMS of 1, float32."""
    audio = audio - audio.mean()
    return (audio / (np.sqrt(np.mean(audio**2)) + 1e-9)).astype(np.float32)


def _resonance(rng: np.random.Generator, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Raise or lower the level around a frequency by up to 9 dB (a peaking equaliser).

    The filter is that of Bristow-Johnson's "Cookbook formulae for audio EQ biquad filters".
    """
    hertz = float(np.exp(rng.uniform(np.log(80), np.log(0.4 * sample_rate))))
    amplitude, turn = 10 ** (rng.uniform(-9, 9) / 40), 2 * np.pi * hertz / sample_rate
    alpha = np.sin(turn) / (2 * rng.uniform(0.4, 1.5))
    upper = [1 + alpha * amplitude, -2 * np.cos(turn), 1 - alpha * amplitude]
    lower = [1 + alpha / amplitude, -2 * np.cos(turn), 1 - alpha / amplitude]
    return scipy.signal.lfilter(np.array(upper) / lower[0], np.array(lower) / lower[0], audio)


def _band(rng: np.random.Generator, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Leave out what an old or a small device does: below some 300 Hz, or above some 2 to 7 kHz."""
    low = rng.uniform(40, 300)
    high = min(float(np.exp(rng.uniform(np.log(2200), np.log(7000)))), 0.45 * sample_rate)
    sections = scipy.signal.butter(2, [low, high], "bandpass", fs=sample_rate, output="sos")
    return scipy.signal.sosfilt(sections, audio)


def _compress(rng: np.random.Generator, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Make loud passages of audio [n], RMS 1, softer: above a threshold by a ratio."""
    threshold, ratio = 10 ** (rng.uniform(-15, 0) / 20), rng.uniform(1.5, 6)
    blocks = np.pad(audio, (0, -len(audio) % _BLOCK)).reshape(-1, _BLOCK)
    power = (blocks**2).mean(1)  # [n / _BLOCK]
    slow = np.exp(-_BLOCK / (rng.uniform(0.03, 0.3) * sample_rate))
    level = np.sqrt(scipy.signal.lfilter([1 - slow], [1.0, -slow], power) + 1e-12)
    gain = np.maximum(level / threshold, 1.0) ** (1 / ratio - 1)
    at = np.arange(len(audio)) / _BLOCK - 0.5
    return audio * np.interp(at, np.arange(len(gain)), gain).astype(np.float32)


def _noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return hiss, rumble or what is between, of RMS 1: float32 [n]."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum *= np.arange(1, len(spectrum) + 1) ** -float(rng.choice(_NOISE_SLOPES))
    return _unit(np.fft.irfft(spectrum, n))
