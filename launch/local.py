#!/usr/bin/env python3
"""A job of several processes on this machine, on CPU devices: the rehearsal of several machines.

    launch/local.py --processes=2 --devices=4 -- python -m musicssl.main --config=...

The processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
Each line of their output has the process's number before it. When one ends with an error, the
others have --grace seconds to find out for themselves, then they are killed; the exit code is that
of the first to end (128 + n for signal n). --restarts=K starts all of them again up to K times
after an error that is not final. SIGTERM, which Ctrl-C is too, goes on to every process.
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

FINAL = (0, 2, 3)  # complete, refused, stopped: starting again would change nothing
BAR = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=positive, default=2)
    add("--devices", type=positive, default=1, help="of each process")
    add("--restarts", type=int, default=0, help="at most so many after errors (0)")
    add("--grace", type=float, default=120, help="seconds to end by themselves (120)")
    add("--dry_run", "--dry-run", action="store_true", help="print the commands, run nothing")
    add("command", nargs="+", help="after --, what each process runs")
    options = parser.parse_args()
    if options.dry_run:
        for number in range(options.processes):
            settings = environment(options, number, "PORT").items()
            print(shlex.join(["env", *(f"{k}={v}" for k, v in settings), *options.command]))
        return 0
    return run(options)


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def environment(options: argparse.Namespace, number: int, port: int | str) -> dict[str, str]:
    """What a process's environment has beside this one's."""
    devices = f"--xla_force_host_platform_device_count={options.devices}"
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(number),
    }


def run(options: argparse.Namespace) -> int:
    """Run the job to its end, restarts included; returns the exit code."""
    asked: list[bool] = []
    job: list[subprocess.Popen] = []

    def ask(*_) -> None:
        asked.append(True)
        for process in job:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    left = options.restarts
    while True:
        job[:], readers = start(options)
        if asked:  # meanwhile
            ask()
        first, code = wait(job, options.grace)
        for reader in readers:
            reader.join()
        if not code:
            return 0
        say(f"process {first} ended first, with {named(code)}" + (", as asked" if asked else ""))
        if code in FINAL or asked or not left:
            return code
        say(f"starting again ({left} restarts left)")
        left -= 1


def start(options: argparse.Namespace) -> tuple[list[subprocess.Popen], list[threading.Thread]]:
    """The job's processes, each in a session of its own, and the threads that print for them."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = [
        subprocess.Popen(
            options.command,
            env=os.environ | environment(options, number, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for number in range(options.processes)
    ]
    readers = [
        threading.Thread(target=copy, args=(number, source, sink))
        for number, process in enumerate(processes)
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    return processes, readers


def copy(number: int, source: IO[bytes], sink: IO[str]) -> None:
    """Print lines with the process's number before them; a bar that moves, every BAR seconds."""
    moved = -math.inf
    for line in io.TextIOWrapper(source, errors="replace", newline=""):  # "\r" ends one too
        # For every collective; its threads may cut into each other's lines.
        if "[Gloo] Rank" in line or "peer ranks" in line or not line.strip():
            continue
        if line.endswith("\r"):
            if time.monotonic() < moved + BAR:
                continue
            moved = time.monotonic()
        sink.write(f"[{number}] {line.rstrip()}\n")
        sink.flush()


def wait(job: list[subprocess.Popen], grace: float) -> tuple[int, int]:
    """Wait for all, or kill those that outlive an error by `grace` seconds.

    Returns:
      the first process that ended with an error, and its exit code; 0, 0 without one.
    """
    ends: queue.Queue[tuple[int, int]] = queue.Queue()  # in the order that they happen
    for number, process in enumerate(job):
        target = functools.partial(end, number, process, ends)
        threading.Thread(target=target, daemon=True).start()
    first, code, latest = 0, 0, math.inf
    for _ in job:
        try:
            number, found = take(ends, latest)
        except queue.Empty:
            say(f"processes that did not end in {grace:g} s are killed")
            for process in job:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            number, found = ends.get()
        if found and not code:
            first, code, latest = number, found, time.monotonic() + grace
    return first, code if code >= 0 else 128 - code


def take(ends: queue.Queue, latest: float) -> tuple[int, int]:
    """The next end, looking up every second: a signal that comes to another thread wakes no wait.

    Raises:
      queue.Empty: none came until the latest time.
    """
    while True:
        try:
            return ends.get(timeout=min(1, max(0, latest - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= latest:
                raise


def end(number: int, process: subprocess.Popen, ends: queue.Queue) -> None:
    ends.put((number, process.wait()))


def named(code: int) -> str:
    return f"signal {code - 128}" if code > 128 else f"exit code {code}"


def say(line: str) -> None:
    print(f"local.py: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
