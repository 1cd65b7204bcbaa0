"""The input of one of four hosts whose data lie in a bucket, beside the time that a step leaves it.

    python -m tests.benchmarks.bucket [--latency=0.02,0.05,0.1] [--rate=100e6] [--seconds=10]

It fabricates 280 records of 30 s at 16 kHz in four shards of 67 MB, puts them into a bucket on
loopback a hundred times (28,000 records, 233 hours, of which the bucket keeps one copy in memory),
and takes that host's rows of batches as fast as they come, of music2vec's crop5s and vanilla
configurations. Each request is answered after the latency, each stream has the rate.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.support.bucket import ROOT, Bucket

SHARDS, RECORDS, TIMES, HOSTS = 4, 70, 100, 4
CASES = {"crop5s": (752, 320 * 256 + 80, 64), "vanilla": (112, 320 * 1496 + 80, 50)}
OVER_USED = 1.5  # the limit of bytes read for a byte used
ON_64_HOSTS = 7e-3, 2000  # seconds of a step of crop5s on v5e:16x16; the limit of reads a second


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--latency", default="0.05", help="seconds, several with commas")
    parser.add_argument("--rate", type=float, default=100e6, help="bytes a second of a stream")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--orders", default="shuffled,blocks")
    given = parser.parse_args()
    with Bucket() as bucket:
        os.environ.update(bucket.environment)
        fabricate(bucket)
        for name in CASES:
            for order in given.orders.split(","):
                for latency in map(float, given.latency.split(",")):
                    with bucket.suffering(latency=latency, rate=given.rate):
                        measure(bucket, name, order, latency, given.seconds)


def fabricate(bucket: Bucket) -> None:
    """Put the data set there, with its index, every shard under a hundred names."""
    from data_pipelines import record_index
    from tests.support import record_files

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        shards = [[record_files.noise(rng, 480_000) for _ in range(RECORDS)] for _ in range(SHARDS)]
        path = record_files.write(Path(folder) / "clips/16khz/1.0.0", {"train": shards})
        record_index.write_index(str(path))
        count = SHARDS * TIMES
        for number, shard in enumerate(sorted(path.glob("*.tfrecord-*"))):
            first = f"clips/16khz/1.0.0/clips-train.tfrecord-{number:05d}-of-{count:05d}"
            bucket.put(first, shard.read_bytes())
            for again in range(number + SHARDS, count, SHARDS):
                bucket.alias(first, first.replace(f"{number:05d}-of", f"{again:05d}-of"))
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


def measure(bucket: Bucket, name: str, order: str, latency: float, seconds: float) -> None:
    """Take batches for so many seconds, after those that fill the memory."""
    from data_pipelines import batches

    batch_size, samples, limit = CASES[name]
    dataset = batches.open_dataset("clips", ROOT, "train")
    rows = np.arange(batch_size // HOSTS)
    stream = batches.iterate(
        dataset, seed=1, batch_size=batch_size, samples=samples, rows=rows, order=order
    )
    for _ in range(30 if order == "blocks" else 4):
        next(stream)
    before, begin, busy, steps = bucket.counts, time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        next(stream)
        steps += 1
    took = time.perf_counter() - begin
    busy = time.process_time() - busy
    after = bucket.counts
    stream.close()
    reads = after["reads"] - before.get("reads", 0)
    read = after["bytes_read"] - before.get("bytes_read", 0)
    used = steps * len(rows) * 2 * samples
    told = f" (limit {limit})" if order == "blocks" else ""
    print(
        f"{name}, {order}, {latency * 1e3:.0f} ms a request: {took / steps * 1e3:.0f} ms an update"
        f"{told}; {reads / took:.0f} reads/s, {read / took / 1e6:.0f} MB/s, {read / used:.2f} "
        f"bytes read for one used (limit {OVER_USED}); {busy / took:.1f} cores busy",
        flush=True,
    )
    if (name, order) == ("crop5s", "blocks"):  # hosts own whole lanes: more of them read no more
        update, limit = ON_64_HOSTS
        every = reads / steps * HOSTS
        print(
            f"{name}, {order}: {every:.1f} reads an update by all hosts; {every / update:.0f} "
            f"reads/s on 64 hosts at {update * 1e3:.0f} ms an update (limit {limit})"
        )


if __name__ == "__main__":
    main()
