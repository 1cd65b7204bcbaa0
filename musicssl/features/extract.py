"""Features of every layer of a frozen encoder, pooled over time, in one pass over the audio.

Clips are cut into windows; each window goes through the encoder once and is averaged over all its
frames, over groups of frames, or not at all (beat tracking). A remainder is heard at its own
length: it is padded to one of a few lengths, which have a program each, and what is computed of it
does not see the padding. Rows are written to memory-mapped float16 files, one layer after another,
so that a probe reads one layer alone and nothing has to fit in memory. A pass that is interrupted
goes on where it stopped.
"""

import collections
import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from musicssl import audio, environment, paths
from musicssl.exchange import pretrained
from musicssl.features import cache, windows
from musicssl.features.baselines import BASELINES
from musicssl.features.cache import FeatureFiles
from musicssl.model.encoder import Encoder
from musicssl.runtime import distributed, sharding

_FORMAT = 2  # of the files; part of their name
AHEAD = 4  # batches that are read before they are needed


class FeatureSource(NamedTuple):
    """Where features come from: a frozen encoder, or a baseline.

    name: for reports.
    digest: of all that the features depend on.
    layers: how many arrays `apply` gives; layer 0 of an encoder is the transformer's input.
    width: d.
    sample_rate: of the audio that it takes.
    normalize: whether it takes clips of mean 0 and variance 1.
    params: the first argument of `apply`.
    apply: (params, float audio [b, n]) to `layers` arrays [b, t, d], at 50 frames a second for
      16 kHz audio. A third argument, samples [b], tells the lengths of clips that are padded to n
      with zeros: each then has the frames that it has alone, and others after them.
    """

    name: str
    digest: str
    layers: int
    width: int
    sample_rate: int
    normalize: bool
    params: dict
    apply: Callable[..., Sequence[jax.Array]]

    @property
    def frame_rate(self) -> float:
        """Return frames a second."""
        return self.sample_rate / audio.STEM_HOP


def open_source(spec: str, precision: str = "float32", step: int | None = None) -> FeatureSource:
    """Open an encoder or a baseline as a source of features.

    Args:
      spec: a path (a workdir, a Hugging Face directory or a fairseq file), a name of BASELINES, or
        "random:PATH" for the architecture of that path's encoder with new initial values.
      precision: of the encoder's computations.
      step: of a workdir's checkpoints; None for the last.

    Raises:
      FileNotFoundError, ValueError: as `pretrained.load_encoder` raises them.
    """
    if spec in BASELINES:
        return _open_baseline(spec)
    kind, path = paths.split_kind(spec)
    loaded = pretrained.load_encoder(path, step)
    encoder = loaded.encoder.clone(dtype=jnp.dtype(precision))
    params, digest, name = loaded.params, loaded.digest, loaded.source

    # New initial values have a digest of their own, by the architecture that they fill.
    if kind == paths.RANDOM:
        start = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, 400)))["params"])
        params = jax.tree.map(np.asarray, start(environment.key(0)))
        architecture = encoder, loaded.sample_rate, loaded.normalize
        digest = f"random-{hashlib.sha256(repr(architecture).encode()).hexdigest()}"
        name = f"random initial values of {name}"

    apply = functools.partial(hidden_states, encoder)
    return FeatureSource(
        name,
        f"{digest}-{precision}",
        encoder.layers + 1,
        encoder.width,
        loaded.sample_rate,
        loaded.normalize,
        params,
        apply,
    )


def hidden_states(
    encoder: Encoder, params: dict, x: jax.Array, samples: jax.Array | None = None
) -> Sequence[jax.Array]:
    """Return every hidden state [b, t, d] of audio [b, n], `samples` as of Encoder.__call__."""
    output: Any = encoder.apply({"params": params}, x, samples=samples)
    return output.hidden


def _open_baseline(name: str) -> FeatureSource:
    title, width, function = BASELINES[name]

    def apply(params: dict, x: jax.Array, samples: jax.Array | None = None) -> Sequence[jax.Array]:
        return [function(x, samples)]

    return FeatureSource(title, f"{name}-{width}", 1, width, audio.SAMPLE_RATE, False, {}, apply)


