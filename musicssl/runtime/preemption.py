"""Requests to end: SIGTERM from a preempted machine, Ctrl-C, a terminal that hangs up.

A run that is asked to end saves after the current step, and the same command resumes it.
"""

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils

_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Preempted(Exception):
    """The job was asked to end during optional work, such as a probe: abandon it."""


class Preemption:
    """Whether the job was asked to end; all processes agree on it.

    A second Ctrl-C ends the process at once. A second SIGTERM or SIGHUP does not: one preemption
    or one lost connection may send several. Signals that are already ignored, as under nohup, stay
    ignored.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in _ASKING:
            # With several processes, jax.distributed handles SIGTERM and tells the others.
            theirs = number == signal.SIGTERM and jax.process_count() > 1
            if not theirs and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.ask)

    def ask(self, number: int | None = None, *_frame: object) -> None:
        """Note the request; also the handler of the signals."""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            with contextlib.suppress(OSError):  # not through Python's buffers, which may be in use
                os.write(2, b"musicssl: asked to end; saving first (Ctrl-C again ends at once)\n")
        if number is not None and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # jax.distributed tells the others
        else:
            self.asked = True

    def poll(self) -> None:
        """Raise Preempted if a single process was asked to end; several agree between steps."""
        if self.asked:
            raise Preempted

    def reached(self, number: int) -> bool:
        """Return whether all processes are to end here, between two steps or batches.

        Every process calls this at the same places, with the same number. When one of them is
        asked to end, they agree on the number at which all of them do: one more than the highest
        that any has called with so far.

        Args:
          number: the step. Orbax calls the same meeting point with the step at every save, and a
            number of another kind would make some processes end while others wait for them. Work
            before training, such as fitting a codebook, passes first, first + 1, and so on, where
            `first` is the step at which training then begins. The number is never negative, since
            JAX would drop the request.
        """
        if jax.process_count() > 1:
            self.asked = multihost_utils.reached_preemption_sync_point(number) or self.asked
        return self.asked
