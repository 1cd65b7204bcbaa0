"""Several processes that train as one: how they meet, and how they end when one is lost.

All processes do the same work and meet in collectives, so one that dies or hangs would block the
others forever. Instead, each of them ends within a bounded time, in one of three ways:

- a collective breaks, or JAX's coordination service reports a death: exit code EXIT_PEER;
- JAX itself ends a process when its peers' heartbeats stop for --heartbeat seconds: SIGABRT;
- no step is taken for --stall seconds, though all are alive: exit code EXIT_PEER, after what every
  thread was doing has been printed on stderr.

None of these ways saves: whoever launched the job starts it again, and it resumes from the newest
checkpoint.
"""

import contextlib
import errno
import faulthandler
import importlib.util
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, cast

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from musicssl import command
from musicssl.command import EXIT_PEER, PASSING, first_line

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    os.environ.get("JAX_COORDINATOR_ADDRESS"),
    "host:port of process 0, unless the environment of a TPU or of Slurm gives it",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", os.environ.get("JAX_NUM_PROCESSES"), "Number of processes; 1 means this one alone"
)
_PROCESS = flags.DEFINE_integer(
    "process", os.environ.get("JAX_PROCESS_ID"), "This process's number, counted from 0"
)
_MEET = flags.DEFINE_integer("meet", 300, "Seconds that processes wait for each other at start")
_HEARTBEAT = flags.DEFINE_integer("heartbeat", 100, "Seconds of silence that mean a dead process")
_STALL = flags.DEFINE_integer("stall", 900, "Seconds without a step after which the job is ended")

_LOST = (  # words in errors that another process's end causes
    "Gloo",
    "heartbeat",
    "oordination service",
    "by peer",
    "NCCL",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "arrier",
)
TICK = 1.0  # seconds
_STDERR = 2  # the descriptor; sys.stderr may have been replaced by something that is no file
_LONGEST = 2000  # bytes of a reason that process 0 tells the others
_AGREED = (None, 0, 3, 75)  # exit codes that all processes reach together
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def start() -> None:
    """Join the job's other processes, if there are any. JAX must not have been used before.

    Raises:
      ValueError: the flags contradict each other, or name no job.
    """
    if _HEARTBEAT.value < 1 or _STALL.value < 1 or _MEET.value < 1:
        raise ValueError("--heartbeat, --stall and --meet are in seconds: use 1 or more")
    job = described()
    if job is None:
        return

    # a timer, and then the meeting itself
    reason = f"not all processes arrived within {_MEET.value} s"
    late = threading.Timer(_MEET.value, leave, (EXIT_PEER, reason))
    late.start()  # JAX itself would end the process with a page of addresses
    try:
        jax.distributed.initialize(
            **job,
            initialization_timeout=_MEET.value + 60,
            heartbeat_timeout_seconds=_HEARTBEAT.value,
        )
    except (ValueError, OSError) as error:
        raise ValueError(
            "this looks like one of several processes, but it cannot find the others "
            f"({first_line(error)}): give --coordinator, --processes and --process, or "
            "--processes=1"
        ) from error
    finally:
        late.cancel()


def described() -> dict | None:
    """Return the arguments of jax.distributed.initialize; None for a single process."""
    if _PROCESSES.value == 1:
        return None
    if _COORDINATOR.value:
        if _PROCESSES.value is None or _PROCESS.value is None:
            raise ValueError("--coordinator also needs --processes and --process")
        return {
            "coordinator_address": _COORDINATOR.value,
            "num_processes": _PROCESSES.value,
            "process_id": _PROCESS.value,
        }
    if _PROCESSES.value is not None or _PROCESS.value is not None:
        raise ValueError("--processes and --process also need --coordinator=HOST:PORT")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _slurm()
    return {} if _on_a_pod() else None


def _slurm() -> dict:
    """Return this process's GPUs if Slurm runs one task per node: JAX expects one per GPU."""
    environment = os.environ
    if environment["SLURM_STEP_NUM_TASKS"] != environment.get("SLURM_STEP_NUM_NODES"):
        return {}
    gpus = int(environment.get("SLURM_GPUS_ON_NODE", 0))
    return {"local_device_ids": list(range(gpus))} if gpus else {}


def _on_a_pod() -> bool:
    """Return whether a TPU's environment describes the job, on Kubernetes or on a TPU VM.

    JAX queries a TPU VM's metadata itself; it sets TPU_SKIP_MDS_QUERY if it sees no chip.
    """
    environment = os.environ
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    if "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return True
    chips = "TPU_SKIP_MDS_QUERY" not in environment and environment.get("JAX_PLATFORMS") != "cpu"
    return chips and importlib.util.find_spec("libtpu") is not None


def as_flags() -> list[str]:
    """Return this process's flags, for a command that replaces it."""
    every = (_COORDINATOR, _PROCESSES, _PROCESS, _MEET, _HEARTBEAT, _STALL)
    given = [flag.name for flag in every if flags.FLAGS[flag.name].present]
    return [f"--{name}={flags.FLAGS[name].value}" for name in given]


