"""Runs on a bucket that fails end as one on a disk that nothing disturbed, to the bit.

    python -m tests.faults.bucket [--runs=6] [--seed=0] [--only=music2vec,musichubert,mirror]

The bucket is the one on loopback. While real processes of the main command train from it and save
to it, requests are answered with 503, lose their connection, or lose it after they were carried
out, and now and then an answer takes five seconds.

- music2vec, musichubert: runs that are killed with SIGKILL while they start, in training, while
  they save and while they fit the codebook;
- mirror: runs that copy their data to a disk first (data.mirror), killed while they copy;
- slow: a run whose every request is answered after 0.02 s, and one in sixty after 5 s;
- processes: a job of two processes of which one is killed, and started again;
- moved: a run of two processes that goes on on one, and on two again. Sums over devices are in
  another order, so its losses are compared within a tolerance.
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
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support import runs
from tests.support.bucket import ROOT, Bucket, Fault

ONLY = ("music2vec", "musichubert", "mirror", "slow", "processes", "moved")
OFTEN = {"steps": 40, "checkpoint.every": 5}
FAULTS = (  # of all requests, and of those that write
    *(Fault("503", "", every=90), Fault("reset", "", skip=31, every=130)),
    *(Fault("lost", "(POST|PUT) .*upload", every=70), Fault("cut", "GET .*", every=170)),
)
SLOW = (Fault("delay", "", every=60, seconds=5.0),)
RATE = 2e5  # bytes a second of an answer, for a copy to take long enough to be killed


class Trial:
    """The bucket, a folder of this machine, and what came of what was done to runs."""

    def __init__(self, bucket: Bucket, root: Path):
        self.bucket, self.root = bucket, root
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        runs.write_clips(root / "data")
        bucket.copy(root / "data", "data")

    @contextlib.contextmanager
    def suffering(self, *faults: Fault, **settings: float) -> Iterator[None]:
        """Let faults befall requests, and count them."""
        with self.bucket.suffering(*faults, **settings):
            yield
            counts = self.bucket.counts
        self.faults.update({k: n for k, n in counts.items() if k.startswith("faults_")})

    def study(self, config: str, name: str, **leaves: object):
        """A reference run on the disk, and the place on the bucket for those that suffer."""
        from musicssl import host
        from tests.faults import kill

        folder = self.root / name
        folder.mkdir()
        (folder / "data").symlink_to(self.root / "data")
        place = host.path(f"{ROOT}/{name}"), f"{ROOT}/data"
        return kill.Study(config, folder, runs.start, OFTEN | leaves, *place)

    def told(self, what: str, wrong: list[str]) -> None:
        self.wrong += [f"{what}: {reason}" for reason in wrong]
        print(f"{what}: {wrong or 'identical'}", flush=True)


def kills(name: str, trial: Trial, seeds: range) -> None:
    """Kill runs of a method in every phase."""
    study = trial.study(f"configs/{name}.py:demo", name)
    for seed in seeds:
        with trial.suffering(*FAULTS):
            killed, wrong = study.run(seed, "cache")
        trial.kills += killed
        trial.told(f"{name}, run {seed}, {dict(killed)}", wrong)


music2vec = functools.partial(kills, "music2vec")
musichubert = functools.partial(kills, "musichubert")


def mirror(trial: Trial, seeds: range) -> None:
    """Kill runs while they copy the data to a disk."""
    study, chance = trial.study(runs.MUSIC2VEC, "mirrored"), random.Random(seeds.start)
    whole = sum(path.stat().st_size for path in trial.root.glob("data/clips/*/*/*tfrecord*"))
    for seed in seeds:
        copy = trial.root / f"copy-{seed}"
        study.leaves["data.mirror"] = copy
        for _ in range(2):
            with trial.suffering(*FAULTS, rate=RATE):
                life = study.live(f"run-{seed}", "cache")
                wanted = chance.uniform(0.05, 0.9) * whole
                while life.process.poll() is None and not life.count("training"):
                    files = (path for path in copy.rglob("*") if path.is_file())
                    with contextlib.suppress(FileNotFoundError):  # it has another name by now
                        if sum(path.stat().st_size for path in files) > wanted:
                            break
                    time.sleep(0.01)
                trial.kills["copying" if not life.count("training") else "training"] += 1
                life.process.kill()
                life.end()
        with trial.suffering(*FAULTS):
            trial.told(f"mirror, run {seed}", finish(study, f"run-{seed}"))


def finish(study, name: str) -> list[str]:
    """Let a run go to its end; what differs then from the reference."""
    life = study.live(name, "cache")
    errors = life.end()
    if life.process.returncode:
        return [f"exit code {life.process.returncode}: {errors[-2000:]}"]
    return study.differences(study.workdirs / name)


def slow(trial: Trial, seeds: range) -> None:
    """Train where every request takes its time, and some take five seconds."""
    del seeds
    study = trial.study(runs.MUSIC2VEC, "slow", steps=10)
    with trial.suffering(*SLOW, latency=0.02):
        trial.told("a bucket that answers after 5 s", finish(study, "run"))


def processes(trial: Trial, seeds: range) -> None:
    """Kill one of two processes in training and while they save."""
    from tests.faults import kill

    study = trial.study(runs.MUSIC2VEC, "processes")
    alone = trial.root / "two"
    study.start = functools.partial(kill.start_job, 2)
    # the reference is a job of two as well, on the disk
    study.workdirs, bucket = alone, study.workdirs
    alone.mkdir()
    wrong = finish(study, "reference")
    study.state = runs.state(alone / "reference")
    shutil.rmtree(study.root / "reference")
    shutil.copytree(alone / "reference", study.root / "reference")
    study.workdirs = bucket
    if any("exit code" in reason for reason in wrong):
        trial.told("two processes on a disk", wrong)
    for seed in seeds:
        with trial.suffering(*FAULTS):
            killed, different = study.run(seed, "cache", ["training", "saving"])
        trial.kills += killed
        trial.told(f"two processes, run {seed}, {dict(killed)}", different)


def moved(trial: Trial, seeds: range) -> None:
    """Move a run from two processes to one and back; SIGTERM ends its first two lives."""
    from musicssl import host
    from tests.faults import processes as jobs

    del seeds
    place = host.path(f"{ROOT}/moved")
    lives = (("1 process", trial.root, 1, 1, 0, jobs.COMPLETE),)
    lives += (("run", place, 2, 1, 3, jobs.PREEMPTED), ("run", place, 1, 2, 7, jobs.PREEMPTED))
    for name, where, count, devices, end, code in (*lives, ("run", place, 2, 1, 0, jobs.COMPLETE)):
        data = trial.root / "data" if where == trial.root else f"{ROOT}/data"
        with trial.suffering(*(() if where == trial.root else FAULTS)):
            ended = jobs.life(runs.MUSIC2VEC, trial.root, name, count, devices, end, where, data)
        if ended != code:
            trial.told(f"moved, {count} processes", [f"exit code {ended}"])
    same, difference = jobs.compare(trial.root / "1 process", place / "run")
    wrong = [] if same and difference < jobs.TOLERANCE else ["other masks or losses"]
    print(f"moved: losses within {difference:.1e} of {jobs.TOLERANCE:.0e}", flush=True)
    trial.told("moved to another number of processes", wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=6, help="of each method that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the first run")
    parser.add_argument("--only", default=",".join(ONLY), help="what is done, of those above")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    root = Path(tempfile.mkdtemp(prefix="bucket-"))
    try:
        with Bucket() as bucket:
            os.environ.update(bucket.environment)
            trial = Trial(bucket, root)
            for name in options.only.split(","):
                globals()[name](trial, range(options.seed, options.seed + options.runs))
    finally:
        for child in psutil.Process().children(recursive=True):  # of what was left in the middle
            child.kill()
        shutil.rmtree(root)
    early = trial.kills.pop("ended before", 0)
    print(f"{trial.kills.total()} SIGKILLs {dict(trial.kills)}; {early} lives had ended before")
    print(f"{trial.faults.total()} faults {dict(trial.faults)}")
    print(f"{len(trial.wrong)} differences from undisturbed runs on a disk")
    sys.exit(bool(trial.wrong))


if __name__ == "__main__":
    main()
