"""Layers of a small stem, and sound for it."""

import jax
import jax.numpy as jnp
import numpy as np

from musicssl import audio
from musicssl.model import stem

WIDTH = 24


def layers(bias: bool, norms: int) -> list[stem.StemLayer]:
    """Random values of a narrow stem."""
    rng = np.random.default_rng(7)
    made, channels = [], 1
    for i, taps in enumerate(stem.KERNELS):
        kernel = rng.normal(size=(taps, channels, WIDTH)) * np.sqrt(2 / (taps * channels))
        affine = 1 + 0.3 * rng.normal(size=WIDTH), 0.3 * rng.normal(size=WIDTH)
        values = kernel, 0.1 * rng.normal(size=WIDTH) if bias else None, *affine
        values = [None if x is None else jnp.asarray(x, jnp.float32) for x in values]
        norm = stem.Norm(*values[2:]) if i < norms else None
        made.append(stem.StemLayer(*values[:2], norm))
        channels = WIDTH
    return made


def sound(samples: int) -> jax.Array:
    """Three clips: noise, a low tone with an offset, and a quiet high one."""
    n = np.arange(samples) / audio.SAMPLE_RATE
    noise = 0.3 * np.random.default_rng(0).normal(size=samples)
    clips = noise, 0.2 + 0.5 * np.sin(2 * np.pi * 80 * n), 0.01 * np.sin(2 * np.pi * 5000 * n)
    return jnp.asarray(np.stack(clips), jnp.float32)
