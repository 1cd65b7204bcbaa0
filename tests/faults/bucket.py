"""Runs on a bucket that fails end as one on a disk that nothing disturbed, to the bit.

    python -m tests.faults.bucket [--runs=5] [--seed=0] [--only=music2vec,musichubert,mirror]

The bucket is the one on loopback. While processes of the main command train from it and save to
it, requests are answered with 503, lose their connection, or lose it after they were carried out,
and now and then an answer takes five seconds.

- music2vec, musichubert: runs that are killed with SIGKILL while they start, in training, while
  they save and while they fit the codebook;
- mirror: runs that copy their data to a disk first (data.mirror), killed while they copy;
- slow: a run whose every request is answered after 0.02 s, and one in sixty after 5 s;
- two, four: jobs of so many processes of which one is killed, in training and while they save;
- away: runs whose bucket is gone from some request on: each ends with 74, in a line, and goes on
  where it is there again;
- moved: a run of two processes that goes on on one, and on two again. Sums over devices are in
  another order, so its losses are compared within a tolerance.

The processes are forked from one that has the imports done, and compile without optimising: their
reference does so too.
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

from tests.support import commands, runs
from tests.support.bucket import ROOT, Bucket, Fault

ONLY = ("music2vec", "musichubert", "mirror", "slow", "two", "four", "away", "moved")
OFTEN = {"steps": 30, "checkpoint.every": 5}
PAUSE = 0.02  # seconds that a batch takes at least, for a kill to find the run in training
FAULTS = (  # of all requests, and of those that write
    *(Fault("503", "", every=90), Fault("reset", "", skip=31, every=130)),
    *(Fault("lost", "(POST|PUT) .*upload", every=70), Fault("cut", "GET .*", every=170)),
)
SLOW = (Fault("delay", "", every=60, seconds=5.0),)
RATE, PART = 2e5, 1 << 16  # bytes a second of an answer, and of one request, while data are copied


class Trial:
    """The bucket, a folder of this machine, and what came of what was done to runs."""

    def __init__(self, bucket: Bucket, root: Path):
        self.bucket, self.root, self.began = bucket, root, time.monotonic()
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

    def study(self, config: str, name: str, processes: int = 1, **leaves: object):
        """A reference run on the disk, and the place on the bucket for those that suffer."""
        from musicssl import host
        from tests.faults import kill

        folder = self.root / name
        folder.mkdir()
        (folder / "data").symlink_to(self.root / "data")
        (folder / "cache").symlink_to(self.root / "cache")
        start = functools.partial(commands.start, pause=PAUSE)
        if processes > 1:
            start = functools.partial(commands.Job, processes, pause=PAUSE)
        place = host.path(f"{ROOT}/{name}"), f"{ROOT}/data"
        study = kill.Study(config, folder, start, OFTEN | leaves, *place)
        self.say(f"{name}: the run on a disk has ended")
        return study

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.began:4.0f} s  {line}", flush=True)

    def told(self, what: str, wrong: list[str]) -> None:
        self.wrong += [f"{what}: {reason}" for reason in wrong]
        self.say(f"{what}: {wrong or 'identical'}")


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


def copying(pause: float, *arguments: str) -> None:
    """The main command, which copies data in small parts."""
    from data_pipelines import mirror as copies

    copies._PART = PART
    commands.main(pause, *arguments)


def start_copying(arguments: list[str], cache: Path) -> commands.Process:
    return commands.Process(copying, PAUSE, *arguments, cache=cache)


def mirror(trial: Trial, seeds: range) -> None:
    """Kill runs while they copy the data to a disk."""
    study, chance = trial.study(runs.MUSIC2VEC, "mirrored"), random.Random(seeds.start)
    study.start = start_copying
    whole = sum(path.stat().st_size for path in trial.root.glob("data/clips/*/*/*tfrecord*"))
    for seed in seeds:
        copy, killed = trial.root / f"copy-{seed}", Counter()
        study.leaves["data.mirror"] = copy
        # the second goes on with the copy of the first
        for wanted in (chance.uniform(0.05, 0.45) * whole, chance.uniform(0.55, 0.9) * whole):
            with trial.suffering(*FAULTS, rate=RATE):
                life = study.live(f"run-{seed}", "cache")
                while life.process.poll() is None and copied(copy) < wanted:
                    time.sleep(0.01)
                complete = next(copy.rglob("mirror-train.json"), None)
                complete = complete is not None and '"index": ""' not in complete.read_text()
                killed["training" if complete else "copying"] += 1
                life.process.kill()
                life.end()
        trial.kills += killed
        with trial.suffering(*FAULTS):
            trial.told(f"mirror, run {seed}, {dict(killed)}", finish(study, f"run-{seed}"))


def copied(folder: Path) -> int:
    """The bytes that are in a folder of this machine."""
    with contextlib.suppress(FileNotFoundError):  # a file has another name by now
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


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


def processes(count: int, name: str, trial: Trial, seeds: range) -> None:
    """Kill one process of a job in training and while it saves; the reference is a job as well."""
    study = trial.study(runs.MUSIC2VEC, name, count)
    for seed in seeds[:2]:
        with trial.suffering(*FAULTS):
            killed, different = study.run(seed, "cache", ["training", "saving"])
        trial.kills += killed
        trial.told(f"{name} processes, run {seed}, one killed, {dict(killed)}", different)


two = functools.partial(processes, 2, "two")
four = functools.partial(processes, 4, "four")


def impatient(*arguments: str) -> None:
    """The main command, which does not bear with a bucket for long."""
    from data_pipelines import retries

    retries.PATIENCE = 0.5
    commands.main(0, *arguments)


def away(trial: Trial, seeds: range) -> None:
    """Take the bucket away at requests from a run's first to its last, closer at its start."""
    study = trial.study(runs.MUSICHUBERT, "away", steps=10)
    with trial.suffering():
        wrong = finish(study, "undisturbed")
        requests = trial.bucket.counts["requests"]
    trial.told(f"away: a run of {requests} requests", wrong)
    start, codes = study.start, Counter()
    for number in range(2 * len(seeds)):
        part, name = (number + 0.5) / (2 * len(seeds)), f"run-{number}"
        skip = int(requests * part**2)
        study.start = lambda arguments, cache: commands.Process(impatient, *arguments, cache=cache)
        with trial.suffering(Fault("503", "", skip=skip)):
            life = study.live(name, "cache")
            errors = life.end()
        code, study.start = life.process.returncode, start
        codes[code] += 1
        said = [line for line in errors.splitlines() if line.startswith("musicssl: ")]
        wrong = [] if code == 74 and len(said) == 1 else [f"{code}: {errors[-2000:]}"]
        trial.say(f"away: at request {skip} it ended with {code}: {' '.join(said)[:200]}")
        trial.told(f"away, run {number}", wrong + finish(study, name))
    trial.say(f"away: exit codes {dict(codes)}")


