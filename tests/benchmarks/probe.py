"""The grid of a task (layers x 6 learning rates x 3 seeds) against a plain PyTorch loop.

    python -m tests.benchmarks.probe [--layers=0,6,12,sum | --layers=all] [--epochs=100]

Features of GTZAN's shape (443, 197 and 290 clips, 13 layers of 768) with classes hidden in noise,
more of them in the middle layers. Both follow MARBLE's constrained protocol and choose the layer
and rate on validation. The loop trains one model after another, as such sweeps are run, with one
and with all threads for a sample of models, and takes the faster. On a shared machine judge by the
seconds on the processors, on one core: taskset -c 0 python -m tests.benchmarks.probe

With --rounds=12 an epoch of one model is first timed on both sides in turns, and the least of each
is taken, so that what else the machine does matters least. Beside it stand its products at the rate
of a large one, and Adam's passes over memory at the rate of a copy. With --layers= that is all.
"""

import argparse
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

from musicssl.features import rows as feature_rows
from musicssl.probing import grid as probe_grid
from musicssl.probing import metrics, search

SIZES, LAYERS, WIDTH, CLASSES = (443, 197, 290), 13, 768, 10
PASSES = 10  # of Adam over each array: two moments of 2 reads and a write, parameters of 3 and one
RATES, SEEDS = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2), (1, 2, 3)
BATCH = 64
LIMIT = 2.3  # how many times as fast as the PyTorch loop it is to be


def features(number: int) -> tuple[np.ndarray, np.ndarray]:
    """[layers, n, d] float16 and classes [n]."""
    random = np.random.default_rng(number)
    y = random.integers(0, CLASSES, SIZES[number]).astype(np.int32)
    centres = np.random.default_rng(9).standard_normal((LAYERS, CLASSES, WIDTH)) * 0.1
    clear = 1 - np.abs(np.arange(LAYERS) - 7) / 10
    x = random.standard_normal((LAYERS, len(y), WIDTH)) + (clear[:, None, None] * centres)[:, y]
    return x.astype(np.float16), y


class Probe(torch.nn.Module):
    """MARBLE's head on one layer or on the weighted sum of several."""

    def __init__(self, mixed: int):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.randn(1, mixed, 1)) if mixed > 1 else None
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 512),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(512, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [b, m, d]
        x = x[:, 0] if self.weights is None else (torch.softmax(self.weights, 1) * x).sum(1)
        return self.layers(x)


def torch_fit(data, protocol, rate: float, seed: int) -> tuple[float, float, int]:
    """(best validation accuracy, its test accuracy, epochs)."""
    torch.manual_seed(seed)
    (x, y), validation, test = data
    net = Probe(x.shape[1])
    optimizer = torch.optim.Adam(net.parameters(), rate)
    halve = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=protocol.plateau
    )
    loss = torch.nn.CrossEntropyLoss()

    @torch.no_grad()
    def score(split) -> float:
        net.eval()
        value = (net(split[0]).argmax(1) == split[1]).float().mean().item()
        net.train()
        return value

    best, kept, waited, epochs = -1.0, -1.0, 0, 0
    for _ in range(protocol.epochs):
        for rows in torch.randperm(len(y)).split(protocol.batch):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
        now = score(validation)
        halve.step(now)
        waited, epochs = waited + 1, epochs + 1
        if now > best:
            best, kept, waited = now, score(test), 0
        if waited >= protocol.patience:
            break
    return best, kept, epochs


def plain_loop(splits, sources: list[str], protocol) -> tuple[float, list[float], str, int]:
    """Seconds, the chosen model's test accuracies by seed, its name, epochs of all models."""
    held = [
        (torch.from_numpy(np.moveaxis(x, 0, 1).astype("f4").copy()), torch.from_numpy(y).long())
        for x, y in splits
    ]
    begin, table = time.perf_counter(), {}
    for source in sources:
        chosen = slice(1, None) if source == "sum" else slice(int(source), int(source) + 1)
        data = [(x[:, chosen].contiguous(), y) for x, y in held]
        for rate in RATES:
            table[source, rate] = [torch_fit(data, protocol, rate, seed) for seed in SEEDS]
    seconds = time.perf_counter() - begin
    best = max(table, key=lambda key: np.mean([v for v, _, _ in table[key]]))
    epochs = sum(epochs for models in table.values() for _, _, epochs in models)
    return seconds, [t for _, t, _ in table[best]], f"{best[0]} at {best[1]:g}", epochs


def grid(splits, sources: list[str], protocol) -> tuple[float, list[float], str, int]:
    """The same of musicssl.probing.search, and the epochs that all models took."""

    def load(source: str) -> tuple[probe_grid.Split, ...]:
        rows = (np.arange(len(y)) for _, y in splits)
        pairs = zip(splits, rows, strict=True)
        return tuple(
            probe_grid.split_of(feature_rows.stored(x, source, row).whole(), y)
            for (x, y), row in pairs
        )

    begin = time.perf_counter()
    found = search.search(
        protocol, metrics.monitor_accuracy, load, sources, RATES, SEEDS, "benchmark"
    )
    seconds = time.perf_counter() - begin
    best = search.best(found)
    tests = [metrics.accuracy(splits[2][1], outputs) for outputs in best.outputs]
    name = f"{best.source} at {RATES[best.rate]:g}"
    return seconds, tests, name, sum(outcome.epochs for outcome in found)


