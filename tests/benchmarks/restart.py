"""A restart of the demo, to its first step; and what the loop waits for input.

    python -m tests.benchmarks.restart [--config=configs/music2vec.py:demo] [--data_dir=data]

The first life composes the data if need be, compiles, and is ended by SIGTERM; the second is timed,
with the compiled programs of the first, and its imports by themselves in a third process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import runs

STEPS = 60
LIMIT, INPUT_LIMIT = 15.0, 0.02  # seconds beyond imports; share of the time in steps
IMPORTS = "import musicssl.main, clu.metric_writers, data_pipelines.batches"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=runs.MUSIC2VEC)
    parser.add_argument("--data_dir", default="data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "cache")
        command = [sys.executable, "-m", "musicssl.main", f"--config={options.config}"]
        command += [f"--config.data.data_dir={options.data_dir}", f"--workdir={root / 'run'}"]
        command += ["--config.log_every=5", "--config.probe.at_end=False"]
        command += [f"--config.steps={STEPS}"]  # other steps are another program
        say(f"first life, ended at step {STEPS // 3} of {STEPS}")
        first = seconds(command, "first step", f"step {STEPS // 3}/")
        say("second life, to its end")
        second = seconds(command, "first step")
        say("imports")
        imports = seconds([sys.executable, "-c", IMPORTS])
        shares = runs.scalars(root / "run")[-1]
    beyond, waited = second - imports, shares["time/input"] / shares["time/goodput"]
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{options.config}, {len(os.sched_getaffinity(0))} cores, load {load}")
    print(f"first life to its first step   {first:6.1f} s")
    print(f"restart to its first step      {second:6.1f} s, imports {imports:.1f} s")
    print(f"beyond imports                 {beyond:6.1f} s  limit {LIMIT:.0f} s")
    print(f"waiting for input, of steps    {waited:6.1%}  limit {INPUT_LIMIT:.0%}")
    sys.exit(beyond > LIMIT or waited > INPUT_LIMIT)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def seconds(command: list[str], until: str = "", end: str = "") -> float:
    """From the start of a command to a line that begins with `until`, or to its end.

    Args:
      end: beginning of the line at which it is asked to end.
    """
    began, found = time.monotonic(), 0.0
    process = subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if until and not found and line.startswith(until):
            found = time.monotonic() - began
        if end and line.startswith(end):
            process.terminate()
    if process.wait() != (75 if end else 0):
        raise RuntimeError(f"{command} ended with exit code {process.returncode}")
    return found or time.monotonic() - began


if __name__ == "__main__":
    main()
