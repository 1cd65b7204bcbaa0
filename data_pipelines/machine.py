"""What a machine need not have: a home, names in UTF-8, somebody who reads what is said.

Both wings have this from here, so nothing but Python's own library is loaded.
"""

import contextlib
import errno
import io
import os
import sys
from logging import StreamHandler, getLogger
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def written_out(path: str) -> str:
    """Return a path with `~` and `~user` written out, as a shell does only where they stand alone.

    Raises:
      ValueError: there is no such home.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(f"{path}: no home directory is known for it; write the path out")
    return whole


def shown(path: str | os.PathLike) -> str:
    """Return a name that can be printed and kept: bytes that are not UTF-8 with backslashes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


class _Dropping(io.FileIO):
    """A descriptor that drops what nobody can read: a pipe's end is closed, a terminal is gone.

    What a full disk does not hold is dropped as well, which is told once on stderr.
    """

    errors = 2  # the descriptor that it is told on; Python's stderr may be this very stream
    told = False

    def write(self, content: Any) -> int:
        """Write, or do as if it had been written."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno in _FULL and not self.told:
                self.told = True
                line = f"a part of what is said is lost: {error.strerror}\n"
                with contextlib.suppress(OSError):
                    os.write(self.errors, line.encode())
            return len(content)


def keep_streams() -> None:
    """Go on where nobody reads stdout or stderr any more: what is said there is not the work.

    Python's streams have descriptors of their own then, so that 1 and 2 may be led elsewhere.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed before the start: the next file to be opened would be in its place
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
