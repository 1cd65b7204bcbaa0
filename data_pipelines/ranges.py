"""Reads byte ranges of files: of local ones by pread, of those on gs:// by range requests.

TensorFlow's files on gs:// open a connection for every read and occupy a thread while they wait.
tensorstore keeps its connections, and a read in progress needs no thread.
"""

import errno
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorstore

from data_pipelines import retries

_ANSWER = 60.0  # seconds within which a bucket must answer
OPEN_FILES = 128  # local files that are kept open
_LOCAL_READERS = 4  # threads that carry out reads from a local disk
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT")
# tensorstore itself retries little: `retries` decides how long errors are tolerated.
_CONTEXT = {
    "gcs_request_retries": {"max_retries": 1, "initial_delay": "100ms"},
    "gcs_request_concurrency": {"limit": 64},
}


class _File:
    """A local file, open until nothing refers to it."""

    descriptor = -1

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)

    def read(self, begin: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, begin)

    def __del__(self, close=os.close):
        if self.descriptor >= 0:
            close(self.descriptor)


class Ranges:
    """Reads files and keeps them open; threads may share it.

    Every error is an OSError; for a bucket, errno is EIO if the error may pass and EACCES if it
    will not. A missing file is reported as stale (ESTALE), since it existed when its size was
    taken: a network disk may be away for a while.
    """

    def __init__(self) -> None:
        self._open = functools.lru_cache(OPEN_FILES)(_File)
        self._pool = functools.cache(lambda: ThreadPoolExecutor(_LOCAL_READERS, "ranges"))

    def read(self, path: str, begin: int, size: int) -> bytes:
        """Return bytes of a file, fewer than `size` if the file ends earlier."""
        return self._pread(path, begin, size) if "://" not in path else _bucket(path, begin, size)()

    def begin(self, path: str, begin: int, size: int) -> Callable[[], bytes]:
        """Begin to read as `read` does; return a function that waits for the bytes."""
        if "://" in path:
            return _bucket(path, begin, size)
        return self._pool().submit(self._pread, path, begin, size).result

    def _pread(self, path: str, begin: int, size: int) -> bytes:
        try:
            return self._open(path).read(begin, size)  # a method holds its file open
        except FileNotFoundError as error:
            raise _gone(path) from error
        except OSError:
            self._open.cache_clear()  # a stale descriptor stays stale
            raise


def _bucket(path: str, begin: int, size: int) -> Callable[[], bytes]:
    """Begin to read from a bucket; return a function that waits for the bytes."""
    folder, _, name = path.rpartition("/")
    future = store(folder).read(name, byte_range=slice(begin, begin + size))

    def result() -> bytes:
        try:
            found = answer(future, path)
        except EOFError:
            return b""
        if found.state == "missing":
            raise _gone(path)
        return found.value

    return result


def answer(future: Any, path: str) -> Any:
    """Return a bucket's answer to a request of tensorstore's.

    Raises:
      OSError: with EIO if the error may pass, else with EACCES, or ENOENT for a missing bucket.
      EOFError: the file ends before the bytes that were asked for.
    """
    try:
        return future.result(timeout=_ANSWER)
    except ValueError as error:
        code, _, reason = str(error).partition(": ")
        if code == "OUT_OF_RANGE":
            raise EOFError(path) from error
        if code == "NOT_FOUND":  # the bucket: for a missing object there is no error
            raise retries.no_bucket(path) from error
        if code in _REFUSED:
            raise retries.forbidden(reason or code, path) from error
        raise OSError(errno.EIO, reason or code, path) from error


@functools.lru_cache(16)
def store(folder: str) -> tensorstore.KvStore:
    """Open a folder of a bucket, whether or not its name ends with a slash."""
    bucket, _, inside = folder.removeprefix("gs://").rstrip("/").partition("/")
    spec = {"driver": "gcs", "bucket": bucket, "path": f"{inside}/" if inside else ""}
    return tensorstore.KvStore.open(spec, context=tensorstore.Context(_CONTEXT)).result()


def _gone(path: str) -> OSError:
    return OSError(errno.ESTALE, "no longer there", path)
