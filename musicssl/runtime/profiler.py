"""A trace of some steps: what the devices and the host did, for TensorBoard's profile and xprof."""

import re
from pathlib import Path
from typing import Any

import jax

from musicssl.command import first_line, say
from musicssl.runtime import goodput


def steps(spec: str) -> range:
    """Return the steps that a specification, START:STOP or "" for none, names; STOP is not one.

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
    """A trace in <workdir>/plugins/profile of those steps that this life of the run takes.

    The first process alone writes one: the others do the same.
    """

    def __init__(self, spec: str, workdir: Path):
        self.steps = steps(spec) if jax.process_index() == 0 else range(0)
        self.workdir = workdir
        self.first: int | None = None  # of the trace that is being taken

    def start(self, step: int, before: Any) -> None:
        """Begin the trace where a step is the first that it is of.

        Args:
          before: what the steps before make, which is waited for: they are no part of the trace.
        """
        if step not in self.steps or self.first is not None:
            return
        with goodput.lost("profile"):
            jax.block_until_ready(before)
            jax.profiler.start_trace(str(self.workdir))
        self.first = step

    def stop(self, done: int, after: Any) -> None:
        """Write the trace where so many steps are done.

        Args:
          after: what the last of them makes, which is waited for.
        """
        if self.first is not None and done == self.steps.stop:
            jax.block_until_ready(after)
            self._write(done)

    def close(self) -> None:
        """Write a trace whose last steps are not taken in this life."""
        if self.first is not None:
            self._write(None)

    def _write(self, done: int | None) -> None:
        which = f"steps {self.first} to {'the end' if done is None else done - 1}"
        self.first = None
        try:
            with goodput.lost("profile"):
                jax.profiler.stop_trace()
        except Exception as error:  # a run does not end for want of a trace
            say(f"the trace of {which} is lost ({first_line(error)})")
            return
        say(
            f"the trace of {which} is in {self.workdir}/plugins/profile: `pip install xprof`, then "
            f"`xprof {self.workdir}`, or TensorBoard's page Profile"
        )
