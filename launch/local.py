#!/usr/bin/env python3
"""Runs a job of several processes on this machine's CPU, to rehearse one on several machines.

    launch/local.py --processes=2 --devices=4 -- python -m musicssl.main --config=...

The processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
Each line of their output begins with the process's number. When one ends with an error, the others
have --grace seconds to notice and end, and then they are killed. The exit code is that of the first
process to end with an error (128 + n for signal n). --restarts=K starts all of them again, up to
K times, after an error that is not final. SIGTERM, a hang-up and Ctrl-C ask every process to end;
a second Ctrl-C kills them.
"""

import argparse
import contextlib
import functools
import io
import math
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

_FINAL = (0, 2, 3, 130)  # complete, refused, stopped, interrupted: a restart would not help
_BAR = 10.0  # seconds between printed states of a progress bar


def main() -> int:
    """Run the job that the command line describes, or print it; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=_positive, default=2)
    add("--devices", type=_positive, default=1, help="devices of each process (1)")
    add("--restarts", type=int, default=0, help="the most restarts after errors (0)")
    add("--grace", type=float, default=120, help="seconds that the others have to end (120)")
    add("--dry_run", "--dry-run", action="store_true", help="print the commands, run nothing")
    add("command", nargs="+", help="after --, what each process runs")
    options = parser.parse_args()

    if options.dry_run:
        for number in range(options.processes):
            settings = _environment(options, number, "PORT").items()
            print(shlex.join(["env", *(f"{k}={v}" for k, v in settings), *options.command]))
        return 0
    return _run(options)


def _positive(text: str) -> int:
    """Read a number of 1 or more; argparse refuses any other text with this message."""
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")


def _environment(options: argparse.Namespace, number: int, port: int | str) -> dict[str, str]:
    """Return the variables that a process's environment has in addition to this one's."""
    devices = f"--xla_force_host_platform_device_count={options.devices}"
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(number),
    }


def _run(options: argparse.Namespace) -> int:
    """Run the job to its end, including restarts; return the exit code."""
    asked: list[int] = []  # the signals received so far
    job: list[subprocess.Popen] = []

    def ask(number: int = signal.SIGTERM, *_: object) -> None:
        again = number == signal.SIGINT and number in asked
        asked.append(number)
        for process in job:
            if again:
                _kill(process)
            else:
                process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores a hang-up
            signal.signal(number, ask)

    left = options.restarts
    while True:
        job[:], readers = _start(options)
        if asked:  # while they were starting
            ask()
        first, code = _wait(job, options.grace)
        for reader in readers:
            reader.join()
        if not code:
            return 0
        why = ", as asked" if asked else ""
        _say(f"process {first} ended first, with {_describe_end(code)}{why}")
        if code in _FINAL or asked or not left:
            return code
        _say(f"starting again ({left} restarts left)")
        left -= 1


def _start(options: argparse.Namespace) -> tuple[list[subprocess.Popen], list[threading.Thread]]:
    """Start the processes, each in its own session, and the threads that print their output."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

    processes = [
        subprocess.Popen(
            options.command,
            env=os.environ | _environment(options, number, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for number in range(options.processes)
    ]

    readers = []
    for number, process in enumerate(processes):
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            readers.append(threading.Thread(target=_copy_lines, args=(number, source, sink)))
    for reader in readers:
        reader.start()
    return processes, readers


def _copy_lines(number: int, source: IO[bytes], sink: IO[str]) -> None:
    """Print lines after the process's number; print a progress bar every _BAR seconds."""
    moved = -math.inf
    for line in io.TextIOWrapper(source, errors="replace", newline=""):  # "\r" ends one too
        # Leave out what Gloo prints for every collective; its threads may mix up their lines.
        if "[Gloo] Rank" in line or "peer ranks" in line or not line.strip():
            continue
        if line.endswith("\r"):
            if time.monotonic() < moved + _BAR:
                continue
            moved = time.monotonic()
        with contextlib.suppress(OSError):  # if nobody reads it any more, it is dropped
            sink.write(f"[{number}] {line.rstrip()}\n")
            sink.flush()


def _wait(job: list[subprocess.Popen], grace: float) -> tuple[int, int]:
    """Wait for all processes, and kill those that outlive an error by `grace` seconds.

    Returns:
      The first process that ended with an error, and its exit code; 0, 0 without one.
    """
    ends: queue.Queue[tuple[int, int]] = queue.Queue()  # in the order in which they happen
    for number, process in enumerate(job):
        target = functools.partial(_put_end, number, process, ends)
        threading.Thread(target=target, daemon=True).start()

    first, code, latest = 0, 0, math.inf
    for _ in job:
        try:
            number, end = _take(ends, latest)
        except queue.Empty:
            _say(f"killing the processes that did not end within {grace:g} s")
            for process in job:
                _kill(process)
            number, end = ends.get()
        if end and not code:
            first, code, latest = number, end, time.monotonic() + grace
    return first, code if code >= 0 else 128 - code


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _take(ends: queue.Queue, latest: float) -> tuple[int, int]:
    """Return the next end, a process's number and its exit code.

    It wakes up every second, since a signal that another thread receives does not wake it.

    Raises:
      queue.Empty: none came until the latest time.
    """
    while True:
        try:
            return ends.get(timeout=min(1, max(0, latest - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= latest:
                raise


def _put_end(number: int, process: subprocess.Popen, ends: queue.Queue) -> None:
    """Wait for a process and put its number and exit code into the queue."""
    ends.put((number, process.wait()))


def _describe_end(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"local.py: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
