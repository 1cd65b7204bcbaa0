"""Find similar tracks in a folder: python -m musicssl.exchange.examples.neighbours ENCODER FOLDER

ENCODER is a directory that musicssl.export wrote, the workdir of a run, or any other encoder that
load_encoder takes. For every track, it prints the tracks that sound most similar, with the cosine
similarity. A track is described by one vector: the mean of the encoder's hidden states over its
frames and over the encoder's layers.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from musicssl import audio
from musicssl.exchange import pretrained

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
SECONDS = 10  # heard at a time
BATCH = 4  # windows heard together


def windows_of(waveform: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a waveform [n] into windows [w, size], the last one padded, and their lengths [w]."""
    count = max(1, -(-len(waveform) // size))
    lengths = np.full(count, size)
    lengths[-1] = len(waveform) - (count - 1) * size
    padded = np.zeros(count * size, np.float32)
    padded[: len(waveform)] = waveform
    return padded.reshape(count, size), lengths


def describer(encoder: Path) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Load an encoder.

    Returns:
      A function from a waveform [n] to a vector [d], and its sample rate in Hz.
    """
    loaded = pretrained.load_encoder(encoder)

    @jax.jit
    def sums(params: dict, clips: jax.Array, lengths: jax.Array) -> jax.Array:
        """Sum the mean over layers over the frames of each clip [b, n], up to its own length."""
        output: Any = loaded.encoder.apply({"params": params}, clips, samples=lengths)
        states = sum(output.hidden) / len(output.hidden)  # [b, t, d]
        heard = jnp.arange(states.shape[1]) < audio.frame_counts(lengths)[:, None]  # [b, t]
        return jnp.where(heard[..., None], states, 0).sum(1)  # [b, d]

    def describe(waveform: np.ndarray) -> np.ndarray:
        if loaded.normalize:
            waveform = np.asarray(audio.normalize(jnp.asarray(waveform[None])))[0]
        clips, lengths = windows_of(waveform, SECONDS * loaded.sample_rate)
        total = np.zeros(loaded.encoder.width)
        for start in range(0, len(clips), BATCH):
            rows = np.arange(start, start + BATCH).clip(max=len(clips) - 1)  # one shape to compile
            out = sums(loaded.params, clips[rows], lengths[rows])
            total += np.asarray(out)[: len(clips) - start].sum(0)
        return total / audio.frame_counts(lengths).sum()

    return describe, loaded.sample_rate


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Compare all tracks by the cosine of their differences from the mean track.

    Args:
      vectors: one for each track, [tracks, d].

    Returns:
      Similarities between -1 and 1, [tracks, tracks].
    """
    apart = vectors - vectors.mean(0)
    apart /= np.linalg.norm(apart, axis=1, keepdims=True).clip(1e-12)
    return apart @ apart.T


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("encoder", type=Path, help="a directory that holds an encoder")
    parser.add_argument("folder", type=Path, help="a folder of audio files, including subfolders")
    parser.add_argument("--like", type=Path, help="only the tracks that are similar to this file")
    parser.add_argument("--count", type=int, default=3, help="neighbours of each track (3)")
    flags = parser.parse_args(arguments)

    files = sorted(x for x in flags.folder.rglob("*") if x.suffix.lower() in SUFFIXES)
    if flags.like and flags.like.resolve() not in [x.resolve() for x in files]:
        files.append(flags.like)
    if len(files) < 3:
        parser.error(f"{flags.folder} holds {len(files)} audio files: give a folder of 3 or more")
    try:
        describe, rate = describer(flags.encoder)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    # one vector for each file that can be read
    names, vectors = [], []
    for file in tqdm(files, desc="listening", unit=" tracks"):
        try:
            sound, own_rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (OSError, soundfile.SoundFileError) as error:
            print(f"left out: {file}: {error}", file=sys.stderr)
            continue
        waveform = soxr.resample(sound.mean(1), own_rate, rate)
        if len(waveform):
            names.append(file)
            vectors.append(describe(waveform))
    if len(names) < 3:
        parser.error(f"only {len(names)} files could be read, but a comparison needs 3")

    # the nearest tracks of each, without the track itself
    scores = similarities(np.stack(vectors))
    np.fill_diagonal(scores, -np.inf)
    for name, row in zip(names, scores, strict=True):
        if flags.like and name.resolve() != flags.like.resolve():
            continue
        print(name)
        for index in np.argsort(-row)[: min(flags.count, len(names) - 1)]:
            print(f"  {row[index]:5.2f}  {names[index]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
