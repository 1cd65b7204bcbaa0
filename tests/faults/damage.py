"""Full disks, damaged checkpoints and damaged shards: told in one line, and nothing else is lost.

    python -m tests.faults.damage --runs=6

Every run is ended in training by SIGKILL, harmed in one way, started to see that it is refused and
that nothing was changed, mended, and run to its end, which is to be that of an undisturbed run.
"""

import argparse
import functools
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from musicssl.runtime.workdir import steps_on_disk
from tests.faults import kill
from tests.support import runs

LIMIT = 16_384  # bytes of a file, less than a state takes
OLDER = "--config.checkpoint.on_damage=older"


def full_disk(arguments: list[str], cache: Path) -> subprocess.Popen:
    """The main command where no file can grow beyond LIMIT, compiled programs apart."""
    limits = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "musicssl.main", *arguments],
        cwd=runs.ROOT, env=os.environ | kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=limits,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files of the committed checkpoints."""
    steps = (folder / "checkpoints" / str(x) for x in steps_on_disk(folder))
    files = [path for step in steps for path in sorted(step.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path: Path, chance: random.Random) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def harm_checkpoint(workdir: Path, kind: str, chance: random.Random) -> None:
    """Flip a bit of, or delete, a file of the newest checkpoint's state."""
    step = workdir / "checkpoints" / str(steps_on_disk(workdir)[-1])
    files = [x for x in sorted((step / "state").rglob("*")) if x.is_file() and x.stat().st_size]
    files = [x for x in files if x.name != "commit_success.txt"]  # a note; nothing reads its text
    victim = chance.choice(files)
    victim.unlink() if kind == "deleted file" else flip(victim, chance)


def one_run(study: kill.Study, seed: int, kind: str) -> list[str]:
    """What went wrong with a run that is harmed in one way."""
    chance, name, cache = random.Random(seed), f"{kind}-{seed}".replace(" ", "-"), "cache"
    workdir, shards = study.root / name, sorted(study.data_dir.rglob("*.tfrecord*"))
    study.live(name, cache).kill_in("saving", chance, study.startup)
    life = study.live(name, cache)
    while life.process.poll() is None and len(steps_on_disk(workdir)) < 2:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))
    life.process.kill()
    life.end()
    kept = {path: path.read_bytes() for path in shards}
    extra: list[str] = []
    if kind == "damaged shard":
        for path in shards:  # every record of both, so that the next batch meets one
            content = bytearray(path.read_bytes())
            content[len(content) // 10 :: 997] = bytes(len(content[len(content) // 10 :: 997]))
            path.write_bytes(content)
    elif kind != "full disk":
        harm_checkpoint(workdir, kind, chance)
        extra = [OLDER]
    before = contents(workdir)
    start = full_disk if kind == "full disk" else runs.start
    arguments = runs.flags(study.config, workdir, study.data_dir, study.leaves)
    refused = start(arguments, study.root / cache)
    _, errors = refused.communicate()
    lines = [x for x in errors.splitlines() if x.startswith("musicssl: ")]
    wrong = []
    if refused.returncode != 2 or len(lines) != 1:
        wrong.append(f"exit code {refused.returncode}: {errors[-1500:]}")
    after = contents(workdir)
    if any(after.get(path) != digest for path, digest in before.items()):
        wrong.append("a checkpoint was changed")
    print(f"{kind}: {lines[0] if lines else errors[-300:]}", flush=True)
    for path, content in kept.items():
        path.write_bytes(content)
    last = runs.start([*arguments, *extra], study.root / cache)
    _, errors = last.communicate()
    if last.returncode:
        return [*wrong, f"mended, exit code {last.returncode}: {errors[-1500:]}"]
    return wrong + study.differences(workdir)


KINDS = ("full disk", "deleted file", "flipped bit", "damaged shard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, help="of each kind")
    parser.add_argument("--config", default=runs.MUSIC2VEC, choices=list(runs.OF_CONFIG))
    options = parser.parse_args()
    root, counts = Path(tempfile.mkdtemp(prefix="damaged-")), Counter()
    try:
        runs.write_clips(root / "data")
        study = kill.Study(options.config, root, runs.start)
        for seed in range(options.runs):
            for kind in KINDS:
                wrong = one_run(study, seed, kind)
                counts[f"{kind}, {'WRONG' if wrong else 'as it should be'}"] += 1
                if wrong:
                    print(f"{kind} {seed}: {wrong}", flush=True)
    finally:
        shutil.rmtree(root)
    print("\n".join(f"{count} {name}" for name, count in sorted(counts.items())))
    sys.exit(any("WRONG" in name for name in counts))


if __name__ == "__main__":
    main()
