"""Runs the stages of a long job: commands in the order of their needs, several at a time.

A stage is complete when its product exists and was not made by another command; it is not run
again. Each command's output goes to <folder>/logs; `stage_records` writes down what was run.
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

_LOOK_EVERY = 30  # seconds between lines about what is running
_PREEMPTED = 75  # saved when asked to end: the same command resumes


class Stage(NamedTuple):
    """A command and its product.

    name: kind/what; stages of one kind take about the same time. command: its first word is python.
    there: tells whether the product exists. needs: the names of stages that have to come first.
    last: whether it runs after all others, even if they failed, and again if any has run since.
    """

    name: str
    command: tuple[str, ...]
    there: Callable[[], bool]
    needs: tuple[str, ...] = ()
    last: bool = False


def complete(stage: Stage, folder: Path) -> bool:
    """Tell whether a stage's own command made its product, and after the others if it is last."""
    record = stage_records.read(folder, stage.name)
    if record and record["command"] != list(stage.command):
        return False
    if stage.last:
        own = stage_records.path_of(folder, stage.name)
        others = [path for path in own.parent.glob("*.json") if path != own]
        if not record or any(path.stat().st_mtime > own.stat().st_mtime for path in others):
            return False
    return stage.there()


def without_complete(
    chosen: Sequence[Stage], all_stages: Sequence[Stage], folder: Path
) -> list[Stage]:
    """Return the chosen stages with their needs, except needs that are complete.

    Raises:
      ValueError: a stage needs one that is neither chosen nor complete.
    """
    others = {stage.name: complete(stage, folder) for stage in all_stages if stage not in chosen}
    left = []
    for stage in chosen:
        lost = [name for name in stage.needs if not others.get(name, True)]
        if lost:
            raise ValueError(f"{stage.name} needs {lost[0]}, which is not complete: choose it too")
        needs = tuple(name for name in stage.needs if name not in others)
        left.append(stage._replace(needs=needs))
    return left


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold the folder for this process and the processes that it starts, even if they outlive it.

    Raises:
      ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{folder} is in use by a study, or by a stage that outlived one"
            ) from None
        yield lock.fileno()


def run(stages: Sequence[Stage], folder: Path, jobs: int, commit: Callable[[], str]) -> int:
    """Run the incomplete stages; return 0, or the exit code of the first command that failed.

    Args:
      jobs: how many stages run at a time.
      commit: returns the commit of the code; called when a stage begins.

    Raises:
      ValueError: the folder is in use.
    """
    left = [stage for stage in stages if not complete(stage, folder)]
    if left:  # stages that sum up the others have to be run again
        left = [stage for stage in stages if stage.last or stage in left]
    if not left:
        _say(f"all {len(stages)} stages are complete")
        return 0
    with alone(folder) as lock:
        return _Work(stages, left, folder, jobs, commit, lock).run()


