"""The same run on 1, 2 and 4 processes, and moved between them: the same masks and losses.

    python -m tests.faults.processes [--config=configs/musichubert.py:demo]

Jobs are real ones, of launch/local.py. The moved run starts on 2 processes of 4 devices, goes on on
one of 2, and ends on 2 of 4; SIGTERM ends its first two lives.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import runs

LEAVES = {"steps": 12, "log_every": 1, "checkpoint.every": 4}
TOLERANCE = 2e-4  # of losses, relative: sums over devices are in another order
COMPLETE, PREEMPTED = 0, 75


def life(
    config: str,
    root: Path,
    name: str,
    processes: int,
    devices: int,
    end: int = 0,
    workdirs: Path | None = None,
    data_dir: Path | str = "",
) -> int:
    """Run a job to its end, or end it by SIGTERM after a step; returns the exit code.

    Args:
      root: holds the data, the workdirs and the compiled programs, unless the others say so.
    """
    flags = runs.flags(config, (workdirs or root) / name, data_dir or root / "data", LEAVES)
    command = [sys.executable, "-m", "musicssl.main", *flags]
    job = ["launch/local.py", f"--processes={processes}", f"--devices={devices}", "--"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(root / "cache")}
    process = subprocess.Popen(
        [sys.executable, *job, *command],
        cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    for line in process.stdout:
        if "going on from" in line:
            print(line.removeprefix("[0] "), end="", flush=True)
        if end and line.startswith(f"[0] step {end}/"):
            process.send_signal(signal.SIGTERM)
    return process.wait()


def compare(alone: Path, workdir: Path) -> tuple[bool, float]:
    """Whether masks are the same as on one process, and the largest difference of a loss."""
    lines, others = runs.scalars(workdir), runs.scalars(alone)
    same = [x["step"] for x in lines] == [x["step"] for x in others]
    same &= all(
        x["masked_fraction"] == y["masked_fraction"] for x, y in zip(lines, others, strict=True)
    )
    pairs = zip(lines, others, strict=True)
    return same, max(abs(x["loss"] / y["loss"] - 1) for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=runs.MUSIC2VEC, choices=list(runs.OF_CONFIG))
    config, wrong = parser.parse_args().config, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs.write_clips(root / "data")
        topologies = {"1 process": (1, 1), "2 processes": (2, 1), "4 processes": (4, 1)}
        for name, (processes, devices) in topologies.items():
            wrong += life(config, root, name, processes, devices) != COMPLETE
        wrong += life(config, root, "moved", 2, 4, end=3) != PREEMPTED
        wrong += life(config, root, "moved", 1, 2, end=7) != PREEMPTED
        wrong += life(config, root, "moved", 2, 4) != COMPLETE
        for name in ("2 processes", "4 processes", "moved"):
            same, difference = compare(root / "1 process", root / name)
            wrong += not same or difference > TOLERANCE
            masks = "the same masks" if same else "OTHER MASKS"
            print(f"{config}, {name}: {masks}, losses within {difference:.1e} of {TOLERANCE:.0e}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
