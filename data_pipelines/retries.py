"""Retries reads after storage errors that pass, with growing pauses: they are not damage.

A bucket that is busy (503), a lost connection, or a network disk that does not answer (EIO, ESTALE)
says nothing about what is stored. So a read is retried until PATIENCE seconds are over,
and then ends in Unreachable; the same command may be started again. An error that stays the
same however often one asks, such as a missing permission, is raised at once.
"""

import errno
import logging
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

PATIENCE = 300.0  # seconds from the start of the first read that failed to the last retry
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # seconds; each is twice the one before it
_TOLD_EVERY = 10.0  # seconds, by all threads of a process together

# Errors that asking again does not change; all other errors of the system are assumed to pass.
_LASTING = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        *(errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EBADF, errno.ENOSPC, errno.EDQUOT),
        *(errno.EROFS, errno.EFBIG),
    )
)
_PASSING = (  # of TensorFlow's errors
    *(tf.errors.CANCELLED, tf.errors.UNKNOWN, tf.errors.DEADLINE_EXCEEDED, tf.errors.ABORTED),
    *(tf.errors.RESOURCE_EXHAUSTED, tf.errors.INTERNAL, tf.errors.UNAVAILABLE),
)

FORBIDDEN = (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError)

_Result = TypeVar("_Result")


class Unreachable(OSError):
    """Storage that did not answer for PATIENCE seconds: one line; its errno is EIO."""

    def __init__(self, text: str):
        super().__init__(text)
        self.errno = errno.EIO


class Closed(Exception):
    """What is being read is no longer needed."""


def passes(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, tf.errors.OpError):
        return error.error_code in _PASSING
    if isinstance(error, OSError) and error.errno is None:
        return isinstance(error, (TimeoutError, ConnectionError))
    return isinstance(error, OSError) and error.errno not in _LASTING


def patiently(
    read: Callable[[], _Result], what: Callable[[], str], closed: threading.Event | None = None
) -> _Result:
    """Return what `read` returns; call it again after each error that may pass.

    Args:
      what: returns the name of what is read, for messages.
      closed: is set when the result is no longer needed.

    Raises:
      Unreachable: the errors did not end within PATIENCE seconds.
      Closed: `closed` was set meanwhile.
      OSError: an error that does not pass, including TensorFlow's.
    """
    closed = closed or threading.Event()
    began, pause = None, _FIRST_PAUSE
    while True:
        asked = time.monotonic()
        try:
            return read()
        except Exception as error:
            if isinstance(error, tf.errors.NotFoundError):
                raise FileNotFoundError(_said(error)) from error
            if isinstance(error, FORBIDDEN):
                raise forbidden(str(error), what()) from error
            if isinstance(error, tf.errors.OpError) and not passes(error):
                raise OSError(f"{what()}: {_said(error)}") from error
            if isinstance(error, Unreachable) or not passes(error):
                raise
            now = time.monotonic()
            began = asked if began is None else began  # libraries try for minutes by themselves
            line = f"{what()}: {_said(error)}"
            if now - began >= PATIENCE:
                raise Unreachable(
                    f"{line}; retried for {now - began:.0f} s: check the storage, then run the "
                    "same command again"
                ) from error
        _tell(f"{line}; retrying for up to {PATIENCE:.0f} s")
        # a random pause, so that many hosts do not all come back at the same moment
        remaining = max(began + PATIENCE - time.monotonic(), 0.0)
        if closed.wait(min(pause * random.uniform(0.5, 1.0), remaining)):
            raise Closed(what())
        pause = min(2 * pause, _LONGEST_PAUSE)


def forbidden(said: str, path: str) -> PermissionError:
    """Return the error for a request that a bucket refuses, with what it said about that."""
    words = re.search(r'\\?"message\\?": ?\\?"(.+?)\\?"[,}\n]', said)  # in a body of JSON
    why = words[1] if words else re.split(r" \[http| with body|\n", said)[0].split(": ")[-1]
    remedy = (
        "give this machine's account the right, or log in (gcloud auth application-default login)"
    )
    return PermissionError(errno.EACCES, f"the bucket refuses ({why}): {remedy}", path)


def no_bucket(path: str) -> FileNotFoundError:
    """Return the error for a path in a bucket that does not exist."""
    bucket = path.removeprefix("gs://").partition("/")[0]
    return FileNotFoundError(errno.ENOENT, f"there is no bucket {bucket}: create it first", path)


def _said(error: BaseException) -> str:
    """Return an error's reason in a line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(reason.strip().splitlines()), repr(error))


_told_at, _telling = float("-inf"), threading.Lock()


def _tell(line: str) -> None:
    """Log a line, unless one was logged just now: all threads meet the same outage."""
    global _told_at
    with _telling:
        if time.monotonic() < _told_at + _TOLD_EVERY:
            return
        _told_at = time.monotonic()
    logging.getLogger(__name__).warning("%s", line)