def moved(trial: Trial, seeds: range) -> None:
    """Move a run from two processes to one and back; SIGTERM ends its first two lives."""
    from musicssl import host
    from tests.faults import processes as jobs

    del seeds
    place, cache = host.path(f"{ROOT}/moved"), trial.root / "cache"

    def life(workdir: Path, data: Path | str, count: int, devices: int, end: int = 0) -> int:
        """Train, and send SIGTERM after a step; returns the exit code."""
        arguments = runs.flags(runs.MUSIC2VEC, workdir, data, jobs.LEAVES)
        job = commands.Job if count > 1 else lambda _, *given: commands.start(*given)
        process = job(count, arguments, cache, devices, 0.2)
        for line in process.stdout:
            if end and line.startswith(f"step {end}/"):
                process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
        code = process.wait()
        trial.say(f"moved: {count} processes of {devices} devices ended with {code}")
        if code not in (jobs.COMPLETE, jobs.PREEMPTED):
            trial.told("moved", [errors[-2000:]])
        return code

    alone = trial.root / "alone"
    codes = [life(alone, trial.root / "data", 1, 1)]
    with trial.suffering(*FAULTS):
        for count, devices, end in ((2, 1, 3), (1, 2, 7), (2, 1, 0)):
            codes.append(life(place, f"{ROOT}/data", count, devices, end))
    expected = [jobs.COMPLETE, jobs.PREEMPTED, jobs.PREEMPTED, jobs.COMPLETE]
    wrong = [] if codes == expected else [f"exit codes {codes}"]
    same, difference = jobs.compare(alone, place)
    if not same or difference > jobs.TOLERANCE:
        wrong.append(f"other masks, or losses that differ by {difference:.1e}")
    trial.say(f"moved: losses within {difference:.1e} of {jobs.TOLERANCE:.0e}")
    trial.told("moved to another number of processes", wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each method that are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the first run")
    parser.add_argument("--only", default=",".join(ONLY), help="what is done, of those above")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ["GCS_RETRY_CONFIG_MAX_RETRIES"] = "1"  # TensorFlow's own, of three minutes
    root = Path(tempfile.mkdtemp(prefix="bucket-"))
    (root / "cache").mkdir()
    try:
        with Bucket() as bucket:
            os.environ.update(bucket.environment)
            trial = Trial(bucket, root)
            for name in options.only.split(","):
                globals()[name](trial, range(options.seed, options.seed + options.runs))
    finally:
        for child in psutil.Process().children(recursive=True):  # of what was left in the middle
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        shutil.rmtree(root)
    early = trial.kills.pop("ended before", 0)
    print(f"{trial.kills.total()} SIGKILLs {dict(trial.kills)}; {early} lives had ended before")
    print(f"{trial.faults.total()} faults {dict(trial.faults)}")
    print(f"{len(trial.wrong)} differences from undisturbed runs on a disk")
    sys.exit(bool(trial.wrong))


if __name__ == "__main__":
    main()
