"""One owner of what is being written on gs://: an object that only one process can create.

A bucket has no locks, but it can create or replace an object on a condition. The process that
created the claim renews it. A claim that was not renewed for SILENT_AFTER seconds is free, because
its owner must have been killed. No two clocks are compared: a process that finds a claim watches it
by its own clock.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import tensorstore

from data_pipelines import ranges, retries
from data_pipelines.claim import Claimed, Waiting, machine, said, signature, unsaid

RENEWED_EVERY = 5.0  # seconds
SILENT_AFTER = 45.0  # seconds
_SAY_EVERY = 10.0  # seconds between messages of a process that waits


@contextlib.contextmanager
def claim(
    path: str,
    patience: float = 0.0,
    waiting: Waiting = unsaid,
    lost: Callable[[Claimed], None] = lambda other: None,
) -> Iterator[None]:
    """Hold the claim in object `path`, which is deleted at the end.

    The claim of a process of this machine that has ended is free at once.

    Args:
      patience, waiting: as in `claim.claim`.
      lost: called by another thread when somebody else has taken the claim over.

    Raises:
      Claimed: another process holds it, or took it over while this one was silent.
      OSError: the bucket cannot be written to.
    """
    folder, _, name = path.rpartition("/")
    held = _Held(ranges.store(folder), name, path)
    held.take(patience, waiting)
    renewing = threading.Thread(target=held.renew, args=(lost,), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        held.ended.set()
        renewing.join()
        with contextlib.suppress(OSError, retries.Closed):  # the next one waits for its silence
            held.write(None)
    if held.lost:
        raise held.owner()


class _Held:
    """A claim: the object, and the generation that this process gave it last."""

    def __init__(self, store: tensorstore.KvStore, name: str, path: str):
        self.store, self.name, self.path = store, name, path
        self.generation, self.lost, self.ended = b"", False, threading.Event()
        own = {"processes": _processes(), "token": uuid.uuid4().hex}
        self.mine = json.dumps(signature() | own).encode()

    def take(self, patience: float, waiting: Waiting) -> None:
        """Create the object, or replace one that is not renewed; else raise Claimed."""
        began = since = time.monotonic()
        told = began - _SAY_EVERY
        there = self.read()
        while True:
            now = time.monotonic()
            free = there.state == "missing" or now > since + SILENT_AFTER or _is_gone(there.value)
            if free:
                self.generation = there.stamp.generation
                if self.write(self.mine):
                    return
            elif now >= told + _SAY_EVERY:
                told = now
                waiting(Claimed(said(there.value)[0]), now - began)
            time.sleep(0.0 if free else RENEWED_EVERY / 2)
            before, there = there, self.read()
            if there.stamp.generation != before.stamp.generation:
                since = time.monotonic()
                if there.state != "missing" and since >= began + patience:
                    raise Claimed(said(there.value)[0])

    def read(self) -> Any:
        """Return the present state of the object."""
        return self._patiently(lambda: self.store.read(self.name))

    def owner(self) -> Claimed:
        """Return who holds the claim."""
        return Claimed(said(self.read().value)[0])

    def write(self, content: bytes | None) -> bool:
        """Replace the object, or delete it, if it is still this process's; tell whether it was."""
        condition = self.generation
        written = self._patiently(
            lambda: self.store.write(self.name, content, if_equal=condition)
        ).generation
        if not written and content is not None:  # an answer may have been lost on its way here
            there = self.read()
            written = there.stamp.generation if there.value == content else b""
        self.generation = written or self.generation
        return bool(written)

    def renew(self, lost: Callable[[Claimed], None]) -> None:
        while not self.ended.wait(RENEWED_EVERY) and not self.lost:
            with contextlib.suppress(OSError, retries.Closed):  # no answer: the next time
                self.lost = not self.write(self.mine)
                if self.lost:
                    lost(self.owner())

    def _patiently(self, request: Callable[[], Any]) -> Any:
        ask = lambda: ranges.answer(request(), self.path)  # noqa: E731
        return retries.patiently(ask, lambda: self.path, self.ended)


def _is_gone(content: bytes) -> bool:
    """Return whether a claim belongs to a process that this one would see, and that has ended."""
    if said(content)[1] != machine():
        return False
    owner, here = json.loads(content), _processes()
    if not here or owner.get("processes") != here:  # of another container, which counts for itself
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _processes() -> str:
    """Name the processes that this one can see; "" where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
