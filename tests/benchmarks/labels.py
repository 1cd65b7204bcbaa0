"""What labels cost in the step of a base-size musicHuBERT: MFCC, layer 6, several targets.

    python -m tests.benchmarks.labels [--rounds=5] [--frames=249] [--clips=2]

The step with labels computed in it and the same step with labels given, in turn, so that a drifting
machine slows both; and the labels alone, as MFCC take less than a busy machine varies by.
Operations are the compiler's count of each program; for the layer those of musicssl.flops stand
beside them, which counts products of matrices from their shapes. Time is the processor's, of all
threads. Float32 and no dropout: random numbers would make the share look smaller on a CPU than it
is on an accelerator.

Labels of iteration 2 stay in the step, and there is no other way. Made once over the data set they
would save their share of a step, less than a fifth of the time (the frozen layers above the one
that is clustered are not computed, as the count shows). They would cost a second command and a file
for each data set, codebook and encoder, which has to be told to be stale; and they would lie on
one grid of frames while crops begin at any sample, up to half a frame off. Where that fifth matters
more than the choice of the layer, a lower --config.teacher.layer is cheaper still.
"""

import argparse
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from configs import musichubert
from musicssl import audio
from musicssl.model.encoder import make_encoder
from musicssl.objectives import hubert, targets
from musicssl.planning import compilation
from musicssl.training import flops, step

LIMITS = {"mfcc": 0.03, "layer": 0.30, "": 0.03}  # by teacher.feature
KINDS = {  # what labels are of: a variant
    "39 MFCC, 500 clusters": "k500",
    "60 MFCC, 500 clusters": "k500_mfcc60",
    "layer 6, 2000 clusters": "k2000_iter2",
    "mel and constant-Q, random, and chroma and onsets": "",
}
SEVERAL = {
    "teacher.feature": "",
    "teacher.targets": "mel:random:2x1024,cqt:random:2x1024,chroma:kmeans:200,onset:kmeans:100",
}
REPEATS = 5  # of the labels alone in a round, which can be short
DROPOUTS = ("dropout", "attention_dropout", "input_dropout", "layerdrop")


def configuration(variant: str, clips: int, frames: int) -> ml_collections.ConfigDict:
    config = musichubert.get_config(variant or "k500")
    config.update_from_flattened_dict(
        ({} if variant else SEVERAL)
        | {"batch_size": clips, "data.crop_frames": frames, "precision": "float32"}
        | {"mask.equal_counts": clips}
        | {f"encoder.{name}": 0.0 for name in DROPOUTS}
    )
    return config


def frozen_part(config: ml_collections.ConfigDict, params: dict) -> dict:
    """Random codebooks, and for a layer an encoder of the student's size and values."""
    rng = np.random.default_rng(0)
    frozen = compilation.frozen(config)
    frozen["quantizers"] = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, dtype=np.float32), frozen["quantizers"]
    )
    if "encoder" in frozen:
        encoder = make_encoder(config)
        frozen["encoder"] = hubert.FrozenEncoder(params, encoder, config.teacher.layer, False)
    return frozen


@contextmanager
def labels_given(codes: jax.Array) -> Iterator[None]:
    """While a program is traced: labels are there, and nothing computes features for them."""
    labels = hubert.labels
    hubert.labels = lambda config, *_: {x.name: codes % x.clusters for x in targets.of(config)}
    try:
        yield
    finally:
        hubert.labels = labels


def programs(
    config: ml_collections.ConfigDict, state: step.TrainState, frozen: dict, clips: jax.Array
) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The step with labels in it and without, compiled."""

    def update(state: step.TrainState, frozen: dict, clips: jax.Array) -> tuple:
        return step.update(config, state, frozen, clips)

    def given(state: step.TrainState, frozen: dict, clips: jax.Array) -> tuple:
        frames = config.data.crop_frames
        with labels_given(jnp.arange(config.batch_size * frames).reshape(-1, frames)):
            return step.update(config, state, frozen, clips)

    compiled = [
        jax.jit(function, donate_argnums=0).lower(state, frozen, clips).compile()
        for function in (update, given)
    ]
    return compiled[0], compiled[1]


def operations(program: jax.stages.Compiled) -> float:
    return program.cost_analysis()["flops"]


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(
    pair: tuple, state: step.TrainState, frozen: dict, clips: jax.Array, rounds: int
) -> tuple[list[float], list[float]]:
    """Processor seconds of each run of the two programs, in turn; the state is consumed."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * (rounds + 1)):
        begin = processor_seconds()
        state, _ = jax.block_until_ready(pair[turn % 2](state, frozen, clips))
        times[turn % 2].append(processor_seconds() - begin)
    return times[0][1:], times[1][1:]


