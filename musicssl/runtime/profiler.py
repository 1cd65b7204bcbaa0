"""Traces some steps: what the devices and the host did, for xprof and TensorBoard's Profile."""

import re
from pathlib import Path
from typing import Any

import jax

from musicssl.command import first_line, say
from musicssl.runtime import goodput


def steps(spec: str) -> range:
    """Return the steps that a specification names: START:STOP without STOP, or "" for none.

    Raises:
      ValueError: it is neither.
    """
    if not spec:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", spec)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(
            f"profile is {spec!r}: use START:STOP, such as 100:110 for steps 100 to 109"
        )
    return range(int(found[1]), int(found[2]))


class Profile:
    """A trace in <workdir>/plugins/profile of those named steps that this life of the run takes.

    Only the first process writes one, since the others do the same work.
    """

    def __init__(self, spec: str, workdir: Path):
        self.steps = steps(spec) if jax.process_index() == 0 else range(0)
        self.workdir = workdir
        self.first: int | None = None  # the first step of the trace in progress

    def start(self, step: int, before: Any) -> None:
        """Begin the trace if a step is its first.

        Args:
          before: the results of the steps before, which are awaited so that the trace excludes
            them.
        """
        if step not in self.steps or self.first is not None:
            return
        with goodput.lost("profile"):
            jax.block_until_ready(before)
            jax.profiler.start_trace(str(self.workdir))
        self.first = step

    def stop(self, done: int, after: Any) -> None:
        """Write the trace if its last step is done.

        Args:
          after: the results of that step, which are awaited.
        """
        if self.first is not None and done == self.steps.stop:
            jax.block_until_ready(after)
            self._write(done)

    def close(self) -> None:
        """Write a trace whose last steps this life does not reach."""
        if self.first is not None:
            self._write(None)

    def _write(self, done: int | None) -> None:
        which = f"steps {self.first} to {'the end' if done is None else done - 1}"
        self.first = None
        try:
            with goodput.lost("profile"):
                jax.profiler.stop_trace()
        except Exception as error:  # a run does not end because a trace failed
            say(f"the trace of {which} could not be written ({first_line(error)})")
            return
        say(
            f"the trace of {which} is in {self.workdir}/plugins/profile. To see it: `pip install "
            f"xprof`, then `xprof {self.workdir}` or TensorBoard's Profile page"
        )
