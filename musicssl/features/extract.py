"""Features of every layer of a frozen encoder, pooled over time, in one pass over the audio.

Clips are cut into windows; each window goes through the encoder once and is averaged over all its
frames, over groups of frames, or not at all (beat tracking). Rows are written to memory-mapped
float16 files, one layer after another, so that a probe reads one layer alone and nothing has to fit
in memory. A pass that is interrupted goes on where it stopped.
"""

import collections
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
from musicssl.features import windows
from musicssl.features.baselines import BASELINES
from musicssl.features.cache import FeatureFiles
from musicssl.model.encoder import Encoder
from musicssl.runtime import sharding

_FORMAT = 1  # of the files; part of their name
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
      16 kHz audio.
    """

    name: str
    digest: str
    layers: int
    width: int
    sample_rate: int
    normalize: bool
    params: dict
    apply: Callable[[dict, jax.Array], Sequence[jax.Array]]

    @property
    def frame_rate(self) -> float:
        """Return frames a second."""
        return self.sample_rate / audio.STEM_HOP


def open_source(spec: str, precision: str = "float32") -> FeatureSource:
    """Open an encoder or a baseline as a source of features.

    Args:
      spec: a path (a workdir, a Hugging Face directory or a fairseq file), a name of BASELINES, or
        "random:PATH" for the architecture of that path's encoder with new initial values.
      precision: of the encoder's computations.

    Raises:
      FileNotFoundError, ValueError: as `pretrained.load_encoder` raises them.
    """
    if spec in BASELINES:
        return _open_baseline(spec)
    kind, path = paths.split_kind(spec)
    loaded = pretrained.load_encoder(path)
    encoder = loaded.encoder.clone(dtype=jnp.dtype(precision))
    params, digest, name = loaded.params, loaded.digest, loaded.source

    # New initial values have a digest of their own, by the architecture that they fill.
    if kind == paths.RANDOM:
        start = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, 400)))["params"])
        params = jax.tree.map(np.asarray, start(environment.key(0)))
        architecture = encoder, loaded.sample_rate, loaded.normalize
        digest = f"random-{hashlib.sha256(repr(architecture).encode()).hexdigest()}"
        name = f"random initial values of {name}"

    def apply(params: dict, x: jax.Array) -> Sequence[jax.Array]:
        return hidden_states(encoder, params, x)

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


def hidden_states(encoder: Encoder, params: dict, x: jax.Array) -> Sequence[jax.Array]:
    """Return every hidden state [b, t, d] of audio [b, n]."""
    output: Any = encoder.apply({"params": params}, x)
    return output.hidden


def _open_baseline(name: str) -> FeatureSource:
    title, width, function = BASELINES[name]

    def apply(params: dict, x: jax.Array) -> Sequence[jax.Array]:
        return [function(x)]

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

    # Extract what the cache lacks.
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
    parts = (_FORMAT, source.digest, cut.size, len(cut.record), pool, data)
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
    # Process 0 has the files, and tells the others how much of them is written.
    batch = -(-batch // mesh.size) * mesh.size
    writer = None
    if jax.process_index() == 0:
        writer = FeatureFiles(source.layers, source.width, cut, paths)
    done = int(_from_first_process(np.array(writer.done if writer else 0)))

    # Compute the rest, batch by batch.
    step = _step(source, tuple(paths), mesh)
    batches = _pipelined(step, _batches(source, cut, read, done, batch), mesh)
    progress = tqdm(
        total=len(cut.record),
        initial=done,
        desc="features",
        unit=" windows",
        delay=2,
        disable=writer is None,
    )
    with progress as bar:
        for begin, end, outputs in batches:
            if writer:
                writer.write(begin, end, outputs)
            bar.update(end - begin)
    if writer:
        writer.finish()


class _WindowBatch(NamedTuple):
    """Windows begin to end, as `_program` takes them.

    arrays: int16 audio [b, n] and, of each window [b], the mean that is subtracted, the scale that
      is multiplied by, the real samples and the real frames.
    """

    begin: int
    end: int
    arrays: tuple[np.ndarray, ...]


_Outputs = tuple[int, int, dict[int, np.ndarray]]  # begin, end and {pool: [layers, b, r, d]}


def _batches(
    source: FeatureSource,
    cut: windows.Windows,
    read: Callable[[int], np.ndarray],
    done: int,
    batch: int,
) -> Iterator[_WindowBatch]:
    """Read batches in a thread, AHEAD of their use; a record is read once for all its windows."""

    @functools.lru_cache(batch + 1)
    def record(number: int) -> tuple[np.ndarray, float, float]:
        """Read a record: its audio, and the mean and scale that normalise it."""
        sound = read(number)
        mean, scale = 0.0, 1.0
        if source.normalize:  # over the whole clip, as MARBLE: each window is a part of it
            x = sound.astype(np.float32) / 32768
            mean, scale = float(x.mean()), float(1 / np.sqrt(x.var() + 1e-7))
        return sound, mean, scale

    def load(begin: int) -> _WindowBatch:
        """Fill a batch with the windows from `begin` on."""
        end = min(begin + batch, len(cut.record))
        sound = np.zeros((batch, cut.size), np.int16)
        mean, scale = np.zeros(batch, np.float32), np.ones(batch, np.float32)
        samples = np.full(batch, cut.size)
        for i, window in enumerate(range(begin, end)):
            whole, mean[i], scale[i] = record(int(cut.record[window]))
            start, samples[i] = cut.start[window], cut.samples[window]
            sound[i, : samples[i]] = whole[start : start + samples[i]]
        return _WindowBatch(begin, end, (sound, mean, scale, samples, windows.frames(samples)))

    # Keep AHEAD batches in work; windows are given out in their order.
    waiting: collections.deque[Future[_WindowBatch]] = collections.deque()
    with ThreadPoolExecutor(1) as pool:  # one thread: the records of a batch stay in its cache
        for begin in range(done, len(cut.record), batch):
            waiting.append(pool.submit(load, begin))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _pipelined(step: Callable, batches: Iterator[_WindowBatch], mesh: Mesh) -> Iterator[_Outputs]:
    """Run the step one batch ahead of the one whose values are fetched."""
    clips = NamedSharding(mesh, sharding.CLIPS)
    running: collections.deque[tuple[int, int, dict[int, jax.Array]]] = collections.deque()

    def fetch() -> _Outputs:
        begin, end, outputs = running.popleft()
        return begin, end, {pool: np.asarray(values) for pool, values in outputs.items()}

    # Start a batch, then fetch the one before it.
    for batch in batches:
        arrays = (
            jax.make_array_from_callback(array.shape, clips, array.__getitem__)
            for array in batch.arrays
        )
        running.append((batch.begin, batch.end, step(*arrays)))
        if len(running) > 1:
            yield fetch()
    while running:
        yield fetch()


def _step(source: FeatureSource, pools: tuple[int, ...], mesh: Mesh) -> Callable:
    """Return the function of a batch's arrays to {pool: [layers, b, r, d] float16}."""
    params = jax.device_put(source.params, NamedSharding(mesh, PartitionSpec()))
    run = _program(source.apply, pools, mesh)

    def call(*arrays: jax.Array) -> dict[int, jax.Array]:
        with jax.set_mesh(mesh):
            return run(params, *arrays)

    return call


@functools.lru_cache(8)  # splits and tasks of one encoder share their programs
def _program(apply: Callable, pools: tuple[int, ...], mesh: Mesh) -> Callable:
    """Return the jitted function of parameters and a batch's arrays to pooled features."""
    several = jax.process_count() > 1  # then process 0 writes what all have computed
    everywhere = NamedSharding(mesh, PartitionSpec()) if several else None

    @functools.partial(jax.jit, out_shardings=everywhere)
    def run(params, sound, mean, scale, samples, frames):
        x = (audio.to_float(sound) - mean[:, None]) * scale[:, None]
        x = jnp.where(jnp.arange(x.shape[1]) < samples[:, None], x, 0)
        hidden = apply(params, x)
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
