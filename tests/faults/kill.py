"""Runs killed with SIGKILL at random moments end as one that was never killed, to the bit.

    python -m tests.faults.kill --runs=10 --config=configs/musichubert.py:demo
    python -m tests.faults.kill --runs=10 --terms --probe_data=data  # where synth_music is built
    python -m tests.faults.kill --runs=10 --processes=2
    python -m tests.faults.kill --runs=10 --config=configs/musichubert.py:demo_multi --mixed

Every run is a tiny one of real processes of the main command. Each of its lives ends in a phase of
its own: while starting (imports, restoring, compiling), while fitting the codebook, in training,
in a probe, or while a checkpoint is being written; the last one goes to the end. With --terms lives
that end by SIGTERM come between. Of a job of several processes one is killed, and the others have
to end by themselves.
"""

import argparse
import contextlib
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import psutil

from musicssl import paths
from musicssl.runtime.workdir import steps_on_disk
from tests.support import runs

PHASES = ("starting", "fitting", "training", "saving")
PROBES = {  # steps 25, 50 and 75
    "probe.every": 25,
    "probe.tasks": "synth_key",
    "probe.limit": 8,
    "probe.epochs": 2,
}
PROBED = ("step 25/", "step 50/", "step 75/")  # logged before the probe
UNFINISHED = "*.orbax-checkpoint-tmp*"
LEAVES = {"steps": 80, "checkpoint.every": 10}


class Life:
    """One process of a run, watched so that it can be killed at a chosen moment."""

    def __init__(self, start: Callable[[], Popen], workdir: Path, probes: bool = False):
        self.probes, self.workdir = probes, workdir
        self.left = self.unfinished()  # by the life before
        self.saves: set[tuple[str, int]] = set()
        self.lines: list[str] = []
        self.began = time.monotonic()
        self.process = start()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in iter(self.process.stdout.readline, ""):
            self.lines.append(line.removeprefix("[0] "))

    def unfinished(self) -> set[tuple[str, int]]:
        """Checkpoints being written, or left so."""
        checkpoints = self.workdir / "checkpoints"
        if paths.is_remote(checkpoints):
            return uncommitted(checkpoints)
        found = set()
        for path in checkpoints.glob(UNFINISHED):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:  # renamed meanwhile: it is finished
                continue
        return found

    def count(self, phase: str) -> int:
        """How often the phase has begun."""
        if phase == "saving":
            now = self.unfinished()
            self.left &= now  # on a bucket a save that was left has the name of the next one
            self.saves |= now - self.left
            return len(self.saves)
        words = {"fitting": "codebook pass", "training": ("first step", "step "), "probing": PROBED}
        word = words[phase]
        return sum(line.startswith(word) for line in self.lines)

    def kill_in(self, phase: str, chance: random.Random, startup: float) -> str | None:
        """Kill the process in a phase; returns the phase that it was in, None if it had ended."""
        self.wait_in(phase, chance, startup)
        members = self.members()
        if members:
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(members).kill()
        else:
            self.process.kill()
        self.end()
        return None if self.process.returncode == 0 else self.phase()

    def wait_in(self, phase: str, chance: random.Random, startup: float) -> None:
        """Wait for a random moment of a phase, or for the end."""
        wanted = 1 if phase == "probing" else chance.randint(1, 3)
        longest = {"fitting": 0.2, "training": 0.3, "saving": 0.05, "probing": 3}
        pause = chance.uniform(0, longest.get(phase, 0))
        latest = self.began + chance.uniform(0, startup)
        while self.process.poll() is None:
            if phase in ("starting", "fitting") and self.count("training"):
                break  # at once where it has stepped: there was a codebook
            if phase == "starting":
                if time.monotonic() > latest:
                    break
            elif self.count(phase) >= wanted:
                time.sleep(pause)
                break
            time.sleep(0.002)

    def members(self) -> list:
        """The processes of a job of several."""
        if hasattr(self.process, "members"):
            return self.process.members
        if "launch/local.py" not in getattr(self.process, "args", []):
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def phase(self) -> str:
        """What it was doing when it died, by what it left and said."""
        if self.unfinished() - self.left:
            return "saving"
        last = self.lines[-1] if self.lines else ""
        if last.startswith(("fitting", "codebook pass")):
            return "fitting"
        if self.probes and last.startswith(PROBED):
            return "probing"
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


def uncommitted(checkpoints: Path) -> set[tuple[str, int]]:
    """Saves on a bucket without the mark of a whole one, by the names of their files' folder."""
    try:
        names = [str(folder / name) for folder, _, files in checkpoints.walk() for name in files]
    except FileNotFoundError:
        return set()
    inside = [name.removeprefix(f"{checkpoints}/").split("/", 1) for name in names]
    whole = {step for step, *name in inside if name == ["commit_success.txt"]}
    return {(step, 0) for step, *_ in inside if step not in whole}


