"""One fp32 training step of the HuBERT-base-sized encoder on CPU, beside transformers' HubertModel.

    python -m tests.benchmarks.step [--rounds=5] [--dropout=0.1]

Forward, masked loss and backward of a batch of 4 clips of 5 s. Each framework has a process of its
own, as their threads and allocators disturb each other in one; they step in turn, so that a
drifting machine slows both. The limit is what the machine's own matrix product reaches, in XLA and
in PyTorch. Processor time (of all threads) stands beside the clock's: others on the machine disturb
it less.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from configs import music2vec
from musicssl import audio
from musicssl.model import encoder
from musicssl.training import flops

CLIPS, SAMPLES, MASKED = 4, 80_000, 0.5


def configuration(dropout: float):
    config = music2vec.get_config().encoder.unlock()
    config.update(
        stem_norm="group",
        pos_conv_depth=0,
        pos_conv_kernel=128,
        dropout=dropout,
        attention_dropout=dropout,
        layerdrop=0.0,
    )
    return config


def ours(config, sound: np.ndarray, mask: np.ndarray, target: np.ndarray):
    """A function that runs one step and waits for it."""
    model = encoder.Encoder(**config)
    params = jax.jit(lambda k: model.init(k, jnp.zeros((1, 400))))(jax.random.key(0))

    def loss(params, key):
        z = model.apply(params, model.apply(params, sound, method="stem"), method="project")
        rngs = {"dropout": key}
        z = model.apply(params, z, mask, rngs=rngs, method="mask")
        y = model.apply(params, z, train=True, rngs=rngs, method="contextualize").hidden[-1]
        return jnp.sum(mask[..., None] * jnp.square(y - target)) / mask.sum()

    step = jax.jit(jax.grad(loss))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return lambda: jax.block_until_ready(step(params, next(keys)))


def theirs(config, sound: np.ndarray, mask: np.ndarray, target: np.ndarray):
    """The same with transformers' HubertModel and PyTorch's defaults."""
    model = transformers.HubertModel(
        transformers.HubertConfig(
            hidden_dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
        )
    ).train()
    inputs, masked, wanted = (torch.from_numpy(x) for x in (sound, mask, target))

    def step():
        model.zero_grad()
        y = model(inputs, mask_time_indices=masked).last_hidden_state
        (((y - wanted) ** 2) * masked[..., None]).sum().div(masked.sum()).backward()

    return step


def matrix_rates() -> dict[str, float]:
    """Operations a second of processor time of a large fp32 matrix product, the best of ten."""
    a, b = jnp.ones((2048, 2048)), torch.ones(2048, 2048)
    product = jax.jit(lambda a: a @ a)
    products = {"XLA": lambda: product(a).block_until_ready(), "PyTorch": lambda: b @ b}
    found = {}
    for name, call in products.items():
        call()
        found[name] = 2 * 2048**3 / min(spent(call)[1] for _ in range(10))
    return found


def spent(call) -> tuple[float, float]:
    """Seconds of the clock and of the processors."""
    begin, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - busy


def work(name: str, dropout: float) -> None:
    """A worker: one step for each line on its standard input, its seconds for an answer."""
    rng = np.random.default_rng(0)
    frames = audio.frame_count(SAMPLES)
    sound = rng.standard_normal((CLIPS, SAMPLES), dtype=np.float32)
    mask = rng.random((CLIPS, frames)) < MASKED
    target = rng.standard_normal((CLIPS, frames, 768), dtype=np.float32)
    step = {"musicssl": ours, "transformers": theirs}[name](
        configuration(dropout), sound, mask, target
    )
    for _ in sys.stdin:
        print(*spent(step), flush=True)


class Worker:
    def __init__(self, name: str, dropout: float):
        command = [sys.executable, "-m", "tests.benchmarks.step"]
        self.process = subprocess.Popen(
            [*command, f"--work={name}", f"--dropout={dropout}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def step(self) -> tuple[float, float]:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        wall, busy = self.process.stdout.readline().split()
        return float(wall), float(busy)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.dropout)
    workers = {name: Worker(name, options.dropout) for name in ("musicssl", "transformers")}
    for name, worker in workers.items():
        print(f"{name}: first step {worker.step()[0]:.1f} s")
    times = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            times[name].append(worker.step())
    for worker in workers.values():
        worker.process.stdin.close()
    frames = audio.frame_count(SAMPLES)
    operations = 3 * CLIPS * sum(flops.forward(configuration(0.0), frames).values())
    rates = matrix_rates()
    print(
        f"{len(os.sched_getaffinity(0))} cores, {platform.processor() or platform.machine()}, "
        f"jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, dropout {options.dropout}"
    )
    print(
        "matrix product: "
        + ", ".join(f"{n} {r / 1e9:.0f} GFLOP a processor-second" for n, r in rates.items())
    )
    for name, each in times.items():
        wall, busy = (statistics.median(x) for x in zip(*each, strict=True))
        print(
            f"{name:13} {wall:6.2f} s a step, {busy:6.2f} processor-seconds: "
            f"{operations / busy / 1e9:.0f} GFLOP a processor-second, "
            f"{operations / busy / max(rates.values()):.0%} of the matrix product"
        )
    for i, clock in enumerate(("clock", "processor time")):
        pairs = zip(times["musicssl"], times["transformers"], strict=True)
        ratios = [theirs[i] / ours[i] for ours, theirs in pairs]
        print(
            f"transformers / musicssl, {clock}: median {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
