"""Measures in about a minute how fast this machine extracts features and trains probes."""

import dataclasses
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from musicssl.command import note
from musicssl.features import extract, rows, windows
from musicssl.features.extract import FeatureSource
from musicssl.features.rows import SUM
from musicssl.probing import beats, evaluate, grid, metrics, search
from musicssl.probing.task_kinds import kind_of
from musicssl.probing.tasks import Task

_AUDIO = 30.0  # seconds of audio in the batch on which extraction is measured, or one window
_ENOUGH = 1.0  # seconds that a timing should take
_TRAIN, _VALIDATION, _CLASSES, _EPOCHS = 1024, 256, 50, 2  # sizes of the measured grid
_CLIPS, _CLIP_SECONDS = 16, 30.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """Extraction of windows of one length.

    length: of a window, in seconds. seconds: the time per window. flops: per window, or None.
    """

    length: float
    seconds: float
    flops: float | None


@dataclasses.dataclass(frozen=True)
class Rates:
    """This machine's rates.

    machine: in words. extraction: for windows of one or two lengths. single, mixed: operations per
    second of probes on one layer and on the weighted sum, None if that is not probed. decoding: how
    many seconds it takes to score the beats of one clip after an epoch.
    """

    machine: str
    extraction: Sequence[Measured]
    single: float
    mixed: float | None
    decoding: float

    @property
    def seconds_of_audio(self) -> float:
        """Return the seconds of audio per second of extraction, for the longest windows."""
        longest = max(self.extraction, key=lambda x: x.length)
        return longest.length / longest.seconds

    def window(self, length: float, flops: float | None) -> float:
        """Return the seconds of a window, from the measured window of the nearest length."""
        near = min(self.extraction, key=lambda x: abs(np.log(x.length / length)))
        if flops is None or near.flops is None:
            return near.seconds * length / near.length
        return near.seconds * flops / near.flops


def measure(
    source: FeatureSource,
    chosen: Sequence[Task],
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    forward: Callable[[FeatureSource, int], float | None],
) -> Rates:
    """Measure the rates that the tasks need, with the functions that an evaluation runs.

    Args:
      forward: returns the operations of a window, given its number of samples.
    """
    lengths = sorted({task.window for task in chosen})
    extraction = []
    for length in dict.fromkeys((lengths[0], lengths[-1])):
        note(f"measuring extraction with windows of {length:.3g} s")
        extraction.append(_extraction(source, length, config, mesh, forward))

    note("measuring probes")
    sources = evaluate.chosen_sources(source.layers, config.layers, config.kind)
    single = _probes(source, config, 1)
    mixed = _probes(source, config, source.layers - 1) if SUM in sources else None
    has_beats = any(kind_of(task).crop_seconds for task in chosen)
    decoding = _decoding(source.frame_rate) if has_beats else 0.0
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    machine = f"{devices}, {search.cores()} cores, {platform.machine()}"
    return Rates(machine, extraction, single, mixed, decoding)


def _extraction(
    source: FeatureSource,
    length: float,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    forward: Callable[[FeatureSource, int], float | None],
) -> Measured:
    """Time a batch of windows of noise on its second run, when its program is compiled.

    If that takes less than _ENOUGH seconds, more windows are timed.
    """
    samples = round(length * source.sample_rate)
    count = max(1, min(config.windows, int(_AUDIO / length)))
    batch = count = -(-count // mesh.size) * mesh.size

    def read(record: int) -> np.ndarray:
        return np.random.default_rng(record).integers(-9000, 9000, samples, np.int16)

    def timed(windows_of_it: int, folder: Path) -> float:
        records, rate = np.full(windows_of_it, samples), source.sample_rate
        cut = windows.cut(records, length, rate, frames=source.frames)
        begin = time.monotonic()
        extract.extract(source, cut, read, [windows.WHOLE], folder, "noise", mesh, batch)
        return time.monotonic() - begin

    with tempfile.TemporaryDirectory() as folder:
        timed(count, Path(folder, "first"))
        seconds = timed(count, Path(folder, "second"))
        if seconds < _ENOUGH:
            count *= math.ceil(_ENOUGH / seconds)
            seconds = timed(count, Path(folder, "more"))
    return Measured(length, seconds / count, forward(source, samples))


def _probes(source: FeatureSource, config: ml_collections.ConfigDict, mixed: int) -> float:
    """Return the operations per second of a grid of all learning rates and seeds on one source."""
    random = np.random.default_rng(0)

    def split(count: int) -> grid.Split:
        shape = (mixed, count, source.width)
        x = random.standard_normal(shape, np.float32).astype(np.float16)
        stored = rows.Stored(tuple(x), np.arange(count))
        return grid.split_of(stored.whole(), random.integers(0, _CLASSES, count).astype(np.int32))

    splits = split(_TRAIN), split(_VALIDATION), split(_VALIDATION)
    hidden = {"mlp": 512, "linear": 0}[config.kind]
    protocol = grid.Protocol(
        "ce", _CLASSES, hidden, config.batch_size, epochs=_EPOCHS, patience=_EPOCHS
    )
    seconds = 0.0
    for _ in range(2):  # the second time, its programs are compiled
        begin = time.monotonic()
        search.search(
            protocol,
            metrics.monitor_accuracy,
            lambda name: splits,
            ["0"],
            config.learning_rates,
            config.seeds,
            "the grid",
        )
        seconds = time.monotonic() - begin
    weights = hidden * (source.width + _CLASSES) if hidden else source.width * _CLASSES
    row = 2 * (weights + (mixed * source.width if mixed > 1 else 0))
    models = len(config.learning_rates) * len(config.seeds)
    return _EPOCHS * models * row * (3 * _TRAIN + _VALIDATION) / seconds


def _decoding(fps: float) -> float:
    """Return the seconds it takes to score one clip's beats, if clips are decoded in parallel."""
    frames = round(_CLIP_SECONDS * fps)
    times = [np.arange(0.25, _CLIP_SECONDS, 0.5)] * _CLIPS
    places = [np.arange(frames) + frames * clip for clip in range(_CLIPS)]
    score = jax.jit(beats.monitor(times, places, fps))
    outputs = np.random.default_rng(0).standard_normal((frames * _CLIPS, 1)).astype(np.float32)
    seconds = 0.0
    for _ in range(2):
        begin = time.monotonic()
        jax.block_until_ready(score(None, outputs))
        seconds = time.monotonic() - begin
    at_once = search.cores() if jax.default_backend() == "cpu" else 1
    return seconds / _CLIPS / at_once