class Study:
    """A reference run, and killed ones to compare with it.

    Args:
      root: of the reference's workdir; root/data holds the clips.
      workdirs: where those of the killed ones are; None for `root`.
      data_dir: what the killed ones read; None for root/data.
      start: takes the main command's arguments and the folder of compiled programs.
      leaves: of the configuration, beside LEAVES.
    """

    def __init__(
        self,
        config: str,
        root: Path,
        start: Callable[[list[str], Path], Popen],
        leaves: dict | None = None,
        workdirs: Path | None = None,
        data_dir: str | None = None,
    ):
        self.config, self.root, self.start = config, root, start
        self.leaves = LEAVES | (leaves or {})
        self.workdirs, self.data_dir = root, root / "data"
        self.phases = [x for x in PHASES if x != "fitting" or "hubert" in config]
        self.probes = "probe.every" in self.leaves
        self.phases += ["probing"] if self.probes else []
        reference = self.live("reference", "cache")
        self.startup = reference.first_step()
        errors = reference.end()
        if reference.process.returncode:
            raise RuntimeError(f"the reference run failed: {errors}")
        self.state = runs.state(root / "reference")
        self.workdirs, self.data_dir = workdirs or root, data_dir or self.data_dir

    def live(self, name: str, cache: str) -> Life:
        workdir = self.workdirs / name
        arguments = runs.flags(self.config, workdir, self.data_dir, self.leaves)
        return Life(lambda: self.start(arguments, self.root / cache), workdir, self.probes)

    def end_by_sigterm(
        self, name: str, cache: str, phase: str, chance: random.Random
    ) -> list[str] | None:
        """A life that is asked to end in a phase; what is wrong with how it ends.

        None if it had ended before.
        """
        life = self.live(name, cache)
        life.wait_in(phase, chance, self.startup)
        if life.process.poll() == 0:
            life.end()
            return None
        trained, began = life.count("training") > 0, time.monotonic()
        life.process.send_signal(signal.SIGTERM)
        errors, code = life.end(), life.process.returncode
        if code == 0 or (not trained and code in (-signal.SIGTERM, 128 + signal.SIGTERM)):
            return []  # it was complete, or did not yet listen: nothing was begun
        if code != 75:
            return [f"SIGTERM in {phase}: exit code {code}: {errors[-2000:]}"]
        if time.monotonic() - began > 60:
            return [f"SIGTERM in {phase}: it took {time.monotonic() - began:.0f} s"]
        said = [x for x in life.lines if x.startswith("asked to end at step")]
        saved = steps_on_disk(self.workdirs / name)
        if said and int(said[-1].split()[5].rstrip(":")) not in saved:
            return [f"SIGTERM in {phase}: {said[-1]} but there are {saved}"]
        return []

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
        return kills, self.differences(self.workdirs / name)

    def differences(self, workdir: Path) -> list[str]:
        """Arrays of the last checkpoint, the codebook and logged losses that differ."""
        wrong = runs.differences(self.state, runs.state(workdir))
        reference = self.root / "reference"
        losses = [
            [
                (line["step"], name, line[name])
                for line in runs.scalars(at)
                for name in ("loss", "validation/loss")
                if name in line
            ]
            for at in (reference, workdir)
        ]
        if losses[0] != losses[1]:
            wrong.append("metrics.jsonl")
        if "hubert" in self.config:
            books = [
                {name: x.tobytes() for name, x in np.load(runs.opened(at / "codebook.npz")).items()}
                for at in (reference, workdir)
            ]
            if books[0] != books[1]:
                wrong.append("codebook.npz")
        return wrong


def start_job(processes: int, arguments: list[str], cache: Path) -> Popen:
    """A job of several processes of the main command, on this machine."""
    job = [sys.executable, "launch/local.py", f"--processes={processes}", "--grace=60", "--"]
    command = [*job, sys.executable, "-m", "musicssl.main", *arguments, "--heartbeat=20"]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return Popen(command, cwd=runs.ROOT, env=os.environ | kept, stdout=PIPE, stderr=PIPE, text=True)


def one_run(study: Study, seed: int, cache: str, terms: bool) -> tuple[Counter, list[str]]:
    """One run of the study, told as it ends; with `terms` also ended by SIGTERM in every phase."""
    asked, wrong, name = Counter(), [], f"run-{seed}"
    if terms:
        chance = random.Random(-seed)
        phases = chance.sample(study.phases, 3)
        for phase in sorted(phases, key=study.phases.index):  # the codebook comes first
            faults = study.end_by_sigterm(name, cache, phase, chance)
            asked["ended before" if faults is None else "SIGTERM"] += 1
            wrong += faults or []
    kills, different = study.run(seed, cache)
    if terms:  # the first line after each is a mean over fewer steps
        different = [x for x in different if x != "metrics.jsonl"]
    wrong += different
    print(f"run {seed}: {dict(asked + kills)}: {wrong or 'identical'}", flush=True)
    return asked + kills, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--config", default=runs.MUSIC2VEC, choices=list(runs.OF_CONFIG))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--steps", type=int, default=80, help="more if lives end before their time")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    parser.add_argument("--terms", action="store_true", help="end runs by SIGTERM too")
    parser.add_argument("--mixed", action="store_true", help="two data sets, and validation")
    parser.add_argument("--probe_data", help="where synth_music is built, to end runs in probes")
    options = parser.parse_args()
    start = runs.start
    if options.processes > 1:
        start = functools.partial(start_job, options.processes)
    leaves = {"steps": options.steps}
    if options.probe_data:
        leaves |= PROBES | {"probe.data_dir": options.probe_data}
    leaves |= runs.MIXED if options.mixed else {}
    root = Path(tempfile.mkdtemp(prefix="killed-"))
    try:
        runs.write_mixed(root / "data")
        study = Study(options.config, root, start, leaves)
        print(f"reference: first step after {study.startup:.1f} s", flush=True)

        def one(number: int) -> tuple[Counter, list[str]]:
            return one_run(study, options.seed + number, f"cache-{number // 3}", options.terms)

        with ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(one, range(options.runs)))
    finally:
        shutil.rmtree(root)
    ends = sum((ends for ends, _ in results), Counter())
    asked, early = ends.pop("SIGTERM", 0), ends.pop("ended before", 0)
    same = sum(not wrong for _, wrong in results)
    print(f"{options.config}, {options.processes} processes: {ends.total()} SIGKILLs {dict(ends)},")
    print(f"{asked} SIGTERMs; {early} lives had ended before theirs came")
    print(f"{same} of {len(results)} runs ended bit-identical to the one never stopped")
    sys.exit(same < len(results))


if __name__ == "__main__":
    main()
