"""Paths as users give them: with `~`, names that look like patterns, owners without a name."""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from etils import epath


def expand(path: str) -> str:
    """Return a path with `~` and `~user` written out, as a shell does only where they stand alone.

    Raises:
      ValueError: there is no such home.
    """
    whole = os.path.expanduser(path) if "://" not in path else path
    if whole.startswith("~"):
        raise ValueError(f"{path}: no home directory is known for it; write the path out")
    return whole


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Return what is below `folder` and fits the pattern, sorted.

    `*`, `?` and `[...]` are looked for in the names that are found, never in the folder's own,
    which etils would take for a pattern too. A name with a leading dot fits if the pattern has one.
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
    """Return the bytes of a file; etils would look for its owner's name, which need not exist."""
    name = os.fspath(path)
    return tf.io.gfile.stat(name).length if "://" in name else Path(name).stat().st_size


def shown(path: str | os.PathLike) -> str:
    """Return a name that can be printed and kept: bytes that are not UTF-8 with backslashes."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()
