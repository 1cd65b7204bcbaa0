"""What a machine may lack: a home directory, names in UTF-8, someone who reads the output, a disk.

Both wings import this module, so it loads nothing but Python's standard library.
"""

import contextlib
import errno
import io
import os
import re
import sys
from logging import StreamHandler, getLogger
from typing import Any

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]+[a-z0-9]")  # what a bucket may be called
_SIGNS = "#?*[]\\"  # of patterns and versions: a file with one in its name is not found again
# How the addresses of stores begin, also if they are misspelt: a folder of this machine that is
# really called gs: can be given as /.../gs: with its parents.
_STORES = re.compile(r"[\s'\"]*(gs|gcs|s3[an]?|abfss?|wasbs?|az|hdfs|file|https?):", re.IGNORECASE)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def written_out(path: str) -> str:
    """Return a path with `~` and `~user` expanded, even after `--flag=`, where a shell does not.

    Raises:
      ValueError: there is no such home directory.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(f"{path}: its home directory is not known; write the path out")
    return whole


def is_address(path: str) -> bool:
    """Return whether a path means a store such as gs://, although it may be misspelt."""
    return "://" in path or _STORES.match(path) is not None


def anywhere(path: str) -> str:
    """Return a path of this machine with `~` written out, or an address on gs://.

    Slashes at the end of an address are removed, and several in a row become one, as on a disk.

    Raises:
      ValueError: it is an address of another kind, misspelt, without a bucket, or with a name that
        libraries do not take as it is; or there is no such home directory.
    """
    if not is_address(path):
        return written_out(path)
    if not path.startswith("gs://"):
        store = _STORES.match(path)
        scheme = store[1].lower() if store else path.partition("://")[0]
        if scheme == "file":
            raise ValueError(f"{path}: write a path of this machine without file:")
        if scheme in ("gs", "gcs"):
            raise ValueError(f"{path} is not an address: write gs://BUCKET/FOLDER")
        why = "Orbax does not save there, and TensorFlow does not read there"
        raise ValueError(f"{path}: {scheme}:// is not supported ({why}): use gs:// or a disk")
    name = path.removeprefix("gs://")
    if not _BUCKET.fullmatch(name.partition("/")[0]):
        raise ValueError(f"{path} names no bucket: write gs://BUCKET/FOLDER")
    if not name.isprintable() or name != name.strip():
        raise ValueError(
            f"{shown(name)!r} on gs:// has a line break, a space at an end or another sign that "
            "cannot be seen: write its name without"
        )
    if set(name) & set(_SIGNS) or {".", ".."} & set(name.split("/")):
        raise ValueError(
            f"{path}: a name on gs:// must not contain {' '.join(_SIGNS)}, nor be . or .., which "
            "Orbax and Google's own tools take for something else: use another name"
        )
    return "gs://" + re.sub("/+", "/", name).rstrip("/")


def shown(path: str | os.PathLike) -> str:
    """Return a name that can be printed and stored, with bytes that are not UTF-8 escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


class _Dropping(io.FileIO):
    """A descriptor that drops what nobody can read, because a pipe is closed or a terminal gone.

    Output that does not fit on a full disk is dropped too, and one line on stderr says so.
    """

    errors = 2  # the descriptor for that line; Python's stderr may be this very stream
    told = False

    def write(self, content: Any) -> int:
        """Write, or pretend to have written."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno in FULL and not self.told:
                self.told = True
                line = f"some of the output is lost: {error.strerror}\n"
                with contextlib.suppress(OSError):
                    os.write(self.errors, line.encode())
            return len(content)


def keep_streams() -> None:
    """Let the work continue when nobody reads stdout or stderr any more.

    Python's streams get their own descriptors, so that 1 and 2 can be redirected.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it was closed before the start: the next opened file would take its place
            os.open(os.devnull, os.O_RDWR)
    errors = os.dup(2)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Dropping(os.dup(stream.fileno()), "w")
            raw.errors = errors
            kept = io.TextIOWrapper(
                io.BufferedWriter(raw),
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
            )
            setattr(sys, name, kept)
            for handler in getLogger().handlers:
                if isinstance(handler, StreamHandler) and handler.stream is stream:
                    handler.setStream(kept)
