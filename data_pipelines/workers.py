"""One function over many tasks: in this process, in processes of this machine, or on Beam."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

# Never Beam's default: since 2.6x it starts Prism, a binary that it downloads.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def run(function: Callable[[Any], None], tasks: Sequence[Any], workers: int, preload: str) -> None:
    """Run the tasks in `workers` processes of this machine, 1 being this process itself.

    Not in Beam's own local processes: its pipeline waits for ever for one that is killed.

    Args:
      preload: the module that the function needs, imported once for all processes.

    Raises:
      BrokenProcessPool: a process was killed.
      Exception: the first that a task raised; tasks that run are waited for, others dropped.
    """
    if workers == 1:
        for task in tasks:
            function(task)
        return
    # One server imports TensorFlow, some seconds, and the workers are forked from it; forked from
    # here they would inherit locks of threads that they do not have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    try:
        pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start)
    except (OSError, NotImplementedError) as error:  # as in a container without /dev/shm
        print(f"no processes can be started ({error}): one process does it all", file=sys.stderr)
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
    """Run the tasks on a Beam runner; without one, on the runner that needs nothing else."""
    import apache_beam as beam  # here, since a worker process needs none of its 100 MB

    with beam.Pipeline(runner=runner or LOCAL_RUNNER, options=options) as pipeline:
        _ = pipeline | "Tasks" >> beam.Create(tasks) | "Write" >> beam.Map(function)


def _start() -> None:
    """Leave Ctrl-C to the parent process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in the workers alone

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
