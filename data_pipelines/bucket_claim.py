"""One owner of what is being written on gs://: an object that only one process can create.

A bucket has no locks, but creates and replaces an object on a condition. Who created the claim
renews it, and one that was not renewed for SILENT_AFTER seconds is free: its owner was killed. No
two clocks are compared: whoever finds a claim watches it on its own.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import tensorstore

from data_pipelines import ranges
from data_pipelines.claim import Claimed

RENEWED_EVERY = 5.0  # seconds
SILENT_AFTER = 45.0  # seconds


@contextlib.contextmanager
def claim(path: str) -> Iterator[None]:
    """Hold the claim in object `path`, which is deleted at the end.

    Raises:
      Claimed: another process holds it, or took it over while this one was silent.
      OSError: the bucket cannot be written to.
    """
    folder, _, name = path.rpartition("/")
    held = _Held(ranges.store(folder), name)
    try:
        held.take()
    except ValueError as error:  # tensorstore's
        raise OSError(f"{path} cannot be written: {error}") from error
    ended = threading.Event()
    renewing = threading.Thread(target=held.renew, args=(ended,), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(ValueError):
            held.write(None)
    if held.lost:
        raise Claimed(_owner(held.store.read(name).result().value))


class _Held:
    """A claim: the object, and the generation that this process gave it last."""

    def __init__(self, store: tensorstore.KvStore, name: str):
        self.store, self.name, self.generation, self.lost = store, name, b"", False
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self.owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}

    def take(self) -> None:
        """Create the object, or replace one that is not renewed; raise Claimed for another."""
        there = self.store.read(self.name).result()
        if there.state != "missing":
            found = time.monotonic()
            while time.monotonic() < found + SILENT_AFTER:
                time.sleep(RENEWED_EVERY / 2)
                now = self.store.read(self.name).result()
                if now.state == "missing":
                    there = now
                    break
                if now.stamp.generation != there.stamp.generation:
                    raise Claimed(_owner(now.value))
        self.generation = there.stamp.generation
        if not self.write(json.dumps(self.owner).encode()):
            raise Claimed(_owner(self.store.read(self.name).result().value))

    def write(self, content: bytes | None) -> bool:
        """Replace the object, or delete it, if it is still this process's; tell whether it was."""
        written = self.store.write(self.name, content, if_equal=self.generation).result()
        self.generation = written.generation or self.generation
        return bool(written.generation)

    def renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEWED_EVERY) and not self.lost:
            with contextlib.suppress(ValueError):  # the bucket does not answer: the next time
                self.lost = not self.write(json.dumps(self.owner).encode())


def _owner(content: bytes) -> str:
    try:
        owner = json.loads(content)
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # it is gone
        return "another process"