class _Work:
    """The running stages and their processes."""

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
        self.running: dict[str, tuple[stage_records.StageAttempt, subprocess.Popen]] = {}
        self.asked = False
        self.slots: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for job in range(jobs):  # each job has its own cores
            self.slots.put(cores[job::jobs] or cores)

    def run(self) -> int:
        """Do as the function `run` says, and pass requests to end on to the commands."""
        asking = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        heard = [x for x in asking if signal.getsignal(x) != signal.SIG_IGN]  # as under nohup
        before = {x: signal.signal(x, self._ask) for x in heard}
        try:
            return self._run_all()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run_all(self) -> int:
        """Run the stages until none can be started, or the job is asked to end."""
        done = self.total - len(self.left)
        _say(f"{done} of {self.total} stages are complete{self._estimate()}")

        futures: dict[concurrent.futures.Future, Stage] = {}
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            while True:
                # Start stages while there are free jobs and stages that can run.
                while not self.asked and len(futures) < self.jobs:
                    stage = self._next(futures)
                    if stage is None:
                        break
                    self.left.remove(stage)
                    futures[pool.submit(self._execute, stage)] = stage
                if not futures:
                    break

                # Wait for one to end, or say what is running.
                ended, _ = concurrent.futures.wait(
                    futures, _LOOK_EVERY, concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    self._report_end(futures.pop(future), *future.result())
                if not ended:
                    self._report_running()

        if self.asked:
            _say("asked to end: run the same command to resume")
            return _PREEMPTED
        for stage in self.left:
            _say(f"{stage.name} was left out, since a stage that it needs was not completed")
        return next(iter(self.failed.values()), 1 if self.left else 0)

    def _next(self, futures: dict) -> Stage | None:
        """Return the first stage whose needs are complete; None if there is none."""
        open_names = {stage.name for stage in (*self.left, *futures.values())} | self.failed.keys()
        for stage in self.left:
            if not stage.last and not open_names & {*stage.needs}:
                return stage
        return None if futures else next((stage for stage in self.left if stage.last), None)

    def _execute(self, stage: Stage) -> tuple[int, float]:
        """Run a command to its end; return its exit code and the seconds that it took."""
        log = self._log(stage.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        _say(f"{stage.name} ...")

        # The command, on its own cores.
        cores = self.slots.get()
        attempt = stage_records.StageAttempt(self.folder, stage.name, stage.command, self.commit())
        with log.open("a") as output:
            output.write(f"$ {' '.join(stage.command)}\n")
            output.flush()
            process = subprocess.Popen(
                [sys.executable, *stage.command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process, which asks the others to end
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

        # Its record: a command that succeeds without making its product has failed too.
        if not code and not stage.there():
            code = 1
            _say(f"{stage.name} ended without making its result: see {log}")
        cpu_seconds = used.ru_utime + used.ru_stime
        if code:
            attempt.failed(cpu_seconds)
        else:
            attempt.complete(cpu_seconds)
        return code, attempt.seconds

    def _report_end(self, stage: Stage, code: int, seconds: float) -> None:
        """Say how a stage ended, and note a failure."""
        if not code:
            done = self.total - len(self.left) - len(self.running) - len(self.failed)
            took = f"{stage.name} complete in {_clocked(seconds)}"
            _say(f"{took}: {done} of {self.total}{self._estimate()}")
            return
        if self.asked:
            return
        self.failed[stage.name] = code
        log = self._log(stage.name)
        _say(f"{stage.name} ended with exit code {code}: {log} ends with: {_last_line(log)}")

    def _report_running(self) -> None:
        """Say how far each running stage is, by the last line of its log."""
        for name in list(self.running):
            _say(f"{name}: {_last_line(self._log(name))}")

    def _estimate(self) -> str:
        """Say how long the rest will take, by the times of stages of the same kind."""
        taken: dict[str, list[float]] = {}
        for record in stage_records.read_all(self.folder):
            taken.setdefault(kind(record["stage"]), []).append(record["seconds"])
        means = {name: sum(seconds) / len(seconds) for name, seconds in taken.items()}

        names = [stage.name for stage in self.left] + list(self.running)
        known = [means[kind(name)] for name in names if kind(name) in means]
        if not known:
            return ""
        past = sum(attempt.seconds for attempt, _ in self.running.values())
        rest = max(sum(known) - past, 0) / self.jobs
        unknown = len(names) - len(known)
        more = f", plus {unknown} stages of other kinds" if unknown else ""
        return f", about {_clocked(rest)} left{more}"

    def _ask(self, *_signal: object) -> None:
        """On a signal, ask every command to end, and start no more."""
        self.asked = True
        for _, process in list(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name.replace('/', '-')}.log"


def kind(name: str) -> str:
    """Return the kind of a stage by its duration: probes of a data set, trainings of a family."""
    parts = name.split("/")
    return f"{parts[0]}/{parts[-1]}" if parts[0] == "probe" else name.partition("-")[0]


def _last_line(log: Path) -> str:
    """Return the end of a log, which may be the last state of a progress bar."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line]
    return lines[-1][-160:] if lines else "nothing yet"


def _clocked(duration: float) -> str:
    """Spell seconds as hours, minutes and seconds."""
    minutes, seconds = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # if nobody reads it any more, it is dropped
        print(f"study: {line}", file=sys.stderr, flush=True)
