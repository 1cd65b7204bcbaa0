"""What a plug-in costs over the same model that is called by hand.

    python -m tests.benchmarks.plugin [--batches=8] [--windows=4] [--seconds=5] [--device=cpu]

A HuBERT-base of transformers with random values. By hand, batches of audio go through the model,
and the mean over time of every hidden state is fetched. As a plug-in, records of 16-bit audio are
read, cut and scaled, the same means are computed, and rows are written to the cache. The check of
the plug-in is timed by itself. Both take turns.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from musicssl.features import extract, plugin_source, windows
from musicssl.runtime import sharding

LIMIT, RATE, ROUNDS = 1.05, 16_000, 5


class HuBERT:
    sample_rate, frame_rate, layers, width = RATE, 50, 13, 768

    def __init__(self):
        torch.manual_seed(0)
        self.device = os.environ["PLUGIN_DEVICE"]
        self.model = HubertModel(HubertConfig()).eval().to(self.device)

    def __call__(self, audio):
        x = torch.from_numpy(audio).to(self.device)
        return self.model(x, output_hidden_states=True).hidden_states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--windows", type=int, default=4, help="in a batch")
    parser.add_argument("--seconds", type=int, default=5, help="of a window")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ["PLUGIN_DEVICE"] = options.device
    begin = time.perf_counter()
    source = plugin_source.open_plugin(f"{__file__}:HuBERT")
    checked = time.perf_counter() - begin
    model = HuBERT()
    count, n = options.batches * options.windows, options.seconds * RATE
    sounds = np.random.default_rng(0).integers(-9000, 9000, (count, n), np.int16)
    cut = windows.cut(np.full(count, n), options.seconds, RATE, frames=source.frames)
    mesh = sharding.make_mesh()

    def by_hand() -> None:
        for first in range(0, count, options.windows):
            x = sounds[first : first + options.windows].astype(np.float32) / 32768
            with torch.no_grad():
                means = torch.stack([h.mean(1) for h in model(x)])
            means.cpu().numpy()

    def as_plugin() -> None:
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder), "benchmark", mesh, options.windows
            extract.extract(source, cut, sounds.__getitem__, (windows.WHOLE,), *where)

    times = []
    for _ in range(ROUNDS + 1):  # the first is not counted
        for work in (by_hand, as_plugin):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    rounds = np.reshape(times, (-1, 2, 2))[1:]
    (hand, hand_cpu), (ours, our_cpu) = rounds.min(0)
    ratios = rounds[:, 1, 0] / rounds[:, 0, 0]
    print(f"by hand {count * options.seconds / hand:.1f} audio-s/s, as a plug-in "
          f"{count * options.seconds / ours:.1f}; the check took {checked:.1f} s")  # fmt: skip
    print(f"ratio of the fastest {ours / hand:.3f}, median of rounds {np.median(ratios):.3f}, on "
          f"the processors {our_cpu / hand_cpu:.3f}; wanted {LIMIT:g} or less")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    print(f"{options.device}, {cores} cores, {platform.processor() or platform.machine()}; torch "
          f"{torch.__version__}; load {os.getloadavg()[0]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
