"""Processes forked from one that has the imports done, which takes seconds less for each.

They are processes like others: with devices of their own, for a signal to end at any moment.
"""

import atexit
import gc
import io
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import jax

from tests.support import compiling

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("clu.metric_writers", "data_pipelines.batches", "ml_collections.config_flags"),
        *("musicssl.objectives.codebook", "musicssl.probing.evaluate", "musicssl.probing.report"),
        "musicssl.training.loop",
    ]
)

LONGEST = 900  # seconds that a process may live: one that hangs fails its test, not the whole run


class Process:
    """A function called in a process of its own, with the methods of subprocess.Popen.

    Args:
      cache: the folder of compiled programs, if any are kept.
    """

    def __init__(
        self, function: Callable, *arguments: object, devices: int = 1, cache: Path | None = None
    ):
        ends = [FORKS.Pipe(duplex=False) for _ in range(2)]
        self.stdout, self.stderr = (os.fdopen(os.dup(read.fileno())) for read, _ in ends)
        environment = dict(os.environ)  # as it is here and now
        given = (*(write for _, write in ends), environment, devices, cache, function, arguments)
        self.process = FORKS.Process(target=live, args=given)
        self.process.start()
        for end in (*ends[0], *ends[1]):
            end.close()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """How it ended; None where it has not within that many seconds."""
        self.process.join(timeout)
        return self.process.exitcode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def communicate(self) -> tuple[str, str]:
        """Its output and its errors, when it has ended."""
        with ThreadPoolExecutor(1) as pool:
            errors = pool.submit(self.stderr.read)
            output = self.stdout.read()
        self.wait()
        return output, errors.result()


class Job:
    """Processes of the main command that train as one, with the methods of a single process.

    Its output is that of process 0, its errors those of all, and its exit code the first that is
    no 0, by the numbers of the processes.
    """

    def __init__(
        self, count: int, arguments: list[str], cache: Path, devices: int = 1, pause: float = 0
    ):
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        joint = [f"--coordinator=localhost:{port}", f"--processes={count}", "--heartbeat=20"]
        self.members = [
            start([*arguments, *joint, f"--process={number}"], cache, devices, pause)
            for number in range(count)
        ]
        self.stdout = self.members[0].stdout
        others = [member.stdout for member in self.members[1:]]
        pool = ThreadPoolExecutor(2 * count)  # a pipe that is full would hold its process
        self.errors = [pool.submit(member.stderr.read) for member in self.members]
        self.rest = [pool.submit(output.read) for output in others]
        pool.shutdown(wait=False)

    @property
    def stderr(self) -> io.StringIO:
        return io.StringIO("".join(errors.result() for errors in self.errors))

    @property
    def returncode(self) -> int | None:
        codes = [member.returncode for member in self.members]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        for member in self.members:
            member.wait()
        return self.returncode

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    def send_signal(self, number: int) -> None:
        for member in self.members:
            member.send_signal(number)

    def communicate(self) -> tuple[str, str]:
        """Its output and its errors, when it has ended."""
        output, errors = self.stdout.read(), self.stderr.read()
        self.wait()
        return output, errors


def live(
    output: Connection,
    errors: Connection,
    environment: dict[str, str],
    devices: int,
    cache: Path | None,
    function: Callable,
    arguments: tuple,
) -> None:
    """What a new process does."""
    gc.freeze()  # what was imported stays, and is not looked through again
    for descriptor, pipe in ((1, output), (2, errors)):
        os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    signal.alarm(LONGEST)
    os.environ.clear()
    os.environ.update(environment)
    os.environ["XLA_FLAGS"] = compiling.xla_flags(devices)
    jax.config.update("jax_platforms", "cpu")
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def main(pause: float, *arguments: str) -> None:
    """What `python -m musicssl.main` with these arguments does, with a pause at each batch."""
    from data_pipelines import batches

    iterate = batches.iterate

    def slowly(*given: object, **named: object) -> Iterator[dict]:
        for batch in iterate(*given, **named):
            time.sleep(pause)
            yield batch

    if pause:
        batches.iterate = slowly
    module("musicssl.main", *arguments)


def impatient(*arguments: str) -> None:
    """The main command, which does not wait for the end of another job."""
    from musicssl import host

    host.PATIENCE = 0.0
    main(0, *arguments)


def module(name: str, *arguments: str) -> None:
    """What `python -m name` with these arguments does."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def limited(name: str, *arguments: str) -> None:
    """What `python -m name` does where no file may have more than 20,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    module(name, *arguments)


def start(arguments: list[str], cache: Path, devices: int = 1, pause: float = 0) -> Process:
    """Start the main command.

    Args:
      pause: seconds that each batch takes at least, for a signal to find the run at work.
    """
    return Process(main, pause, *arguments, devices=devices, cache=cache)


def complete(arguments: list[str], cache: Path, devices: int = 1) -> tuple[int, str, str]:
    """Run the main command to its end: exit code, output, errors."""
    process = start(arguments, cache, devices)
    said = process.communicate()
    return process.returncode, *said
