"""Stages of a long job: commands in the order of their needs, several at a time, none done twice.

A stage is complete when its product is there and no other command has made it. Each command's
output goes to <folder>/logs; what was run is written down by `stage_records`.
"""

import concurrent.futures
import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from launch import stage_records

LOOK_EVERY = 30  # seconds between lines about what is running
PREEMPTED = 75  # saved when asked to end: the same command goes on


class Stage(NamedTuple):
    """A command and what it makes.

    name: kind/what, kinds take about as long. command: its first word is python. there: whether
    its product is. needs: stages before it. last: runs after all others, whatever became of them,
    and again when any of them has run since.
    """

    name: str
    command: tuple[str, ...]
    there: Callable[[], bool]
    needs: tuple[str, ...] = ()
    last: bool = False


def complete(stage: Stage, folder: Path) -> bool:
    noted = stage_records.read(folder, stage.name)
    if noted and noted["command"] != list(stage.command):
        return False
    if stage.last:
        mine = stage_records.path_of(folder, stage.name)
        others = [path for path in mine.parent.glob("*.json") if path != mine]
        if not noted or any(path.stat().st_mtime > mine.stat().st_mtime for path in others):
            return False
    return stage.there()


def without_complete(chosen: Sequence[Stage], every: Sequence[Stage], folder: Path) -> list[Stage]:
    """The chosen stages without those of their needs that are complete.

    Raises:
      ValueError: a stage needs one that is neither chosen nor complete.
    """
    others = {x.name: complete(x, folder) for x in every if x not in chosen}
    for stage in chosen:
        if lost := [name for name in stage.needs if not others.get(name, True)]:
            raise ValueError(f"{stage.name} needs {lost[0]}, which is not complete: choose it too")
    return [x._replace(needs=tuple(n for n in x.needs if n not in others)) for x in chosen]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Holds the folder for this process and those that it starts, even if they outlive it.

    Raises:
      ValueError: another holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder} is in use by a study or a stage that one left") from None
        yield lock.fileno()


def run(stages: Sequence[Stage], folder: Path, jobs: int, commit: Callable[[], str]) -> int:
    """Runs what is not complete; returns 0, or the exit code of the first command that failed.

    Args:
      jobs: stages at a time. commit: tells what the code is at when a stage begins.

    Raises:
      ValueError: the folder is in use.
    """
    left = [stage for stage in stages if not complete(stage, folder)]
    if left:  # what sums up the others has to be made again
        left = [stage for stage in stages if stage.last or stage in left]
    if not left:
        say(f"all {len(stages)} stages are complete")
        return 0
    with alone(folder) as lock:
        return Work(stages, left, folder, jobs, commit, lock).run()