def labels_alone(
    config: ml_collections.ConfigDict, frozen: dict, clips: jax.Array, rounds: int
) -> float:
    """Processor seconds of the labels as a program of their own: the least of the rounds."""

    @jax.jit
    def labels(frozen: dict, clips: jax.Array) -> dict[str, jax.Array]:
        return hubert.labels(config, frozen, audio.to_float(clips))

    times = []
    for _ in range(rounds + 1):
        begin = processor_seconds()
        for _ in range(REPEATS):
            jax.block_until_ready(labels(frozen, clips))
        times.append((processor_seconds() - begin) / REPEATS)
    return min(times[1:])


def shapes_share(config: ml_collections.ConfigDict, frames: int) -> float:
    """The share of a layer's labels in a step, from the shapes of matrices."""
    whole = flops.forward(config.encoder, frames)
    lower = config.teacher.layer / config.encoder.layers
    labels = 2 * config.encoder.width * config.teacher.clusters * frames
    labels += sum(whole.values()) - (1 - lower) * (whole["attention"] + whole["ffn"])
    return labels / (3 * sum(whole.values()))


def line(what: str, share: float, limit: float) -> str:
    return f"  {what:44} {share:7.2%} of a step (limit {limit:.0%}, {share / limit:.2f} of it)"


def measure(name: str, config: ml_collections.ConfigDict, rounds: int) -> None:
    state = jax.jit(lambda: step.init_state(config))()
    params = jax.tree.map(np.asarray, state.params["encoder"])
    frozen = jax.device_put(frozen_part(config, params))
    shape = config.batch_size, audio.crop_samples(config.data.crop_frames)
    clips = jnp.asarray(np.random.default_rng(0).integers(-9_000, 9_000, shape, np.int16))
    pair = programs(config, state, frozen, clips)
    limit = LIMITS[config.teacher.feature]
    inside, without = map(operations, pair)
    tqdm.write(f"{name}: {without / 1e9:.1f} GFLOP a step without labels")
    tqdm.write(line("operations, by the compiler", inside / without - 1, limit))
    if config.teacher.feature == "layer":
        for frames in (config.data.crop_frames, 1496):
            share = shapes_share(config, frames)
            tqdm.write(line(f"operations, by shapes, {frames} frames", share, limit))
        upper = flops.forward(config.encoder, config.data.crop_frames)
        upper = (upper["attention"] + upper["ffn"]) * config.batch_size
        upper *= 1 - config.teacher.layer / config.encoder.layers
        tqdm.write(
            f"  the labels take {(inside - without) / 1e9:.1f} GFLOP; the layers above layer "
            f"{config.teacher.layer} would add {upper / 1e9:.1f}"
        )
    inside, without = timed(pair, state, frozen, clips, rounds)
    alone = labels_alone(config, frozen, clips, rounds)
    shares = [a / b - 1 for a, b in zip(inside, without, strict=True)]
    # Other work on the machine only ever adds: the least of the rounds is nearest to the truth.
    tqdm.write(line("processor time, least of the rounds", min(inside) / min(without) - 1, limit))
    alone /= min(without)
    tqdm.write(line("processor time of the labels alone", alone, limit))
    rounds_apart = " ".join(f"{x:+.1%}" for x in shares)
    tqdm.write(f"  {min(without):.2f} s without labels, {min(inside):.2f} s with: {rounds_apart}")


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    for row in info.read_text().splitlines() if info.exists() else ():
        if row.startswith("model name"):
            return row.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of labels in a training step.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=249)
    parser.add_argument("--clips", type=int, default=2)
    options = parser.parse_args()
    print(
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {processor_name()}, "
        f"load {os.getloadavg()[0]:.1f}, jax {jax.__version__}; {options.clips} clips of "
        f"{options.frames} frames, float32"
    )
    for name, variant in tqdm(KINDS.items(), "kinds of labels"):
        measure(name, configuration(variant, options.clips, options.frames), options.rounds)


if __name__ == "__main__":
    main()