def extract(
    source: FeatureSource,
    cut: windows.Windows,
    read: Callable[[int], np.ndarray],
    pools: Sequence[int],
    folder: Path,
    data: str,
    mesh: Mesh,
    batch: int,
) -> dict[int, np.ndarray]:
    """Return the features of all windows, from the cache where it has them.

    With several processes each computes its devices' windows, and process 0 alone has the files:
    the others return an empty dict.

    Args:
      read: from a record's number to its int16 audio, at the source's rate.
      pools: frames averaged to one row; windows.WHOLE for all of a window, 1 for every frame.
      folder: the cache.
      data: digest of the audio.
      mesh: whose devices share the work.
      batch: windows in a global batch; rounded up to a multiple of the mesh's devices.

    Returns:
      {pool: [layers, n, d] float16}, memory-mapped.

    Raises:
      ValueError: a feature is not finite, or too large for float16.
    """
    folder = folder / hashlib.sha256(f"{source.digest}".encode()).hexdigest()[:16]
    pools = sorted(set(pools))
    paths = {pool: folder / f"{_key(source, cut, pool, data)}.npy" for pool in pools}

    # Extract what the cache lacks, and no other process is extracting.
    with contextlib.ExitStack() as held:
        distributed.first_does(lambda: held.enter_context(cache.turn(paths.values())))
        cached = _from_first_process(np.array([paths[pool].exists() for pool in pools]))
        missing = [pool for pool, is_cached in zip(pools, cached, strict=True) if not is_cached]
        if missing:
            _fill(source, cut, read, {pool: paths[pool] for pool in missing}, mesh, batch)

    if jax.process_index():
        return {}
    return {pool: np.load(path, mmap_mode="r") for pool, path in paths.items()}


def _from_first_process(value: np.ndarray) -> np.ndarray:
    """Return process 0's value in every process: each may have a disk of its own."""
    if jax.process_count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(value)


