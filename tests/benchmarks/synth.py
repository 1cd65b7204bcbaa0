"""Speed of the composer on one core: python -m tests.benchmarks.synth [clips]."""

import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import scipy

from data_pipelines.composer import synth

LIMIT = 20.0  # times real time
SECONDS = 30.0


def main(clips: int = 48) -> None:
    """Renders clips one after another in this thread, prints their speed beside its limit."""
    synth.clip(0, SECONDS)  # fills the table of noises
    times = []
    for seed in range(1, clips + 1):
        start = time.process_time()
        synth.clip(seed, SECONDS)
        times.append(time.process_time() - start)
    speed = SECONDS * clips / sum(times)
    print(
        f"synth: {speed:.0f} x real time on one core; limit {LIMIT:.0f}; {speed / LIMIT:.1f} x it"
    )
    print(f"per clip of {SECONDS:.0f} s: mean {np.mean(times):.3f} s, slowest {max(times):.3f} s")
    print(
        f"{_processor()}, {os.cpu_count()} cores; numpy {np.__version__}, scipy {scipy.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
