"""Features of every layer of a frozen encoder, pooled over time, in one pass over the audio.

Clips are cut into windows; each window goes through the encoder once and is averaged over all its
frames, over groups of frames, or not at all (beat tracking). A remainder keeps its own length: it
is padded to one of a few lengths, each of which has a program, and the padding does not change its
features. Rows are written to memory-mapped float16 files, one layer after another, so that a probe
can read a single layer and nothing has to fit in memory. An interrupted pass resumes where it
stopped.
"""

import collections
import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
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
from musicssl.features import batches, cache, plugin_source, stored, windows
from musicssl.features.baselines import BASELINES
from musicssl.features.batches import WindowBatch
from musicssl.features.cache import FeatureFiles
from musicssl.features.source import FeatureSource, Outputs
from musicssl.model.encoder import Encoder
from musicssl.runtime import distributed, sharding

_FORMAT = 2  # of the files; part of their name


def open_source(spec: str, precision: str = "float32", step: int | None = None) -> FeatureSource:
    """Open an encoder or a baseline as a source of features.

    Args:
      spec: an argument of `pretrained.load_encoder`; or "random:" and such an argument, for that
        encoder's architecture with new initial values; or a name of BASELINES; or "python:" and an
        argument of `plugin_source.open_plugin`; or "features:" and a directory for
        `stored.open_features`.
      precision: of the computations, for encoders of musicssl's own architectures.
      step: of a workdir's checkpoints; None for the last.

    Raises:
      ValueError: initial values are asked of what has none.
      FileNotFoundError, OSError, ValueError: as raised by the function that opens it.
    """
    if spec in BASELINES:
        return _open_baseline(spec)
    kind, path = paths.split_kind(spec)
    if kind == paths.PYTHON:
        return plugin_source.open_plugin(path)
    if kind == paths.FEATURES:
        return stored.open_features(Path(path))
    if kind == paths.RANDOM and (path in BASELINES or paths.split_kind(path)[0]):
        raise ValueError(
            f"no initial values can be drawn for {path}: instead of random, name a run or a model, "
            "such as random:runs/mine"
        )
    loaded = pretrained.load_encoder(path, step)
    encoder = loaded.encoder.clone(dtype=jnp.dtype(precision))
    params, digest, name = loaded.params, loaded.digest, loaded.source

    # New initial values have their own digest, by their architecture.
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
        origin={"revision": loaded.revision} if loaded.revision else {},
    )


def hidden_states(
    encoder: Encoder, params: dict, x: jax.Array, samples: jax.Array | None = None
) -> Sequence[jax.Array]:
    """Return every hidden state [b, t, d] of audio [b, n]; `samples` as in Encoder.__call__."""
    output: Any = encoder.apply({"params": params}, x, samples=samples)
    return output.hidden


def _open_baseline(name: str) -> FeatureSource:
    title, width, function = BASELINES[name]

    def apply(params: dict, x: jax.Array, samples: jax.Array | None = None) -> Sequence[jax.Array]:
        return [function(x, samples)]

    return FeatureSource(title, f"{name}-{width}", 1, width, audio.SAMPLE_RATE, False, {}, apply)


class Heard(NamedTuple):
    """Windows that may be in the cache, and sound like some of those that are wanted.

    cut: the windows. data: digest of their audio.
    alike: which of them each wanted window sounds like, [w]; -1 for none.
    """

    cut: windows.Windows
    data: str
    alike: np.ndarray


def extract(
    source: FeatureSource,
    cut: windows.Windows,
    read: Callable[[int], np.ndarray],
    pools: Sequence[int],
    folder: Path,
    data: str,
    mesh: Mesh,
    batch: int,
    heard: Callable[[], Sequence[Heard]] = tuple,
) -> dict[int, np.ndarray]:
    """Return the features of all windows, from the cache if it has them.

    With several processes, each computes its devices' windows, and only process 0 has the files:
    the others return an empty dict.

    Args:
      read: from a record's number to its int16 audio, at the source's rate.
      pools: how many frames are averaged to one row; windows.WHOLE for all of a window, 1 for none.
      folder: the cache.
      data: digest of the audio.
      mesh: whose devices share the work.
      batch: windows in a global batch; rounded up to a multiple of the mesh's devices.
      heard: gives other windows, which are copied where the cache has them, and not heard again.

    Returns:
      {pool: [layers, n, d] float16}, memory-mapped.

    Raises:
      ValueError: a feature is not finite, or too large for float16.
    """
    folder = folder / hashlib.sha256(f"{source.digest}".encode()).hexdigest()[:16]
    pools = sorted(set(pools))
    paths = {pool: folder / f"{_key(source, cut, pool, data)}.npy" for pool in pools}

    # Extract what the cache lacks, unless another process is extracting it.
    if source.answer is not None:
        cache.check_answer(folder, source.answer, source.name)
    with contextlib.ExitStack() as held:
        distributed.first_does(lambda: held.enter_context(cache.turn(paths.values())))
        cached = _from_first_process(np.array([paths[pool].exists() for pool in pools]))
        missing = [pool for pool, is_cached in zip(pools, cached, strict=True) if not is_cached]
        if missing:
            known = []
            for cut_before, digest, alike in heard():
                names = {pool: _key(source, cut_before, pool, digest) for pool in missing}
                files = {pool: folder / f"{name}.npy" for pool, name in names.items()}
                known.append((cut_before, files, alike))
            wanted = {pool: paths[pool] for pool in missing}
            _fill(source, cut, read, wanted, mesh, batch, known)

    if jax.process_index():
        return {}
    return {pool: np.load(path, mmap_mode="r") for pool, path in paths.items()}


