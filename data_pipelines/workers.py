"""One function over many tasks: in this process, in processes of this machine, or on Beam."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

# Never Beam's default runner: since version 2.6x that is Prism, a binary that Beam downloads.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def run(function: Callable[[Any], None], tasks: Sequence[Any], workers: int, preload: str) -> None:
    """Run the tasks in `workers` processes of this machine; 1 means this process itself.

    Beam's own local processes are not used: its pipeline waits forever for one that is killed.

    Args:
      preload: the module that the function needs, imported once for all processes.

    Raises:
      BrokenProcessPool: a process was killed.
      Exception: the first that a task raised; running tasks are waited for, the others dropped.
    """
    if workers == 1:
        for task in tasks:
            function(task)
        return
    # One server imports TensorFlow, which takes seconds, and the workers are forked from it. Forked
    # from here, they would inherit the locks of threads that they do not have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    try:
        pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start)
    except (OSError, NotImplementedError) as error:  # as in a container without /dev/shm
        print(f"cannot start processes ({error}): one process does all the work", file=sys.stderr)
        run(function, tasks, 1, preload)
        return

    # the first error ends them all
    try:
        for future in as_completed([pool.submit(function, task) for task in tasks]):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_on_beam(
    function: Callable[[Any], None], tasks: Sequence[Any], runner: Any, options: Any
) -> None:
    """Run the tasks on a Beam runner, by default on the one that needs nothing else installed."""
    import apache_beam as beam  # here, since a worker process needs none of its 100 MB

    with beam.Pipeline(runner=runner or LOCAL_RUNNER, options=options) as pipeline:
        _ = pipeline | "Tasks" >> beam.Create(tasks) | "Write" >> beam.Map(function)


def _start() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends, in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in the workers alone

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
