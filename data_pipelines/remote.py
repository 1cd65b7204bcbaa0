"""A path on gs:// that behaves like one on a disk, and tolerates errors that pass.

tensorstore reads and writes the files, so that a reader sees what was written last, and a file
appears whole or not at all. Folders are left to TensorFlow, by way of etils. Every error is an
OSError.
"""

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf
from etils import epath

from data_pipelines import ranges, retries

_PART = 1 << 24  # bytes per request, for a file that is read piece by piece
_Result = TypeVar("_Result")


class Remote(type(epath.Path("gs://bucket"))):  # type: ignore[misc]  # etils' own class for gs://
    """A path of etils whose operations are retried by `retries.patiently`.

    Raises:
      OSError: for every operation; its errno is EIO if the bucket did not answer for minutes.
    """

    def _patiently(self, work: Callable[[], _Result]) -> _Result:
        return retries.patiently(work, lambda: str(self))

    def resolve(self, strict: bool = False) -> "Remote":
        """Return the path itself, which is always absolute."""
        return self

    def exists(self) -> bool:
        """Return whether there is such a file or folder."""
        return self._patiently(super().exists)

    def is_dir(self) -> bool:
        """Return whether this is a folder."""
        try:  # TensorFlow's own function takes any error to mean "no"
            return self._patiently(lambda: tf.io.gfile.stat(str(self))).is_directory
        except FileNotFoundError:
            return False

    def iterdir(self) -> Iterator["Remote"]:
        """Yield what is in a folder."""
        names = {name.partition("/")[0] for name in self._below()}
        yield from (self / name for name in sorted(names))

    def walk(self, **options: Any) -> Iterator[tuple["Remote", list[str], list[str]]]:
        """Yield this folder and those below it, with the names of folders and files in each."""
        folders: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
        for path in self._below():
            *above, name = path.split("/")
            for depth, inner in enumerate(above):
                whole, outer = "/".join(above[: depth + 1]), "/".join(above[:depth])
                if whole not in folders:
                    folders[whole] = [], []
                    folders[outer][0].append(inner)
            if name:  # an empty name is the object of an empty folder
                folders["/".join(above)][1].append(name)
        for folder, (inside, files) in folders.items():
            yield (self / folder if folder else self), inside, files

    def _below(self) -> list[str]:
        """Return the names of all objects in this folder and in those below it."""
        store = ranges.store(str(self))
        names = self._patiently(lambda: ranges.answer(store.list(), str(self)))
        if not names:  # tensorstore lists nothing either if it may not look; TensorFlow then raises
            self.is_dir()
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self))
        return sorted(name.decode() for name in names if name)

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """Yield what is below this folder and matches the pattern."""
        found = super().glob
        yield from self._patiently(lambda: list(found(pattern)))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder and its parents, although a bucket needs no folders."""
        if self.exists():
            if not self.is_dir():
                raise FileExistsError(errno.EEXIST, "is a file", str(self))
            if not exist_ok:
                raise FileExistsError(errno.EEXIST, "already exists", str(self))
            return
        # TensorFlow would try for hours to make one in a bucket that does not exist
        store = ranges.store(str(self))
        self._patiently(lambda: ranges.answer(store.write("", b""), str(self)))

    def rmtree(self, missing_ok: bool = False) -> None:
        """Remove a folder and all that is in it."""
        if self.is_dir():
            self._patiently(lambda: self._truly(super(Remote, self).rmtree))
        elif not missing_ok:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self))

    def rmdir(self) -> None:
        """Do nothing: a folder without files does not exist on a bucket."""

    def _truly(self, work: Callable[[], _Result]) -> _Result:
        """Call TensorFlow, which reports that nothing is there when it got no answer."""
        try:
            return work()
        except (FileNotFoundError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError) as e:
            half_done = "could not fully delete" in str(e)
            if (isinstance(e, tf.errors.PermissionDeniedError) and not half_done) or (
                not self.exists()
            ):
                raise
            raise OSError(errno.EIO, "was not completed", str(self)) from e

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        remove = super().unlink
        self._patiently(lambda: remove(missing_ok))

    def replace(self, target: epath.PathLike) -> "Remote":
        """Copy a file, or a folder file by file, and remove it here."""
        move = super().replace
        return self._patiently(lambda: self._truly(lambda: move(target)))

    rename = replace  # a rename that is retried would otherwise stop at its own earlier copy

    def stat(self) -> Any:
        """Return the size and the times of a file."""
        return self._patiently(super().stat)

    def read_bytes(self) -> bytes:
        """Return what a file holds."""
        return _Reading(self).readall()

    def read_text(self, encoding: str | None = None) -> str:
        """Return the text that a file holds."""
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: bytes) -> int:
        """Write a file; replace one that exists."""
        store, name = self.place()
        self._patiently(lambda: ranges.answer(store.write(name, bytes(data)), str(self)))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Write a text file; replace one that exists."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    @contextlib.contextmanager
    def open(self, mode: str = "r", **options: Any) -> Iterator[Any]:
        """Open a file; a written one appears when it is closed, and not after an error."""
        if mode == "rb":
            with io.BufferedReader(_Reading(self), _PART) as reading:
                yield reading
        elif mode == "r":
            yield io.StringIO(self.read_text())
        else:
            held = io.BytesIO()
            if "a" in mode and self.exists():
                held.write(self.read_bytes())
            text = None if "b" in mode else io.TextIOWrapper(held, "utf-8", write_through=True)
            yield text or held
            self.write_bytes(held.getvalue())

    def place(self) -> tuple[Any, str]:
        """Return the store of the folder that this file is in, and the file's name."""
        folder, _, name = str(self).rpartition("/")
        return ranges.store(folder), name


class _Reading(io.RawIOBase):
    """A file that is read from its beginning, part by part."""

    def __init__(self, path: Remote):
        self.path, self.at = path, 0
        self.store, self.name = path.place()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # a bucket refuses a range that reaches beyond the file's end
        part = self._read(self.at + len(buffer)) or self._read(None)
        buffer[: len(part)] = part
        return len(part)

    def readall(self) -> bytes:
        return self._read(None)

    def _read(self, end: int | None) -> bytes:
        """Return the bytes up to `end`, or up to the file's end if that is None."""
        where, what = slice(self.at, end), str(self.path)
        ask = lambda: ranges.answer(self.store.read(self.name, byte_range=where), what)  # noqa: E731
        try:
            found = retries.patiently(ask, lambda: what)
        except EOFError:
            return b""
        if found.state == "missing":
            raise FileNotFoundError(errno.ENOENT, "no such file", what)
        self.at += len(found.value)
        return found.value


def path(name: str | os.PathLike) -> epath.Path:
    """Return the path of a name; one on gs:// tolerates errors that pass."""
    return Remote(name) if os.fspath(name).startswith("gs://") else epath.Path(name)
