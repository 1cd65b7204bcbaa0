"""Times a training step, its parts and the work around it on this machine, and their limits.

The work around the step is reading the input, extracting features, probing and fitting a codebook.
"""

import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from musicssl import audio, environment, host, paths
from musicssl.model.encoder import make_encoder
from musicssl.objectives import data2vec, data2vec2, hubert, kmeans, targets
from musicssl.planning import compilation, costs
from musicssl.runtime import sharding
from musicssl.training import flops, optim, step

STEP = ("step", "stem", "positional", "transformer", "teacher", "labels", "head", "optimizer")
AROUND = ("input", "extraction", "probes", "kmeans")
TASK = (443, 197, 10)  # windows for training and validation, classes: as in GTZAN's genres
FRAMES = 100_000  # how many frames k-means assigns to codes


class TimedRow(NamedTuple):
    """A figure and its limit, both in `unit`; `seconds` is the time of one call."""

    name: str
    seconds: float
    figure: float
    limit: float
    unit: str
    limited_by: str


class Ruler(NamedTuple):
    """A call, and the operations or bytes of it on all devices of the mesh."""

    call: Callable[[], object]
    amount: float


class Machine(NamedTuple):
    """What bounds any program here: operations and bytes per second of all devices of the mesh.

    product, copy: what measures these rates again beside each row, since the speed of a busy
    machine varies; None if the data sheet states the rate.
    """

    mesh: Mesh
    operations: float
    bytes: float
    rate: str  # where `operations` comes from
    budget: float  # seconds that a row may take
    product: Ruler | None = None
    copy: Ruler | None = None


def _median_seconds(call: Callable[[], object], budget: float) -> float:
    """Return the median time of a call, after a first call that compiles and is not counted.

    Args:
      budget: how many seconds the counted calls take together; there are at least three of them.
    """
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def beside(
    call: Callable[[], object], ruler: Ruler | None, stated: float, budget: float
) -> tuple[float, float]:
    """Return the median time of a call, and the rate of a ruler whose calls alternate with it.

    Args:
      stated: the rate to return if there is no ruler.
      budget: as in `_median_seconds`, of the call.
    """
    if ruler is None:
        return _median_seconds(call, budget), stated
    times: tuple[list[float], list[float]] = ([], [])
    calls = call, ruler.call
    jax.block_until_ready([each() for each in calls])
    while len(times[0]) < 3 or sum(times[0]) < budget:
        for each, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(each())
            taken.append(time.perf_counter() - begin)
    return statistics.median(times[0]), ruler.amount / statistics.median(times[1])


