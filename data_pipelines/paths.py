"""Paths on a disk or on gs://, even with names that look like patterns and unknown owners."""

import fnmatch
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from etils import epath

from data_pipelines import machine, retries


def local(path: str, remedy: str) -> str:
    """Return a path of this machine, with `~` written out.

    Raises:
      ValueError: it is an address such as gs://, with the remedy; or there is no such home
        directory.
    """
    if machine.is_address(path):
        raise ValueError(f"{path} has to be a folder of this machine: {remedy}")
    return machine.written_out(path)


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Return what is below `folder` and matches the pattern, sorted.

    `*`, `?` and `[...]` apply to the names below the folder, never to the folder's own name, which
    etils would also treat as a pattern. A leading dot in a name must be in the pattern too.
    """
    return sorted(_matching(folder, pattern.split("/")))


def _matching(folder: epath.Path, parts: list[str]) -> Iterator[epath.Path]:
    if not folder.is_dir():
        return
    if not set(parts[0]) & set("*?["):
        matches = [folder / parts[0]] if (folder / parts[0]).exists() else []
    else:
        hidden = parts[0].startswith(".")
        matches = [
            path
            for path in folder.iterdir()
            if path.name.startswith(".") == hidden and fnmatch.fnmatchcase(path.name, parts[0])
        ]
    for path in matches:
        if len(parts) > 1:
            yield from _matching(path, parts[1:])
        else:
            yield path


def size(path: str | os.PathLike) -> int:
    """Return the bytes of a file; etils would look up its owner's name, which need not exist."""
    name = os.fspath(path)
    return tf.io.gfile.stat(name).length if "://" in name else Path(name).stat().st_size


def write(path: epath.Path, content: bytes) -> None:
    """Write a file so that others see all of it or nothing.

    On a disk it is written under a temporary name and then renamed; an object on gs:// appears when
    it is complete.

    Raises:
      OSError: it could not be written; nothing is left of it.
    """
    if "://" in os.fspath(path):
        retries.patiently(lambda: path.write_bytes(content), lambda: os.fspath(path))
        return
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
