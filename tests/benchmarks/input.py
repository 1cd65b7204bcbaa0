"""The input pipeline alone, beside a bare read of the same TFRecord files.

    python -m tests.benchmarks.input [--threads=1,2,4] [--frames=256] [--rounds=3] [--against=DIR]

It fabricates 600 records of 30 s at 16 kHz (576 MB) in a temporary folder and reads them warm. For
each number of threads a process of its own, bound to as many cores, takes random crops with
`data_pipelines.batches` and whole records with the fastest TFRecordDataset found (parallel
interleave over the shards, any order, its best buffer size), in turn, so that a busy machine slows
both. With --against, the pipeline of another checkout of this project is measured in turn with this
one's, in as many pairs as there are rounds.
"""

import argparse
import collections
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RECORDS, SHARDS, SECONDS, RATE, CLIPS = 600, 8, 30, 16_000, 32
ROOT = Path(__file__).parents[2]
LIMIT = 0.6  # of the bare reading's records per second
BUFFERS = (1 << 18, 1 << 20, 1 << 22)  # bytes; the best differs between machines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", default="1,2,4", help="numbers of threads, and cores")
    parser.add_argument("--frames", type=int, default=256, help="of the encoder, in a crop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, which has this command too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the data's folder
    arguments = parser.parse_args()
    if arguments.worker:
        found = measure(
            Path(arguments.worker), int(arguments.threads), arguments.frames, arguments.rounds
        )
        print(json.dumps(found))
        return
    frames, rounds = arguments.frames, arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        fabricate(Path(folder) / "here")
        if arguments.against:
            code = f"from tests.benchmarks import input; input.fabricate(input.Path({folder!r}))"
            subprocess.run([sys.executable, "-c", code], cwd=arguments.against, check=True)
        for threads in map(int, arguments.threads.split(",")):
            if arguments.against:
                compare(arguments.against, Path(folder), threads, frames, rounds)
            else:
                report(threads, frames, work(ROOT, Path(folder) / "here", threads, frames, rounds))
    print(machine())


def work(checkout: Path, folder: Path, threads: int, frames: int, rounds: int) -> dict[str, float]:
    """Measure in a process of its own, with the code of a checkout."""
    command = [sys.executable, "-m", "tests.benchmarks.input", f"--worker={folder}"]
    command += [f"--threads={threads}", f"--frames={frames}", f"--rounds={rounds}"]
    worker = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=checkout)
    return json.loads(worker.stdout)


def compare(against: Path, folder: Path, threads: int, frames: int, pairs: int) -> None:
    """Print how fast this pipeline is beside another one, measured in turn with it."""
    speeds, times = [], []
    for _ in range(pairs):
        ours = work(ROOT, folder / "here", threads, frames, 1)
        theirs = work(against, folder, threads, frames, 1)
        speeds.append(ours["ours"] / theirs["ours"])
        times.append(ours["cores"] / ours["ours"] / (theirs["cores"] / theirs["ours"]))
    for what, found in (("records a second", speeds), ("processor time a record", times)):
        spread = f"{min(found):.2f} to {max(found):.2f} in {pairs} pairs"
        print(f"{threads} threads: {statistics.median(found):.2f} of its {what} ({spread})")


def fabricate(folder: Path) -> None:
    """Write the data set as the builders would, with its index."""
    from data_pipelines import batches
    from tests.support import record_files

    rng = np.random.default_rng(0)
    shards = [
        (record_files.noise(rng, SECONDS * RATE) for _ in range(RECORDS // SHARDS))
        for _ in range(SHARDS)
    ]
    directory = record_files.write(folder / "clips" / "16khz" / "1.0.0", {"train": shards})
    begin = time.perf_counter()
    batches.write_index(directory)
    size = next(directory.glob("*.npz")).stat().st_size
    rate = RECORDS / (time.perf_counter() - begin)
    print(f"index            {rate:8.0f} records/s, {size / RECORDS:.0f} bytes a record")


def measure(folder: Path, threads: int, frames: int, rounds: int) -> dict[str, float]:
    """Medians over rounds of the records per second of each way to read."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    from data_pipelines import bare, batches

    dataset = batches.open_dataset("clips", folder, "train")
    samples = 320 * frames + 80
    memory = [peak_memory()]
    found = collections.defaultdict(list)
    for _ in range(rounds):
        stream = batches.iterate(
            dataset, seed=1, batch_size=CLIPS, samples=samples, threads=threads
        )
        rate, cores = speed(stream, CLIPS)
        stream.close()
        memory.append(peak_memory())
        found["ours"].append(rate)
        found["cores"].append(cores)
        shards = dataset.layout.shards
        reads = [speed(iter(bare.records(shards, threads, buffer)), 1)[0] for buffer in BUFFERS]
        found["bare"].append(max(reads))
        found["ratio"].append(rate / max(reads))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "opened": memory[0], "peak": memory[1]}


def peak_memory() -> float:
    """MiB that this process has held at most, since its program was loaded."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def speed(stream: Iterator, clips: int) -> tuple[float, float]:
    """Records per second and cores busy, over two epochs' worth."""
    for _ in range(4):
        next(stream)
    begin, busy = time.perf_counter(), time.process_time()
    for _ in range(2 * RECORDS // clips):
        next(stream)
    seconds = time.perf_counter() - begin
    return 2 * RECORDS // clips * clips / seconds, (time.process_time() - busy) / seconds


def report(threads: int, frames: int, found: dict[str, float]) -> None:
    seconds = (320 * frames + 80) / RATE
    print(
        f"{threads} threads: {found['ours']:8.0f} records/s = "
        f"{found['ours'] * seconds:8.0f} audio-seconds/s ({found['cores']:.1f} cores busy)\n"
        f"  bare reading    {found['bare']:8.0f} records/s; ours is {found['ratio']:.2f} of it, "
        f"limit {LIMIT}\n"
        f"  peak memory     {found['peak']:8.0f} MiB, {found['opened']:.0f} of it before reading"
    )


def machine() -> str:
    import tensorflow as tf

    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if "model name" in line]
        model = lines[0].partition(":")[2].strip() if lines else model
    return (
        f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, NumPy {np.__version__}"
    )


if __name__ == "__main__":
    main()
