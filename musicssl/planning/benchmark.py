"""What the training step, its parts and what surrounds it take on this machine, beside limits."""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from musicssl import audio, host
from musicssl.model.encoder import make_encoder
from musicssl.objectives import data2vec, hubert, kmeans
from musicssl.planning import compilation
from musicssl.runtime import sharding
from musicssl.training import flops, optim, step

STEP = ("step", "stem", "positional", "transformer", "teacher", "labels", "head", "optimizer")
AROUND = ("input", "extraction", "probes", "kmeans")
TASK = (443, 197, 10)  # windows of train and validation, classes: GTZAN's genres
FRAMES = 100_000  # that k-means assigns


class Row(NamedTuple):
    """A figure and its limit, both in `unit`: seconds are those of one call."""

    name: str
    seconds: float
    figure: float
    limit: float
    unit: str
    limited_by: str


class Machine(NamedTuple):
    """What bounds any program here: operations and bytes a second of all devices of the mesh."""

    mesh: Mesh
    operations: float
    bytes: float
    rate: str  # what `operations` is
    budget: float  # seconds for a row


def median_seconds(call: Callable[[], object], budget: float) -> float:
    """Of calls that fill the budget, three at least, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    while len(times) < 3 or sum(times) < budget:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def machine(mesh: Mesh, precision: str, budget: float) -> Machine:
    """Measures the matrix product and the copy on one device, and takes all to be alike."""
    side = 4096 if mesh.devices.flat[0].platform != "cpu" else 2048
    a = jnp.ones((side, side), jnp.dtype(precision))
    product = jax.jit(lambda a: a @ a)
    operations, rate = 2 * side**3 / median_seconds(lambda: product(a), 1), "a matrix product"
    peak = flops.peak(mesh.devices.flat[0])
    if peak is not None and precision == "bfloat16":
        operations, rate = peak, "the data sheet"
    held = [jnp.ones(2**26)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def copy() -> jax.Array:
        held[0] = add(held[0])
        return held[0]

    moved = 2 * held[0].nbytes / median_seconds(copy, 1)
    return Machine(mesh, operations * mesh.size, moved * mesh.size, rate, budget)


def step_rows(config: ml_collections.ConfigDict, here: Machine, only: list[str]) -> Iterator[Row]:
    """The training step, then its parts."""
    with jax.set_mesh(here.mesh):
        programs = parts(config, here.mesh)
        counts = flops.train_parts(config)
        counts["transformer"] = counts.pop("attention") + counts.pop("ffn")
        counts["step"] = flops.train_step(config)
        for name in (name for name in programs if name in only):
            seconds = median_seconds(programs[name], here.budget)
            if name == "optimizer":
                figure = optimizer_bytes(config) / seconds / 1e9
                yield Row(name, seconds, figure, here.bytes / 1e9, "GB/s", "a copy")
                continue
            figure = counts[name] / seconds / 1e9
            yield Row(name, seconds, figure, here.operations / 1e9, "GFLOP/s", here.rate)


def parts(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, Callable[[], object]]:
    """Programs by name, each on random audio and the initial state; call them to run once."""
    encoder, method = make_encoder(config), step.objective(config)
    rng = np.random.default_rng(0)
    b, n = config.batch_size, audio.crop_samples(config.data.crop_frames)
    sound = rng.integers(-8000, 8000, (b, n), dtype=np.int16)
    sound = sharding.place_clips(mesh, b, np.arange(b), sound)
    frozen = fixed(config)
    state = step.sharded_init(config, mesh)
    keys = step.streams(config.seed, 1)
    batch = jax.jit(lambda x: step.prepare(config, keys["mask"], x))(sound)
    params, teacher = state.params["encoder"], state.teacher | frozen
    rngs = {name: keys[name] for name in ("dropout", "layerdrop")}

    def apply(params: dict, x: jax.Array, method: str, **options) -> jax.Array:
        return encoder.apply({"params": params}, x, method=method, **options)

    def transform(params: dict, x: jax.Array) -> jax.Array:
        return apply(params, x, "transform", train=True, rngs=rngs).hidden[-1]

    def both_ways(function: Callable, *arguments: object) -> Callable[[], object]:
        program = jax.jit(jax.grad(lambda *x: jnp.square(function(*x)).mean(), argnums=(0, 1)))
        return lambda: program(*arguments)

    z = jax.jit(lambda p, x: apply(p, apply(p, x, "stem"), "project"))(params, batch.audio)
    stem = jax.jit(jax.grad(lambda p: jnp.square(apply(p, batch.audio, "stem")).mean()))
    programs = {
        "stem": lambda: stem(params),  # nothing asks for the gradient of audio
        "positional": both_ways(lambda p, x: apply(p, x, "position"), params, z),
        "transformer": both_ways(transform, params, z),
    }
    if config.method == "data2vec":
        targets = jax.jit(lambda p, t, z: data2vec.targets(encoder, config, p, t, z))
        head = data2vec.head(encoder)
        programs["teacher"] = lambda: targets(state.params, state.teacher, z)
        seen = z
    else:
        label = jax.jit(lambda t, x: kmeans.assign(t["codebook"], hubert.features(config, t, x)))
        head = hubert.head(encoder, config)
        programs["labels"] = lambda: label(teacher, batch.raw)
        seen = jnp.take_along_axis(z, batch.mask.frames[..., None], axis=1)  # [b, m, d]
    logits = lambda p, x: head.apply({"params": p}, x)  # noqa: E731
    programs["head"] = both_ways(logits, state.params["head"], seen)

    def change(params: dict, optimizer: optax.OptState, averaged: dict) -> tuple:
        changes, optimizer = optim.adam(config).update(params, optimizer, params)
        params = optax.apply_updates(params, changes)
        return params, optimizer, method.after_update(config, params, averaged, jnp.int32(1))

    changed = jax.jit(change, donate_argnums=(0, 1, 2))
    own = copied(state)
    held = [(own.params, own.optimizer, own.teacher)]

    def optimizer() -> tuple:
        held[0] = changed(*held[0])
        return held[0]

    programs["optimizer"] = optimizer
    run, states = step.make_step(config, mesh), [copied(state)]

    def whole() -> jax.Array:
        states[0], measured = run(states[0], frozen, sound)
        return measured["loss"]

    return {"step": whole, **programs}


def copied(state: step.TrainState) -> step.TrainState:
    """For a program that its state is donated to, as training does."""
    return jax.tree.map(jnp.copy, state)


def fixed(config: ml_collections.ConfigDict) -> dict:
    """The fixed part of a teacher with random values."""
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return jax.tree.map(
        lambda x: jax.random.normal(next(keys), x.shape, x.dtype), compilation.frozen(config)
    )


def optimizer_bytes(config: ml_collections.ConfigDict) -> int:
    """Read: parameters, gradients, two moments, teacher; written: all of them but gradients."""
    state = step.state_shapes(config)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    return 7 * size(state.params) + 2 * size(state.teacher)


def input_row(config: ml_collections.ConfigDict, here: Machine) -> Row | None:
    """Crops of the data set beside a bare read of its files; None where it is not built."""
    if not host.is_built(config.data.name, config.data.data_dir):
        return None
    crops, records = host.crops_and_records(config)
    seconds, b = median_seconds(lambda: next(crops)["audio"], here.budget), config.batch_size
    limit = b / median_seconds(lambda: [next(records) for _ in range(b)], here.budget)
    crops.close()
    return Row("input", seconds, b / seconds, limit, "records/s", "a bare read")


def extraction_row(config: ml_collections.ConfigDict, here: Machine) -> Row:
    """Pooled features of every layer, through the cache on disk, beside the forward pass alone."""
    from musicssl.features import extract, windows  # needs packages that the step does not

    encoder, b = make_encoder(config), config.batch_size
    n = audio.crop_samples(config.data.crop_frames)
    params = step.sharded_init(config, here.mesh).params["encoder"]
    run = jax.jit(
        lambda p, x: jnp.stack([h.mean() for h in encoder.apply({"params": p}, x).hidden])
    )
    rng = np.random.default_rng(0)
    sound = rng.integers(-8000, 8000, n, dtype=np.int16)
    clips = jnp.broadcast_to(jnp.asarray(sound / 32768, jnp.float32), (b, n))
    limit = b / median_seconds(lambda: run(params, clips), here.budget)

    def apply(params: dict, x: jax.Array):
        return encoder.apply({"params": params}, x).hidden

    source = extract.FeatureSource(
        "", "", encoder.layers + 1, encoder.width, config.data.sample_rate, False, params, apply
    )
    count = b * max(4, int(here.budget * limit / b))
    cut = windows.cut(np.full(count, n), n / config.data.sample_rate, config.data.sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for part, rows in (("first", b), ("all", count)):  # the first one compiles
            few = windows.Windows(cut.record[:rows], cut.start[:rows], cut.samples[:rows], cut.size)
            begin = time.perf_counter()
            pools = [windows.WHOLE]
            extract.extract(source, few, lambda _: sound, pools, Path(folder), part, here.mesh, b)
            times.append(time.perf_counter() - begin)
    return Row("extraction", times[-1], count / times[-1], limit, "clips/s", "the forward pass")


def probes_row(config: ml_collections.ConfigDict, here: Machine) -> Row:
    """A layer's probes at six learning rates and three seeds, two epochs on features of a task."""
    from musicssl.probing import grid, metrics

    train, validation, classes = TASK
    rng, d = np.random.default_rng(0), config.encoder.width
    splits = [
        grid.split_of(
            rng.standard_normal((1, 1, n, d)).astype(np.float16),
            rng.integers(0, classes, n).astype(np.int32),
        )
        for n in (train, validation)
    ]
    protocol = grid.Protocol("ce", classes, epochs=2)
    rates, seeds = jnp.geomspace(5e-5, 1e-2, 6), jnp.arange(3)
    seconds = median_seconds(
        lambda: grid.fit(protocol, metrics.monitor_accuracy, *splits, rates, seeds).score,
        here.budget,
    )
    h, rows = protocol.hidden, -(-train // protocol.batch) * protocol.batch
    work = rows * 2 * (2 * d * h + 3 * h * classes) + validation * 2 * h * (d + classes)
    figure = protocol.epochs * len(rates) * len(seeds) * work / seconds / 1e9
    return Row("probes", seconds, figure, here.operations / 1e9, "GFLOP/s", here.rate)


def kmeans_row(config: ml_collections.ConfigDict, here: Machine) -> Row:
    """The nearest of the codes for each frame, what every pass of a fit does."""
    width = 39 if config.method == "data2vec" else compilation.frozen(config)["codebook"].shape[1]
    clusters = 500 if config.method == "data2vec" else config.teacher.clusters
    frames = jax.random.normal(jax.random.key(0), (FRAMES, width))
    codes = jax.random.normal(jax.random.key(1), (clusters, width))
    nearest = jax.jit(kmeans.assign)
    seconds = median_seconds(lambda: nearest(codes, frames), here.budget)
    figure = 2 * frames.shape[0] * width * clusters / seconds / 1e9
    return Row("kmeans", seconds, figure, here.operations / 1e9, "GFLOP/s", here.rate)


def table(rows: list[Row]) -> str:
    """Markdown, a row a line."""
    lines = ["| what | ms | figure | limit | ratio | limited by |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row.name} | {1000 * row.seconds:,.1f} | {row.figure:,.1f} {row.unit} | "
            f"{row.limit:,.1f} {row.unit} | {row.figure / row.limit:.0%} | {row.limited_by} |"
        )
    return "\n".join(lines)


def described(config: ml_collections.ConfigDict, here: Machine) -> dict[str, object]:
    """The machine and what was run on it."""
    device = here.mesh.devices.flat[0]
    return {
        "config": f"{config.name}:{config.variant}",
        "batch": config.batch_size,
        "frames": config.data.crop_frames,
        "precision": config.precision,
        "device": f"{here.mesh.size} x {device.device_kind}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "flax": flax.__version__,
    }


def report(config: ml_collections.ConfigDict, here: Machine, rows: list[Row], output: Path) -> None:
    """Print the table and what it was measured on; write both to <output>.json."""
    about = described(config, here)
    found = next((row for row in rows if row.name == "step"), None)
    if found is not None:
        length = audio.crop_samples(config.data.crop_frames) / config.data.sample_rate
        speed = config.batch_size * length / found.seconds
        about["audio-seconds a second"] = round(speed, 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {**about, "rows": [row._asdict() for row in rows]}
    output.with_name(f"{output.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(table(rows))
    print(", ".join(f"{name} {value}" for name, value in about.items()))


def measured(config: ml_collections.ConfigDict, here: Machine, only: list[str]) -> Iterator[Row]:
    """The rows that are asked for, as they are measured."""
    if set(only) & set(STEP):
        yield from step_rows(config, here, only)
    around = (input_row, extraction_row, probes_row, kmeans_row)
    for name, row in zip(AROUND, around, strict=True):
        if name in only:
            result = row(config, here)
            if result is None:
                print(f"{name}: not run, {config.data.name} is not built", file=sys.stderr)
            else:
                yield result