def _key(source: FeatureSource, cut: windows.Windows, pool: int, data: str) -> str:
    """Return the name of a file: a digest of all that its features depend on."""
    alone = source.normalize and cut.standardised_alone
    parts = (_FORMAT, source.digest, cut.size, len(cut.record), alone, pool, data)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _fill(
    source: FeatureSource,
    cut: windows.Windows,
    read: Callable[[int], np.ndarray],
    paths: dict[int, Path],
    mesh: Mesh,
    batch: int,
) -> None:
    """Write each pool's file, from where an interrupted pass stopped."""
    writer = None
    if jax.process_index() == 0:  # it has the files
        writer = FeatureFiles(source.layers, source.width, cut, paths)

    # Process 0 tells the others which windows are written.
    batch = -(-batch // mesh.size) * mesh.size
    written = _from_first_process(writer.written if writer else np.zeros(len(cut.record), bool))

    # Compute the rest, batch by batch.
    filled = _batches(source, cut, read, np.flatnonzero(~written).tolist(), batch)
    outputs_of_batches = _pipelined(_step(source, tuple(sorted(paths)), mesh), _ahead(filled), mesh)
    progress = tqdm(
        total=len(cut.record),
        initial=int(written.sum()),
        desc="features",
        unit=" windows",
        delay=2,
        disable=writer is None,
    )
    with progress as bar:
        try:
            for numbers, outputs in outputs_of_batches:
                if writer:
                    writer.write(numbers, outputs)
                bar.update(len(numbers))
        finally:  # also of a pass that is preempted
            if writer:
                writer.save()
    if writer:
        writer.finish()


class _WindowBatch(NamedTuple):
    """Windows that are padded to one length, as `_program` takes them.

    numbers: of the windows; what the arrays have beyond them fills the batch up.
    is_whole: whether none is padded.
    sound: int16 [b, n].
    mean, scale: what is subtracted from each window, and what it is multiplied by, [b].
    samples: of each window, [b].
    """

    numbers: list[int]
    is_whole: bool
    sound: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    samples: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return what the program takes beside the parameters."""
        frames = audio.frame_counts(self.samples)
        return self.sound, self.mean, self.scale, self.samples, frames


_Outputs = tuple[list[int], dict[int, np.ndarray]]  # numbers and {pool: [layers, b, r, d]}


def _batches(
    source: FeatureSource,
    cut: windows.Windows,
    read: Callable[[int], np.ndarray],
    waiting: Sequence[int],
    batch: int,
) -> Iterator[_WindowBatch]:
    """Fill batches with the waiting windows, a batch for each length; a record is read once."""
    padded, is_whole = windows.padded(cut), cut.samples == cut.size

    @functools.lru_cache(1)  # windows are in the order of their records
    def record(number: int) -> tuple[np.ndarray, float, float]:
        sound = read(number)
        by_record = source.normalize and not cut.standardised_alone  # as MARBLE, for most tasks
        return sound, *(_standard(sound) if by_record else (0.0, 1.0))

    filling: dict[tuple[int, bool], _WindowBatch] = {}
    for window in waiting:
        kind = int(padded[window]), bool(is_whole[window])
        if kind not in filling:
            filling[kind] = _empty_batch(*kind, batch)
        numbers, _, sound, mean, scale, samples = filling[kind]
        i, start = len(numbers), cut.start[window]

        # Put the window into the next row.
        of_record, mean[i], scale[i] = record(int(cut.record[window]))
        heard = of_record[start : start + cut.samples[window]]
        if source.normalize and cut.standardised_alone:
            mean[i], scale[i] = _standard(heard)
        sound[i, : len(heard)], samples[i] = heard, len(heard)
        numbers.append(window)
        if len(numbers) == batch:
            yield filling.pop(kind)
    yield from filling.values()


def _standard(sound: np.ndarray) -> tuple[float, float]:
    """Return the mean of int16 audio, and the factor that then makes its variance 1."""
    x = sound.astype(np.float32) / 32768
    return float(x.mean()), float(1 / np.sqrt(x.var() + 1e-7))


def _empty_batch(size: int, is_whole: bool, batch: int) -> _WindowBatch:
    """Return a batch that is filled up with silence."""
    return _WindowBatch(
        [],
        is_whole,
        np.zeros((batch, size), np.int16),
        np.zeros(batch, np.float32),
        np.ones(batch, np.float32),
        np.full(batch, size, np.int32),
    )


def _ahead(batches: Iterator[_WindowBatch]) -> Iterator[_WindowBatch]:
    """Fill AHEAD batches, in a thread, before they are needed."""
    filling: collections.deque[Future[_WindowBatch | None]] = collections.deque()
    with ThreadPoolExecutor(1) as pool:
        while True:
            filling.append(pool.submit(next, batches, None))
            if len(filling) > AHEAD:
                filled = filling.popleft().result()
                if filled is None:
                    return
                yield filled


def _pipelined(step: Callable, batches: Iterator[_WindowBatch], mesh: Mesh) -> Iterator[_Outputs]:
    """Run the step one batch ahead of the one whose values are fetched."""
    clips = NamedSharding(mesh, sharding.CLIPS)
    running: collections.deque[tuple[list[int], dict[int, jax.Array]]] = collections.deque()

    def fetch() -> _Outputs:
        numbers, outputs = running.popleft()
        return numbers, {pool: np.asarray(values) for pool, values in outputs.items()}

    # Start a batch, then fetch the one before it.
    for batch in batches:
        arrays = (
            jax.make_array_from_callback(array.shape, clips, array.__getitem__)
            for array in batch.arrays()
        )
        running.append((batch.numbers, step(batch.is_whole, *arrays)))
        if len(running) > 1:
            yield fetch()
    while running:
        yield fetch()


def _step(source: FeatureSource, pools: tuple[int, ...], mesh: Mesh) -> Callable:
    """Return the function of `_WindowBatch.is_whole` and arrays to {pool: [layers, b, r, d]}."""
    params = jax.device_put(source.params, NamedSharding(mesh, PartitionSpec()))
    run = _program(source.apply, pools, mesh)

    def call(is_whole: bool, *arrays: jax.Array) -> dict[int, jax.Array]:
        with jax.set_mesh(mesh):
            return run(is_whole, params, *arrays)

    return call


@functools.lru_cache(8)  # splits and tasks of one encoder share their programs
def _program(apply: Callable, pools: tuple[int, ...], mesh: Mesh) -> Callable:
    """Return what computes pooled features, in float16: a program for each length of windows."""
    several = jax.process_count() > 1  # then process 0 writes what all have computed
    everywhere = NamedSharding(mesh, PartitionSpec()) if several else None

    @functools.partial(jax.jit, static_argnums=0, out_shardings=everywhere)
    def run(is_whole, params, sound, mean, scale, samples, frames):
        x = (audio.to_float(sound) - mean[:, None]) * scale[:, None]
        x = jnp.where(jnp.arange(x.shape[1]) < samples[:, None], x, 0)
        hidden = apply(params, x, None if is_whole else samples)
        outputs = {}
        for pool in pools:
            layers = jnp.stack([_pooled(h, frames, pool) for h in hidden])
            outputs[pool] = layers.astype(jnp.float16)
        return outputs

    return run


def _pooled(hidden: jax.Array, frames: jax.Array, pool: int) -> jax.Array:
    """Average groups of `pool` frames among the real `frames` [b]: [b, t, d] to [b, r, d]."""
    b, t, d = hidden.shape
    hidden = hidden.astype(jnp.float32)
    if pool == 1:
        return hidden
    pool = pool or t
    groups = max((t + pool // 2) // pool, 1)
    fill = max(groups * pool - t, 0)
    hidden = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0)))[:, : groups * pool]
    real = (jnp.arange(groups * pool) < frames[:, None]).reshape(b, groups, pool, 1)
    total = jnp.where(real, hidden.reshape(b, groups, pool, d), 0).sum(2)  # [b, r, d]
    return total / jnp.maximum(real.sum(2), 1)