def _from_first_process(value: np.ndarray) -> np.ndarray:
    """Return process 0's value in every process, since each may have its own disk."""
    if jax.process_count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(value)


def _key(source: FeatureSource, cut: windows.Windows, pool: int, data: str) -> str:
    """Return the name of a file: a digest of everything that its features depend on."""
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
    known: Sequence[tuple[windows.Windows, dict[int, Path], np.ndarray]],
) -> None:
    """Write each pool's file, from where an interrupted pass stopped.

    Args:
      known: windows that were heard before, their files, and which of them each window sounds like.
    """
    writer = None
    if jax.process_index() == 0:  # it has the files
        writer = FeatureFiles(source.layers, source.width, cut, paths)
        for heard in known:
            writer.copy(*heard)

    # Process 0 tells the others which windows are written.
    batch = -(-batch // mesh.size) * mesh.size
    written = _from_first_process(writer.written if writer else np.zeros(len(cut.record), bool))

    # Compute the rest, batch by batch.
    waiting = np.flatnonzero(~written).tolist()
    if source.hear:
        outputs_of_batches = source.hear(cut, read, sorted(paths), waiting, batch)
    else:
        filled = batches.ahead(batches.batches(source.normalize, cut, read, waiting, batch))
        outputs_of_batches = _pipelined(source, sorted(paths), filled, mesh)
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
                    _write(writer, numbers, outputs, source.name)
                bar.update(len(numbers))
        except BaseException:  # also when a pass is preempted
            if writer:
                writer.stop()
            raise
    if writer:
        writer.finish()


def _write(
    writer: FeatureFiles, numbers: Sequence[int], outputs: dict[int, np.ndarray], name: str
) -> None:
    try:
        writer.write(numbers, outputs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _pipelined(
    source: FeatureSource, pools: Sequence[int], filled: Iterator[WindowBatch], mesh: Mesh
) -> Iterator[Outputs]:
    """Run the step one batch ahead of the batch whose values are fetched."""
    step = _step(source, tuple(pools), mesh)
    clips = NamedSharding(mesh, sharding.CLIPS)
    running: collections.deque[tuple[list[int], dict[int, jax.Array]]] = collections.deque()

    def fetch() -> Outputs:
        numbers, outputs = running.popleft()
        return numbers, {pool: np.asarray(values) for pool, values in outputs.items()}

    # Start a batch, then fetch the one before it.
    for batch in filled:
        arrays = (
            jax.make_array_from_callback(array.shape, clips, array.__getitem__)
            for array in batch.arrays(source.frames)
        )
        running.append((batch.numbers, step(batch.is_whole, *arrays)))
        if len(running) > 1:
            yield fetch()
    while running:
        yield fetch()


def _step(source: FeatureSource, pools: tuple[int, ...], mesh: Mesh) -> Callable:
    """Return the function of `WindowBatch.is_whole` and arrays to {pool: [layers, b, r, d]}."""
    params = jax.device_put(source.params, NamedSharding(mesh, PartitionSpec()))
    run = _program(source.apply, pools, source.frame_rate, mesh)

    def call(is_whole: bool, *arrays: jax.Array) -> dict[int, jax.Array]:
        with jax.set_mesh(mesh):
            return run(is_whole, params, *arrays)

    return call


@functools.lru_cache(8)  # splits and tasks of one encoder share their programs
def _program(apply: Callable, pools: tuple[int, ...], frame_rate: float, mesh: Mesh) -> Callable:
    """Return the function that computes pooled features in float16, compiled for each length."""
    several = jax.process_count() > 1  # then process 0 writes what all processes have computed
    everywhere = NamedSharding(mesh, PartitionSpec()) if several else None

    @functools.partial(jax.jit, static_argnums=0, out_shardings=everywhere)
    def run(is_whole, params, sound, mean, scale, samples, frames):
        x = (audio.to_float(sound) - mean[:, None]) * scale[:, None]
        x = jnp.where(jnp.arange(x.shape[1]) < samples[:, None], x, 0)
        hidden = apply(params, x, None if is_whole else samples)
        outputs = {}
        for pool in pools:
            layers = jnp.stack([_pooled(h, frames, pool, frame_rate) for h in hidden])
            outputs[pool] = layers.astype(jnp.float16)
        return outputs

    return run


def _pooled(hidden: jax.Array, frames: jax.Array, pool: int, frame_rate: float) -> jax.Array:
    """Average the real `frames` [b] by `windows.parts`: [b, t, d] to [b, r, d].

    There may be more rows than a window has.
    """
    b, t, d = hidden.shape
    hidden = hidden.astype(jnp.float32)
    if pool == windows.FRAMES:
        return hidden
    real = jnp.arange(t) < frames[:, None]
    each = pool * frame_rate / windows.TICKS if pool else t
    rows = math.ceil(t / each)
    if each == int(each):
        size = int(each)
        fill = rows * size - t
        real = jnp.pad(real, ((0, 0), (0, fill))).reshape(b, rows, size, 1)
        grouped = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0))).reshape(b, rows, size, d)
        total, count = jnp.where(real, grouped, 0).sum(2), real.sum(2)
    else:
        ends = [end for _, end in windows.parts(pool, rows, rows * t, frame_rate)]
        row = np.searchsorted(ends, np.arange(t), side="right")
        along = jnp.moveaxis(jnp.where(real[..., None], hidden, 0), 1, 0)  # [t, b, d]
        total = jnp.moveaxis(jax.ops.segment_sum(along, row, rows), 0, 1)
        count = jax.ops.segment_sum(real.T.astype(jnp.int32), row, rows).T[..., None]
    return total / jnp.maximum(count, 1)  # [b, r, d] by [b, r, 1]