def matrix_rate() -> float:
    """Operations a processor second of a large fp32 matrix product in XLA, the best of five."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.process_time()
        product(a, a).block_until_ready()
        times.append(time.process_time() - begin)
    return 2 * 2048**3 / min(times)


def copy_rate() -> float:
    """Bytes a processor second that a copy of an array as large as the weights reads and writes."""
    copy = jax.jit(lambda a: jax.lax.fori_loop(0, 100, lambda _, x: x + 1, a))
    a = jnp.ones((WIDTH, 512))
    copy(a).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.process_time()
        copy(a).block_until_ready()
        times.append(time.process_time() - begin)
    return 100 * 2 * a.nbytes / min(times)


def in_turns(splits, rounds: int, epochs: int = 10) -> None:
    """Print the least processor time of an epoch of one model, of both sides and of its limits."""
    protocol = probe_grid.Protocol("ce", CLASSES, plateau=6, patience=10**6, epochs=epochs)
    train, validation = (
        probe_grid.split_of(np.ascontiguousarray(x[6])[None, None], y) for x, y in splits[:2]
    )
    plain = [(torch.from_numpy(x[6][:, None].astype("f4")), torch.from_numpy(y).long())
             for x, y in splits]  # fmt: skip
    rate, seed = np.array([1e-3], np.float32), np.array([1])

    def ours() -> None:
        monitor = metrics.monitor_accuracy
        jax.block_until_ready(probe_grid.fit(protocol, monitor, train, validation, rate, seed))

    torch.set_num_threads(1)
    sides = {"grid": ours, "loop": lambda: torch_fit(plain, protocol, 1e-3, 1)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    ours()
    for _ in range(rounds):
        for name, side in sides.items():
            begin = time.process_time()
            side()
            times[name].append((time.process_time() - begin) / epochs * 1e3)
    grid, loop = (min(values) for values in times.values())
    products = epoch_work() / matrix_rate() * 1e3
    steps = -(-SIZES[0] // protocol.batch)
    adam = steps * PASSES * 4 * WIDTH * 512 / copy_rate() * 1e3
    print(f"an epoch of one model: grid {grid:.1f} ms, PyTorch loop {loop:.1f} ms, ratio "
          f"{loop / grid:.2f}; its products {products:.1f} ms, Adam's passes {adam:.1f} ms, ratio "
          f"of these alone {loop / (products + adam):.2f}")  # fmt: skip


def epoch_work() -> int:
    """Operations of the products of an epoch of one model, validation included."""
    rows = -(-SIZES[0] // BATCH) * BATCH
    train = rows * 2 * (2 * WIDTH * 512 + 3 * 512 * CLASSES)
    return train + SIZES[1] * 2 * 512 * (WIDTH + CLASSES)


def fastest_threads(splits, protocol) -> int:
    """One thread or all of them, whichever trains a model faster here."""
    x, y = splits[0]
    pair = torch.from_numpy(x[0][:, None].astype("f4")), torch.from_numpy(y).long()
    times = {}
    short = probe_grid.Protocol("ce", CLASSES, epochs=3, plateau=protocol.plateau)
    for threads in {1, len(os.sched_getaffinity(0))}:
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        torch_fit((pair, pair, pair), short, 1e-3, 0)
        times[threads] = time.perf_counter() - begin
    return min(times, key=times.get)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="0,6,12,sum")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=0, help="of an epoch of one model, in turns")
    arguments = parser.parse_args()
    every = search.sources_of(LAYERS, "mlp")
    sources = every if arguments.layers == "all" else arguments.layers.split(",")
    protocol = probe_grid.Protocol("ce", CLASSES, plateau=6, patience=20, epochs=arguments.epochs)
    splits = [features(i) for i in range(3)]
    if arguments.rounds:
        in_turns(splits, arguments.rounds)
    if not arguments.layers:
        return
    cold, *_ = grid(splits, sources, protocol)
    before = matrix_rate()
    cpu_before = time.process_time()
    ours, mine, chosen, epochs = grid(splits, sources, protocol)
    cpu_ours = time.process_time() - cpu_before
    rate = max(before, matrix_rate())
    threads = fastest_threads(splits, protocol)
    torch.set_num_threads(threads)
    cpu_before = time.process_time()
    theirs, other, their_choice, their_epochs = plain_loop(splits, sources, protocol)
    cpu_theirs = time.process_time() - cpu_before
    work = epochs * epoch_work()
    models = len(sources) * len(RATES) * len(SEEDS)
    print(f"{models} models ({len(sources)} sources), {epochs} epochs, "
          f"{their_epochs} of the loop's")  # fmt: skip
    print(f"grid {ours:.1f} s (first run, with compilation, {cold:.1f} s)")
    print(f"PyTorch loop {theirs:.1f} s with {threads} threads")
    print(f"ratio {theirs / ours:.2f}, wanted {LIMIT:g} or more")
    print(f"on the processors {cpu_ours:.1f} s and {cpu_theirs:.1f} s, ratio "
          f"{cpu_theirs / cpu_ours:.2f}, for as many epochs "
          f"{cpu_theirs / their_epochs * epochs / cpu_ours:.2f}")  # fmt: skip
    share = work / cpu_ours / rate
    most = cpu_theirs / their_epochs * epochs * rate / work  # epoch for epoch
    print(f"{work / cpu_ours / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s and core of a matrix product "
          f"({share:.0%}); at all of it the ratio would be {most:.2f}")  # fmt: skip
    print(f"test accuracy {np.mean(mine):.3f} ± {np.std(mine):.3f} (layer {chosen}), "
          f"PyTorch {np.mean(other):.3f} ± {np.std(other):.3f} (layer {their_choice})")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {cpu()}; jax {jax.__version__}, torch {torch.__version__}")


def cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(": ")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
