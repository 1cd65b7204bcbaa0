"""One owner of what is being written: a claim that ends with the process that holds it."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Claimed(Exception):
    """Somebody else is writing; one line that says who."""


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold the claim in file `path`, which is removed at the end.

    The operating system's lock on the file is the claim; what is written in it, process, host and
    time, is for people. So the claim of a process that was killed is free at once, whatever file
    it left. On a file system without locks everybody gets the claim.

    Raises:
      Claimed: another process holds it.
      OSError: the file cannot be written.
    """
    descriptor = _locked(path)
    try:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is free: else that of the next one
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Open the file and lock it; return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 1000)
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Claimed(_said(owner)) from error
            if error.errno not in _NO_LOCKS:
                raise
            return os.open(path, os.O_RDWR)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its owner has removed it since it was opened


def _said(content: bytes) -> str:
    """Return the owner that a claim names, in words."""
    try:
        owner = json.loads(content)
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "another process"