def machine(mesh: Mesh, precision: str, budget: float) -> Machine:
    """Measure a matrix product and a copy on one device, and assume that all devices are alike."""
    side = 4096 if mesh.devices.flat[0].platform != "cpu" else 2048

    # Operations, by the data sheet if it has a figure for this precision.
    a = jnp.ones((side, side), jnp.dtype(precision))
    product = jax.jit(lambda a: a @ a)
    operations, rate = 2 * side**3 / _median_seconds(lambda: product(a), 1), "a matrix product"
    by_product: Ruler | None = Ruler(lambda: product(a), 2 * side**3 * mesh.size)
    peak = flops.peak(mesh.devices.flat[0])
    if peak is not None and precision == "bfloat16":
        operations, rate, by_product = peak, "the data sheet", None

    # Bytes, each read and written once.
    last = [jnp.ones(2**26)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def copy() -> jax.Array:
        last[0] = add(last[0])
        return last[0]

    moved = 2 * last[0].nbytes
    by_copy = Ruler(copy, moved * mesh.size)
    bytes_a_second = moved / _median_seconds(copy, 1) * mesh.size
    return Machine(mesh, operations * mesh.size, bytes_a_second, rate, budget, by_product, by_copy)


def _step_rows(
    config: ml_collections.ConfigDict, here: Machine, only: list[str]
) -> Iterator[TimedRow]:
    """Measure the wanted rows: the training step, then its parts."""
    with jax.set_mesh(here.mesh):
        programs = _programs(config, here.mesh)
        counts = flops.train_parts(config)
        counts["transformer"] = counts.pop("attention") + counts.pop("ffn")
        counts["step"] = flops.train_step(config)
        for name, program in programs.items():
            if name not in only:
                continue
            if name == "optimizer":
                seconds, limit = beside(program, here.copy, here.bytes, here.budget)
                figure = _optimizer_bytes(config) / seconds / 1e9
                yield TimedRow(name, seconds, figure, limit / 1e9, "GB/s", "a copy")
                continue
            yield _operations_row(name, program, counts[name], here)


def _operations_row(
    name: str, program: Callable[[], object], operations: float, here: Machine
) -> TimedRow:
    """Measure a program of this many operations, and beside it the machine's own rate."""
    seconds, limit = beside(program, here.product, here.operations, here.budget)
    return TimedRow(name, seconds, operations / seconds / 1e9, limit / 1e9, "GFLOP/s", here.rate)


def _programs(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, Callable[[], object]]:
    """Return programs by name, on random audio and the initial state; a call runs one once."""
    encoder, method = make_encoder(config), step.objective(config)
    keys = step.streams(config.seed, 1)
    rngs = {name: keys[name] for name in ("dropout", "layerdrop")}

    # The arguments of the programs.
    clips = _random_clips(config, mesh)
    frozen = random_frozen(config)
    state = step.sharded_init(config, mesh)
    batch = jax.jit(lambda x: step.prepare(config, keys["mask"], x))(clips)
    params, teacher = state.params["encoder"], state.teacher | frozen

    def apply(params: dict, x: jax.Array, method: str, **options: Any) -> Any:
        return encoder.apply({"params": params}, x, method=method, **options)

    def transform(params: dict, x: jax.Array) -> jax.Array:
        return apply(params, x, "transform", train=True, rngs=rngs).hidden[-1]

    def both_ways(function: Callable, *arguments: object) -> Callable[[], object]:
        def squares(*x: object) -> Any:
            return sum(jnp.square(y).mean() for y in jax.tree.leaves(function(*x)))

        program = jax.jit(jax.grad(squares, argnums=(0, 1)))
        return lambda: program(*arguments)

    # The parts of the encoder; in data2vec 2.0, each sees different frames.
    z = jax.jit(lambda p, x: apply(p, apply(p, x, "stem"), "project"))(params, batch.encoder_input)
    placed = encoded = z
    if config.method == "data2vec2":
        mask, order, _ = (x.reshape(-1, x.shape[-1]) for x in batch.mask)  # [n, t], of each copy
        placed = jnp.repeat(z, config.mask.copies, axis=0)  # [n, t, d]
        encoded = placed[:, : mask.shape[1] - int(mask[0].sum())]  # [n, v, d]
    stem = jax.jit(jax.grad(lambda p: jnp.square(apply(p, batch.encoder_input, "stem")).mean()))
    programs: dict[str, Callable[[], object]] = {
        "stem": lambda: stem(params),  # the gradient of audio is not needed
        "positional": both_ways(lambda p, x: apply(p, x, "position"), params, placed),
        "transformer": both_ways(transform, params, encoded),
    }

    # The computation of the targets, and the head that predicts them, with its further arguments.
    head: nn.Module
    told: dict[str, Any] = {}
    if config.method == "hubert":
        label = jax.jit(lambda t, x: hubert.labels(config, t, x))
        programs["labels"] = lambda: label(teacher, batch.waveform)
        head = hubert.head(encoder, config)
        seen = jnp.take_along_axis(z, batch.mask.frames[..., None], axis=1)  # [b, m, d]
    else:
        targets = jax.jit(lambda p, t, z: data2vec.targets(encoder, config, p, t, z))
        programs["teacher"] = lambda: targets(state.params, state.teacher, z)
        head, seen = data2vec.head(encoder), z
    if config.method == "data2vec2":
        head, seen = data2vec2.head(encoder, config), encoded
        told = {"mask": mask, "order": order, "rngs": {"dropout": keys["dropout"]}}

    def predict(params: dict, x: jax.Array) -> Any:
        return head.apply({"params": params}, x, **told)

    programs["head"] = both_ways(predict, state.params["head"], seen)

    # The update and the whole step; each is donated the state that it returned last.
    def change(params: dict, optimizer: optax.OptState, averaged: dict) -> tuple:
        changes, optimizer = optim.adam(config).update(params, optimizer, params)
        params = optax.apply_updates(params, changes)
        return params, optimizer, method.after_update(config, params, averaged, jnp.int32(1))

    changed = jax.jit(change, donate_argnums=(0, 1, 2))
    own = _copy(state)
    last_update = [(own.params, own.optimizer, own.teacher)]

    def optimizer() -> tuple:
        last_update[0] = changed(*last_update[0])
        return last_update[0]

    advance, last_state = step.make_step(config, mesh), [_copy(state)]

    def whole() -> jax.Array:
        last_state[0], metrics = advance(last_state[0], frozen, clips)
        return metrics["loss"]

    return {"step": whole, **programs, "optimizer": optimizer}


def _random_clips(config: ml_collections.ConfigDict, mesh: Mesh) -> jax.Array:
    """Return a batch of noise on the mesh, int16 [b, n]."""
    rng = np.random.default_rng(0)
    b, n = config.batch_size, audio.crop_samples(config.data.crop_frames)
    noise = rng.integers(-8000, 8000, (b, n), dtype=np.int16)
    return sharding.place_clips(mesh, b, np.arange(b), noise)


def _copy(state: step.TrainState) -> step.TrainState:
    """Copy a state, since the program that takes it is donated its memory, as in training."""
    return jax.tree.map(jnp.copy, state)


def random_frozen(config: ml_collections.ConfigDict) -> dict:
    """Return random values for the part of a teacher that training does not change."""
    keys = iter(jax.random.split(environment.key(1), 1000))

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.random.normal(next(keys), x.shape, x.dtype)

    return jax.tree.map(draw, compilation.frozen(config))


def _optimizer_bytes(config: ml_collections.ConfigDict) -> int:
    """Return the bytes that an update moves.

    It reads parameters, gradients, two moments and the teacher, and writes all but the gradients.
    """
    state = step.state_shapes(config)
    return 7 * costs.stored(state.params) + 2 * costs.stored(state.teacher)


def _input_row(config: ml_collections.ConfigDict, here: Machine) -> TimedRow | None:
    """Measure crops of the data set and a bare read of its files; None if it is not built."""
    if not host.is_built(config.data.name, config.data.data_dir):
        return None
    crops: Any  # an iterator that can be closed
    crops, records = host.crops_and_records(config)
    seconds, b = _median_seconds(lambda: next(crops)["audio"], here.budget), config.batch_size
    limit = b / _median_seconds(lambda: [next(records) for _ in range(b)], here.budget)
    crops.close()
    return TimedRow("input", seconds, b / seconds, limit, "records/s", "a bare read")


def _extraction_row(config: ml_collections.ConfigDict, here: Machine) -> TimedRow:
    """Measure pooled features of every layer, through the cache on disk, and a forward pass."""
    from musicssl.features import extract, windows  # needs packages that the step does not

    encoder, b = make_encoder(config), config.batch_size
    n = audio.crop_samples(config.data.crop_frames)
    params = step.sharded_init(config, here.mesh).params["encoder"]
    apply = functools.partial(extract.hidden_states, encoder)

    # The forward pass alone.
    run = jax.jit(lambda p, x: jnp.stack([hidden.mean() for hidden in apply(p, x)]))
    rng = np.random.default_rng(0)
    sound = rng.integers(-8000, 8000, n, dtype=np.int16)
    clips = jnp.broadcast_to(jnp.asarray(sound / 32768, jnp.float32), (b, n))
    limit = b / _median_seconds(lambda: run(params, clips), here.budget)

    # The extraction of as many clips as fit the budget, after a batch that compiles.
    source = extract.FeatureSource(
        "", "", encoder.layers + 1, encoder.width, config.data.sample_rate, False, params, apply
    )
    count = b * max(4, int(here.budget * limit / b))
    cut = windows.cut(np.full(count, n), n / config.data.sample_rate, config.data.sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for part, rows in (("first", b), ("all", count)):
            few = windows.Windows(cut.record[:rows], cut.start[:rows], cut.samples[:rows], cut.size)
            begin = time.perf_counter()
            pools = [windows.WHOLE]
            extract.extract(source, few, lambda _: sound, pools, Path(folder), part, here.mesh, b)
            times.append(time.perf_counter() - begin)
    return TimedRow(
        "extraction", times[-1], count / times[-1], limit, "clips/s", "the forward pass"
    )


def _probes_row(config: ml_collections.ConfigDict, here: Machine) -> TimedRow:
    """Measure a layer's probes with six learning rates and three seeds, for two epochs."""
    from musicssl.probing import grid, metrics

    train, validation, classes = TASK
    rng, d = np.random.default_rng(0), config.encoder.width

    def random_split(windows: int) -> Any:
        features = rng.standard_normal((1, 1, windows, d)).astype(np.float16)
        return grid.split_of(features, rng.integers(0, classes, windows).astype(np.int32))

    splits = [random_split(windows) for windows in (train, validation)]
    protocol = grid.Protocol("ce", classes, epochs=2)
    rates, seeds = jnp.geomspace(5e-5, 1e-2, 6), jnp.arange(3)

    def fit() -> object:
        return grid.fit(protocol, metrics.monitor_accuracy, *splits, rates, seeds).score

    # Operations: three passes over the training split, one over the validation split.
    h, rows = protocol.hidden, -(-train // protocol.batch) * protocol.batch
    work = rows * 2 * (2 * d * h + 3 * h * classes) + validation * 2 * h * (d + classes)
    return _operations_row("probes", fit, protocol.epochs * len(rates) * len(seeds) * work, here)


def _kmeans_row(config: ml_collections.ConfigDict, here: Machine) -> TimedRow:
    """Measure the search for each frame's nearest code, which every pass of a fit performs."""
    clusters, width = 500, 39
    if config.method == "hubert":
        first = targets.of(config)[0]
        clusters, width = first.clusters, targets.width(config, first)
    frames = jax.random.normal(environment.key(0), (FRAMES, width))
    codes = jax.random.normal(environment.key(1), (clusters, width))
    nearest = jax.jit(kmeans.assign)
    operations = 2 * frames.shape[0] * width * clusters
    return _operations_row("kmeans", lambda: nearest(codes, frames), operations, here)


def _table(rows: list[TimedRow]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| what | ms | figure | limit | ratio | limited by |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row.name} | {1000 * row.seconds:,.1f} | {row.figure:,.1f} {row.unit} | "
            f"{row.limit:,.1f} {row.unit} | {row.figure / row.limit:.0%} | {row.limited_by} |"
        )
    return "\n".join(lines)


def _describe(config: ml_collections.ConfigDict, here: Machine) -> dict[str, object]:
    """Return facts about the machine and about what was run on it, by name."""
    device = here.mesh.devices.flat[0]
    affinity = hasattr(os, "sched_getaffinity")
    return {
        "config": f"{config.name}:{config.variant}",
        "batch": config.batch_size,
        "frames": config.data.crop_frames,
        "precision": config.precision,
        "device": f"{here.mesh.size} x {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if affinity else os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "flax": flax.__version__,
    }


def write_report(
    config: ml_collections.ConfigDict, here: Machine, rows: list[TimedRow], output: Path
) -> None:
    """Print the table and what it was measured on, then write both to <output>.json."""
    about = _describe(config, here)
    steps = [row for row in rows if row.name == "step"]
    if steps:
        length = audio.crop_samples(config.data.crop_frames) / config.data.sample_rate
        speed = config.batch_size * length / steps[0].seconds
        about["audio-seconds a second"] = round(speed, 1)
    print(_table(rows))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {**about, "rows": [row._asdict() for row in rows]}
    text = json.dumps(document, indent=1) + "\n"
    paths.write(output.with_name(f"{output.name}.json"), text.encode())


def measured(
    config: ml_collections.ConfigDict, here: Machine, only: list[str]
) -> Iterator[TimedRow]:
    """Yield the wanted rows, as they are measured."""
    if set(only) & set(STEP):
        yield from _step_rows(config, here, only)
    around = (_input_row, _extraction_row, _probes_row, _kmeans_row)
    for name, measure in zip(AROUND, around, strict=True):
        if name in only:
            row = measure(config, here)
            if row is None:
                print(f"{name}: not run, {config.data.name} is not built", file=sys.stderr)
            else:
                yield row