def meet(what: str) -> None:
    """Wait until all processes are here.

    Call this before the first run of a program that exchanges data, if one process may have to
    compile it while another finds it compiled: on CPU devices, Gloo waits only 30 s for the first
    exchange.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def first_does(work: Callable[[], object]) -> None:
    """Let process 0 do what has to be done only once, while the others wait.

    Raises:
      ValueError: in every process, if process 0 met a ValueError or an OSError.
      OSError: in every process, if that was a storage error that may pass.
    """
    if jax.process_count() == 1:
        work()
        return
    meet("before the first does it")
    said = ""
    if jax.process_index() == 0:
        try:
            work()
        except (ValueError, OSError) as error:
            said = f"{getattr(error, 'errno', 0) or 0} {str(error) or repr(error)}"
    if not (said := _from_first(said)):
        return
    number, _, reason = said.partition(" ")
    if int(number) not in PASSING:
        raise ValueError(reason)
    passing = OSError(reason)
    passing.errno = int(number)
    raise passing


def first_says(answer: Callable[[], str | None]) -> str | None:
    """Return in every process what process 0 finds, so that only one of them looks.

    Raises:
      ValueError, OSError: as `first_does`.
    """
    found: str | None = None

    def look() -> None:
        nonlocal found
        found = answer()

    first_does(look)
    return found if jax.process_count() == 1 else _from_first(found or "") or None


def _from_first(text: str) -> str:
    """Return process 0's text in every process, up to _LONGEST bytes."""
    said = np.frombuffer(text.encode()[:_LONGEST].ljust(_LONGEST, b"\0"), np.uint8)
    said = np.asarray(multihost_utils.broadcast_one_to_all(said), np.uint8)
    return said.tobytes().rstrip(b"\0").decode(errors="ignore")


def all_say(yes: bool) -> bool:
    """Return whether all processes say yes."""
    return not _who_deny(yes)


def _who_deny(yes: bool) -> list[int]:
    """Return the processes that say no, ascending."""
    if jax.process_count() == 1:
        return [] if yes else [0]
    said = np.asarray(multihost_utils.process_allgather(np.array(yes)))
    return np.flatnonzero(~said.reshape(-1)).tolist()


def check_shared(folder: Path) -> None:
    """Refuse a folder that not all processes share, with the same error in all of them.

    Process 0 writes a token there, which all read: separate folders of the same name and content
    would pass any other test. If process 0 may not write there, nothing is compared.

    Raises:
      ValueError: in every process, if one of them cannot read what process 0 wrote.
      OSError: in every process, if process 0 met a storage error that may pass.
    """
    if jax.process_count() == 1:
        return

    def write() -> str:
        token = secrets.token_hex(8)
        try:
            (folder / f".token-{token}").write_text(token)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            return ""
        return token

    token = first_says(write)
    if not token:
        return
    path = folder / f".token-{token}"  # a new name, which no machine can have cached
    try:
        seen = path.read_text() == token
    except OSError as error:
        if error.errno in PASSING:
            raise
        seen = False
    blind = _who_deny(seen)
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    if blind:
        if jax.process_index() == 0:
            time.sleep(TICK)  # the others meet through this process, so it leaves last
        raise ValueError(
            f"process {blind[0]} of {jax.process_count()} cannot see what process 0 writes to "
            f"{folder}: use a --workdir that all machines share"
        )


@contextlib.contextmanager
def together() -> Iterator[Callable[[], None]]:
    """End this process at once if it fails while others would wait for it, or it for them.

    Yields:
      a function to call at every step; after its first call, --stall seconds without another call
      end the process.
    """
    watch = _Watch()
    try:
        yield watch.alive
    except SystemExit as leaving:
        if jax.process_count() > 1 and leaving.code not in _AGREED:
            leave(_exit_code(leaving))
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        of_storage = isinstance(error, OSError) and error.errno is not None
        if not of_storage and any(word in str(error) for word in _LOST):
            leave(EXIT_PEER, f"{_here()} lost another process ({first_line(error)})")
        if isinstance(error, (ValueError, OSError)):  # callers print these in one line
            raise
        traceback.print_exc()
        leave(1)
    finally:
        watch.stop()


def _exit_code(leaving: SystemExit) -> int:
    """Return the code of sys.exit; 1 if it was given a message, which is printed."""
    if isinstance(leaving.code, str):
        print(leaving.code, file=sys.stderr)
        return 1
    return leaving.code or 0


class _Watch:
    """A thread that ends the process if it gets no sign of life for --stall seconds."""

    def __init__(self) -> None:
        self.limit = cast(float, flags.FLAGS["stall"].value)  # also where no flags were parsed
        self.seconds = 0.0  # how long the process has run, without time that the machine slept
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def alive(self) -> None:
        self.seconds = 0.0
        if self.thread is None and jax.process_count() > 1:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()

    def run(self) -> None:
        while not self.stopped.wait(TICK):
            self.seconds += TICK
            if self.seconds > self.limit:
                faulthandler.dump_traceback(_STDERR, all_threads=True)
                leave(EXIT_PEER, f"{_here()} took no step for {self.limit} s: some process hangs")

    def stop(self) -> None:
        self.stopped.set()


def leave(code: int, reason: str = "") -> NoReturn:
    """End this process without waiting for the others, which sys.exit would do."""
    if reason:
        print(f"musicssl: {reason}: start all processes again to resume", file=sys.stderr)
    command.leave(code)


def _here() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"