class Work:
    """The stages under way, and the processes that run them."""

    def __init__(
        self,
        stages: Sequence[Stage],
        left: Sequence[Stage],
        folder: Path,
        jobs: int,
        commit: Callable[[], str],
        lock: int,
    ):
        self.total, self.folder, self.commit, self.lock = len(stages), folder, commit, lock
        self.jobs = jobs
        self.left = list(left)
        self.failed: dict[str, int] = {}
        self.running: dict[str, tuple[stage_records.Attempt, subprocess.Popen]] = {}
        self.asked = False
        self.slots: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for job in range(jobs):  # each job has cores of its own
            self.slots.put(cores[job::jobs] or cores)

    def run(self) -> int:
        """As `run`."""
        before = {x: signal.signal(x, self.ask) for x in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self.work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def work(self) -> int:
        done = self.total - len(self.left)
        say(f"{done} of {self.total} stages are complete{self.estimate()}")
        futures: dict[concurrent.futures.Future, Stage] = {}
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            while True:
                while not self.asked and len(futures) < self.jobs and (stage := self.next(futures)):
                    self.left.remove(stage)
                    futures[pool.submit(self.execute, stage)] = stage
                if not futures:
                    break
                ended, _ = concurrent.futures.wait(
                    futures, LOOK_EVERY, concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    self.tell(futures.pop(future), *future.result())
                if not ended:
                    self.look()
        if self.asked:
            say("asked to end: run the same command to go on")
            return PREEMPTED
        for stage in self.left:
            say(f"left out: {stage.name}, since what it needs did not complete")
        return next(iter(self.failed.values()), 1 if self.left else 0)

    def next(self, futures: dict) -> Stage | None:
        """The first stage whose needs are complete."""
        open_names = {stage.name for stage in (*self.left, *futures.values())} | self.failed.keys()
        for stage in self.left:
            if not stage.last and not open_names & {*stage.needs}:
                return stage
        return None if futures else next((stage for stage in self.left if stage.last), None)

    def execute(self, stage: Stage) -> tuple[int, float]:
        """Runs a command to its end: exit code, seconds."""
        log = self.log(stage.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        say(f"{stage.name} ...")
        cores = self.slots.get()
        attempt = stage_records.Attempt(self.folder, stage.name, stage.command, self.commit())
        with log.open("a") as output:
            output.write(f"$ {' '.join(stage.command)}\n")
            output.flush()
            process = subprocess.Popen(
                [sys.executable, *stage.command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which asks the others to end
                pass_fds=[self.lock],
            )
            if cores:
                os.sched_setaffinity(process.pid, cores)
            self.running[stage.name] = attempt, process
            if self.asked:
                process.terminate()
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        del self.running[stage.name]
        self.slots.put(cores)
        if not code and not stage.there():
            code = 1
            say(f"{stage.name} ended without its product: see {log}")
        (attempt.failed if code else attempt.complete)(used.ru_utime + used.ru_stime)
        return code, attempt.seconds

    def tell(self, stage: Stage, code: int, seconds: float) -> None:
        """A line about a stage that has ended."""
        if not code:
            done = self.total - len(self.left) - len(self.running) - len(self.failed)
            took = f"{stage.name} complete in {clocked(seconds)}"
            say(f"{took}: {done} of {self.total}{self.estimate()}")
            return
        if self.asked:
            return
        self.failed[stage.name] = code
        log = self.log(stage.name)
        say(f"{stage.name} ended with exit code {code}: {log} ends with: {last_line(log)}")

    def look(self) -> None:
        for name in list(self.running):
            say(f"{name}: {last_line(self.log(name))}")

    def estimate(self) -> str:
        """How long the rest takes, from what stages of the same kind have taken."""
        taken: dict[str, list[float]] = {}
        for noted in stage_records.every(self.folder):
            taken.setdefault(kind(noted["stage"]), []).append(noted["seconds"])
        names = [stage.name for stage in self.left] + list(self.running)
        known = [sum(taken[kind(x)]) / len(taken[kind(x)]) for x in names if kind(x) in taken]
        past = sum(attempt.seconds for attempt, _ in self.running.values())
        rest = max(sum(known) - past, 0) / self.jobs
        if not known:
            return ""
        unknown = len(names) - len(known)
        more = f" and {unknown} stages unlike these" if unknown else ""
        return f", about {clocked(rest)} left{more}"

    def ask(self, *_) -> None:
        self.asked = True
        for _, process in list(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name.replace('/', '-')}.log"


def kind(name: str) -> str:
    """What a stage's time is guessed from: probes of one data set, trainings of one family."""
    parts = name.split("/")
    return f"{parts[0]}/{parts[-1]}" if parts[0] == "probe" else name.partition("-")[0]


def last_line(log: Path) -> str:
    """The end of a log, the last state of a progress bar too."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        text = file.read().decode(errors="replace")
    lines = [x.strip() for x in text.replace("\r", "\n").splitlines() if x.strip()]
    return lines[-1][-160:] if lines else "nothing yet"


def clocked(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def say(line: str) -> None:
    print(f"study: {line}", file=sys.stderr, flush=True)
