"""Extraction of features against the forward pass of the same encoder on the same windows.

    python -m tests.benchmarks.extract [--batches=8] [--windows=4] [--encoder=hubert]

A HuBERT-base or data2vec-base encoder of random values, windows of 5 s. Extraction also reads the
records, scales them, pools every layer over time and writes the rows. The same is done with as many
remainders, of all lengths below 5 s, each heard at its own length: padded to quarters of a window,
which takes 5/8 of the operations on average. All take turns.
"""

import argparse
import functools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import music2vec, musichubert
from musicssl.features import extract, windows
from musicssl.model.encoder import make_encoder
from musicssl.runtime import sharding

LIMIT, SECONDS, ROUNDS = 0.9, 5, 3
FAMILIES = {"hubert": musichubert, "data2vec": music2vec}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of all threads on the processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--windows", type=int, default=4, help="in a batch")
    parser.add_argument("--encoder", choices=FAMILIES, default="hubert")
    options = parser.parse_args()
    config = FAMILIES[options.encoder].get_config()
    encoder = make_encoder(config).clone(dtype=jnp.float32)
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    apply = functools.partial(extract.hidden_states, encoder)
    rate, layers = config.data.sample_rate, encoder.layers + 1
    source = extract.FeatureSource("base", "base", layers, encoder.width, rate, True, params, apply)

    # As many whole windows as remainders; of these, equally many are padded to each length.
    samples = SECONDS * rate
    count = options.batches * options.windows
    sounds = np.random.default_rng(0).integers(-9000, 9000, (count, samples), np.int16)
    each, start = np.arange(count), np.zeros(count, int)
    whole = windows.Windows(each, start, np.full(count, samples), samples)
    remainders = whole._replace(samples=((each + 0.5) / count * samples).astype(int))
    mesh = sharding.make_mesh()
    forward = jax.jit(lambda params, x: apply(params, x)[-1])
    batch = jnp.asarray(sounds[: options.windows] / 32768, jnp.float32)

    def plain() -> None:
        for _ in range(options.batches):
            forward(params, batch).block_until_ready()

    def extraction(cut: windows.Windows) -> None:
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder), "benchmark", mesh, options.windows
            extract.extract(source, cut, sounds.__getitem__, (windows.WHOLE,), *where)

    works = plain, lambda: extraction(whole), lambda: extraction(remainders)
    for work in works:
        work()  # compile
    rounds = [[timed(work) for work in works] for _ in range(ROUNDS)]
    (wall, cpu), (our_wall, our_cpu), (short_wall, short_cpu) = np.min(rounds, axis=0)
    seconds = count * SECONDS
    print(f"forward {seconds / wall:.1f} audio-s/s, extraction {seconds / our_wall:.1f}")
    print(f"ratio {wall / our_wall:.2f} by the clock, {cpu / our_cpu:.2f} on the processors; "
          f"wanted {LIMIT:g} or more")  # fmt: skip
    print(f"a remainder takes {short_wall / our_wall:.2f} of a whole window by the clock, "
          f"{short_cpu / our_cpu:.2f} on the processors")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {platform.processor() or platform.machine()}; jax {jax.__version__}; "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
