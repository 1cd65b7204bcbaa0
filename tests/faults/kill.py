"""Runs killed with SIGKILL at random moments end as one that was never killed, to the bit.

    python -m tests.faults.kill --runs=10 --config=configs/musichubert.py:demo

Every run is a tiny one of real processes of the main command. Each of its lives ends in a phase of
its own: while starting (imports, restoring, compiling), while fitting the codebook, in training,
or while a checkpoint is being written; the last one goes to the end.
"""

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import numpy as np

from tests import runs

PHASES = ("starting", "fitting", "training", "saving")
UNFINISHED = "*.orbax-checkpoint-tmp*"
LEAVES = {"steps": 80, "checkpoint.every": 10}


class Life:
    """One process of a run, watched so that it can be killed at a chosen moment."""

    def __init__(self, start: Callable[[], Popen], workdir: Path):
        self.checkpoints = workdir / "checkpoints"
        self.left = self.unfinished()  # by the life before
        self.saves: set[tuple[str, int]] = set()
        self.lines: list[str] = []
        self.began = time.monotonic()
        self.process = start()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def unfinished(self) -> set[tuple[str, int]]:
        """Checkpoints being written, or left so."""
        found = set()
        for path in self.checkpoints.glob(UNFINISHED):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:  # renamed meanwhile: it is finished
                continue
        return found

    def count(self, phase: str) -> int:
        """How often the phase has begun."""
        if phase == "saving":
            self.saves |= self.unfinished() - self.left
            return len(self.saves)
        word = {"fitting": "codebook pass", "training": ("first step", "step ")}[phase]
        return sum(line.startswith(word) for line in self.lines)

    def kill_in(self, phase: str, chance: random.Random, startup: float) -> str | None:
        """Kill the process in a phase; returns the phase that it was in, None if it had ended."""
        wanted = chance.randint(1, 3)
        pause = chance.uniform(0, {"fitting": 0.2, "training": 0.3, "saving": 0.05}.get(phase, 0))
        latest = self.began + chance.uniform(0, startup)
        while self.process.poll() is None:
            if phase == "starting":  # once it has stepped, at once
                if time.monotonic() > latest or self.count("training"):
                    break
            elif self.count(phase) >= wanted:
                time.sleep(pause)
                break
            time.sleep(0.0005)
        self.process.kill()
        self.end()
        return None if self.process.returncode == 0 else self.phase()

    def phase(self) -> str:
        """What it was doing when it died, by what it left and said."""
        if self.unfinished() - self.left:
            return "saving"
        last = self.lines[-1] if self.lines else ""
        if last.startswith(("fitting", "codebook pass")):
            return "fitting"
        return "training" if last.startswith(("first step", "step ")) else "starting"

    def end(self) -> str:
        """Wait for its end; what it wrote to stderr."""
        errors = self.process.stderr.read()
        self.reader.join()
        self.process.wait()
        return errors

    def first_step(self) -> float:
        """Seconds from the start of the process to its first step's end."""
        while self.process.poll() is None and not any(x.startswith("first") for x in self.lines):
            time.sleep(0.01)
        return time.monotonic() - self.began


class Study:
    """A reference run, and killed ones to compare with it.

    Args:
      start: takes the main command's arguments and the folder of compiled programs.
    """

    def __init__(self, config: str, root: Path, start: Callable[[list[str], Path], Popen]):
        self.config, self.root, self.start = config, root, start
        self.data_dir = root / "data"
        runs.write_clips(self.data_dir)
        self.phases = [x for x in PHASES if x != "fitting" or "hubert" in config]
        reference = self.live("reference", "cache")
        self.startup = reference.first_step()
        errors = reference.end()
        if reference.process.returncode:
            raise RuntimeError(f"the reference run failed: {errors}")
        self.state = runs.state(root / "reference")

    def live(self, name: str, cache: str) -> Life:
        workdir = self.root / name
        arguments = runs.flags(self.config, workdir, self.data_dir, LEAVES)
        return Life(lambda: self.start(arguments, self.root / cache), workdir)

    def run(
        self, seed: int, cache: str, plan: list[str] | None = None
    ) -> tuple[Counter, list[str]]:
        """A run that is killed in every phase of a plan.

        Args:
          seed: of the moments.
          cache: the folder of compiled programs; with a new one they are compiled again.
          plan: if None, every phase once, in a random order, and one of them again.

        Returns:
          the kills by phase, and what differs from the reference or went wrong.
        """
        chance, kills, name = random.Random(seed), Counter(), f"run-{seed}"
        if plan is None:
            plan = [*self.phases, chance.choice(self.phases)]
            chance.shuffle(plan)
            plan.sort(key=lambda x: x in ("training", "saving"))  # the codebook comes first
        for phase in plan:
            killed = self.live(name, cache).kill_in(phase, chance, self.startup)
            kills[killed or "ended before"] += 1
        last = self.live(name, cache)
        errors = last.end()
        if last.process.returncode:
            return kills, [f"exit code {last.process.returncode}: {errors}"]
        return kills, self.differences(self.root / name)

    def differences(self, workdir: Path) -> list[str]:
        """Arrays of the last checkpoint, the codebook and logged losses that differ."""
        wrong = runs.differences(self.state, runs.state(workdir))
        reference = self.root / "reference"
        losses = [
            [(line["step"], line["loss"]) for line in runs.scalars(at)]
            for at in (reference, workdir)
        ]
        if losses[0] != losses[1]:
            wrong.append("metrics.jsonl")
        if "hubert" in self.config:
            books = [np.load(at / "codebook.npz")["codebook"] for at in (reference, workdir)]
            if books[0].tobytes() != books[1].tobytes():
                wrong.append("codebook.npz")
        return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--config", default=runs.MUSIC2VEC, choices=list(runs.OF_CONFIG))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="killed-"))
    try:
        study = Study(options.config, root, runs.start)
        print(f"reference: first step after {study.startup:.1f} s", flush=True)

        def one(number: int) -> tuple[Counter, list[str]]:
            seed = options.seed + number
            kills, wrong = study.run(seed, f"cache-{number // 3}")
            print(f"run {seed}: {dict(kills)}: {wrong or 'identical'}", flush=True)
            return kills, wrong

        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(one, range(options.runs)))
    finally:
        shutil.rmtree(root)
    kills = sum((kills for kills, _ in results), Counter())
    same = sum(not wrong for _, wrong in results)
    print(f"{options.config}: {sum(kills.values()) - kills['ended before']} kills {dict(kills)}")
    print(f"{same} of {len(results)} runs ended bit-identical to the one never killed")
    sys.exit(same < len(results))


if __name__ == "__main__":
    main()
