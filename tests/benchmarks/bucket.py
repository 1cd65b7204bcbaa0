"""The input of one host whose data lie in a bucket, beside the time that a step leaves it.

    python -m tests.benchmarks.bucket [--latency=0.02,0.05,0.1] [--rate=100e6] [--seconds=10]

It fabricates 280 records of 30 s at 16 kHz in four shards of 67 MB, puts them into a bucket on
loopback a hundred times (28,000 records, 233 hours, of which the bucket keeps one copy in memory),
and takes one host's rows of batches as fast as they come, of music2vec's crop5s and vanilla
configurations. Each request is answered after the latency, each stream has the rate.

- shuffled, blocks: as one of 4 hosts, in each order of data.order. Then as one of 64, for the
  requests that the bucket would get from all of them: 64 times those of this host in an update,
  over the seconds that a plan gives an update of crop5s on v5e:16x16.
- mirror: data.mirror copies the four shards to a disk (--copy=DIR) and reads them there, in turns
  with the files that they were made of.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support.bucket import ROOT, Bucket

SHARDS, RECORDS, TIMES, HOSTS = 4, 70, 100, 4
CASES = {"crop5s": (752, 320 * 256 + 80, 64), "vanilla": (112, 320 * 1496 + 80, 50)}
OVER_USED = 1.5  # the limit of bytes read for a byte used
MANY, UPDATE, MOST = 64, 7e-3, 2000  # hosts; seconds of their step of crop5s; reads a second
ROUNDS = 4  # of mirror, which the files on the disk take turns with


class Taken(NamedTuple):
    """What it took to take batches.

    seconds, busy: of the clock, and of all cores. reads, read: requests and bytes of the bucket.
    """

    steps: int
    seconds: float
    busy: float
    reads: int
    read: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--latency", default="0.05", help="seconds, several with commas")
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second of a stream")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--orders", default="shuffled,blocks,mirror")
    parser.add_argument(
        "--copy", help="a folder for the copy of mirror; by default a temporary one"
    )
    given = parser.parse_args()
    with Bucket() as bucket, tempfile.TemporaryDirectory() as folder:
        os.environ.update(bucket.environment)
        fabricate(bucket, Path(folder))
        for latency in map(float, given.latency.split(",")):
            with bucket.suffering(latency=latency, rate=given.rate):
                for order in given.orders.split(","):
                    told = f"{order}, {latency * 1e3:.0f} ms a request"
                    if order == "mirror":
                        copy = Path(given.copy or folder) / "copy"
                        mirror(bucket, told, Path(folder), copy, given.seconds)
                        continue
                    for name in CASES:
                        measure(bucket, name, order, told, given.seconds)
                    requests(bucket, order, told, given.seconds)


def fabricate(bucket: Bucket, folder: Path) -> None:
    """Put the data set there, with its index, every shard under a hundred names.

    It is called clips; few holds each shard once, and so does the folder.
    """
    from data_pipelines import record_index
    from tests.support import record_files

    rng = np.random.default_rng(0)
    shards = [[record_files.noise(rng, 480_000) for _ in range(RECORDS)] for _ in range(SHARDS)]
    path = record_files.write(folder / "clips/16khz/1.0.0", {"train": shards})
    record_index.write_index(str(path))
    bucket.copy(folder / "clips", "few/clips")
    count = SHARDS * TIMES
    for number, shard in enumerate(sorted(path.glob("*.tfrecord-*"))):
        first = f"few/clips/16khz/1.0.0/{shard.name}"
        for again in range(number, count, SHARDS):
            name = f"clips-train.tfrecord-{again:05d}-of-{count:05d}"
            bucket.alias(first, f"clips/16khz/1.0.0/{name}")
    info = json.loads((path / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [str(RECORDS)] * count
    bucket.put("clips/16khz/1.0.0/dataset_info.json", json.dumps(info).encode())
    bucket.put("clips/16khz/1.0.0/features.json", (path / "features.json").read_bytes())
    with np.load(next(path.glob("*.npz"))) as saved:
        arrays = {key: np.tile(saved[key], TIMES if saved[key].ndim else 1) for key in saved}
    arrays["format"] = arrays["format"].reshape(())
    content = io.BytesIO()
    np.savez(content, **arrays)
    bucket.put("clips/16khz/1.0.0/clips-train.index.npz", content.getvalue())


def opened(name: str, hosts: int, order: str, dataset: object = None) -> Iterator[dict]:
    """Begin the batches of the first of so many hosts, after those that fill its memory."""
    from data_pipelines import batches

    batch_size, samples, _ = CASES[name]
    stream = batches.iterate(
        dataset or batches.open_dataset("clips", ROOT, "train"),
        seed=1,
        batch_size=batch_size,
        samples=samples,
        rows=np.arange(-(-batch_size // hosts)),
        order=order,
    )
    for _ in range(30 if order == "blocks" else 4):
        next(stream)
    return stream


def take(bucket: Bucket, stream: Iterator[dict], seconds: float) -> Taken:
    """Take batches for so many seconds."""
    before, begin, busy, steps = bucket.counts, time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        next(stream)
        steps += 1
    took = time.perf_counter() - begin
    busy = time.process_time() - busy
    reads, read = (bucket.counts.get(x, 0) - before.get(x, 0) for x in ("reads", "bytes_read"))
    return Taken(steps, took, busy, reads, read)


def measure(bucket: Bucket, name: str, order: str, told: str, seconds: float) -> None:
    """Print the time of an update, and what was read for it."""
    batch_size, samples, limit = CASES[name]
    stream = opened(name, HOSTS, order)
    taken = take(bucket, stream, seconds)
    stream.close()
    took = taken.seconds
    used = taken.steps * (batch_size // HOSTS) * 2 * samples
    limited = f" (limit {limit})" if order == "blocks" else ""
    print(
        f"{name}, {told}: {took / taken.steps * 1e3:.0f} ms an update{limited}; "
        f"{taken.reads / took:.0f} reads/s, {taken.read / took / 1e6:.0f} MB/s, "
        f"{taken.read / used:.2f} bytes read for one used (limit {OVER_USED}); "
        f"{taken.busy / took:.1f} cores busy",
        flush=True,
    )


def requests(bucket: Bucket, order: str, told: str, seconds: float) -> None:
    """Print the requests that 64 hosts of crop5s would send, by those of one of them."""
    stream = opened("crop5s", MANY, order)
    taken = take(bucket, stream, seconds)
    stream.close()
    each = taken.reads / taken.steps
    limited = f" (limit {MOST})" if order == "blocks" else ""
    print(
        f"crop5s, {told}, one of {MANY} hosts: {each:.2f} reads an update in {taken.steps} updates "
        f"of {taken.seconds / taken.steps * 1e3:.0f} ms; {each * MANY / UPDATE:.0f} reads/s of all "
        f"{MANY} at {UPDATE * 1e3:.0f} ms an update{limited}",
        flush=True,
    )


def mirror(bucket: Bucket, told: str, disk: Path, copy: Path, seconds: float) -> None:
    """Print how fast the shards are copied, and the updates from the copy and from the disk."""
    from data_pipelines import batches

    size = sum(path.stat().st_size for path in disk.glob("clips/*/*/*.tfrecord-*"))
    begin = time.perf_counter()
    copied = batches.mirror("clips", f"{ROOT}/few", "train", str(copy))
    took = time.perf_counter() - begin
    print(f"{told}: {size / 1e6:.0f} MB copied in {took:.1f} s, {size / took / 1e6:.0f} MB/s")
    sources = {"mirror": copied, "disk": batches.open_dataset("clips", str(disk), "train")}
    for name in CASES:
        streams = {x: opened(name, HOSTS, "shuffled", source) for x, source in sources.items()}
        updates: dict[str, list[float]] = {x: [] for x in sources}
        reads = 0
        for _ in range(ROUNDS):
            for x, stream in streams.items():
                for _ in range(8):  # what was read ahead while the other one was measured
                    next(stream)
                taken = take(bucket, stream, seconds / ROUNDS)
                updates[x].append(taken.seconds / taken.steps * 1e3)
                reads += taken.reads
        for stream in streams.values():
            stream.close()
        ours, theirs = (np.median(updates[x]) for x in ("mirror", "disk"))
        print(
            f"{name}, {told}: {ours:.0f} ms an update; {theirs:.0f} ms from a disk "
            f"({ours / theirs:.2f} times, limit as a disk); {reads} reads of the bucket",
            flush=True,
        )


if __name__ == "__main__":
    main()
