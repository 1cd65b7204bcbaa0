"""The audio files of a directory tree, and which of its folders are validation."""

import dataclasses
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from data_pipelines.decode import SUFFIXES

VALIDATION = 0.015  # share of the folders, by hash
LARGEST = 0.2  # share of the audio that a validation folder may hold
DISC = re.compile(r"(cd|dis[ck]|lp|side|volume|vol\.?)[ ._-]*(\d+|[a-d])", re.IGNORECASE)
MANY = 20  # folders side by side that are enough to divide at their level


@dataclasses.dataclass(frozen=True)
class Tree:
    """What a walk found: audio files (relative, posix), other files, links to files seen before."""

    files: tuple[str, ...]
    others: int
    repeated: int


def walk(root: str | os.PathLike) -> Tree:
    """Finds the audio files below `root` by their extensions, in the order of their paths.

    Links are followed, and a file that can be reached twice (by links, also hard ones) counts
    once, by a name without a link if it has one: otherwise it could be in both splits. Names with
    a leading dot are left alone (macOS keeps a "._track.mp3" beside "track.mp3").

    Raises:
      OSError: a folder cannot be read.
    """
    files, seen = [], set()
    others = repeated = 0
    for _, path in sorted(_entries(os.fspath(root), frozenset(), linked=False)):
        identity = _identity(path)
        if os.path.splitext(path)[1].lower() not in SUFFIXES:
            others += 1
        elif identity is not None and identity in seen:
            repeated += 1
        else:  # a broken link as well: decoding says so, in skipped.tsv
            seen.add(identity)
            files.append(Path(os.path.relpath(path, root)).as_posix())
    return Tree(tuple(sorted(files)), others, repeated)


def _entries(
    folder: str, above: frozenset[tuple[int, int]], linked: bool
) -> Iterator[tuple[bool, str]]:
    """Yields (whether a link leads there, path) of all files below `folder`."""
    identity = _identity(folder)
    if identity in above:  # a link to a folder around itself
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            through_link = linked or entry.is_symlink()
            if entry.is_dir():
                yield from _entries(entry.path, above | {identity}, through_link)
            else:
                yield through_link, entry.path


def validation_files(seconds: Mapping[str, float]) -> set[str]:
    """Chooses the files of the validation split: whole folders, by a hash of their paths.

    Files are divided at the highest level of the tree that has MANY folders side by side, so
    that in artist/album/track no artist is on both sides; in a smaller tree, by the folder that
    they lie in, or the album around it where that is a disc ("CD 2"). VALIDATION of the folders go
    to validation: those that hash lowest, but none that holds more than LARGEST of the audio. At
    least one folder does, if there are two: the one that hashes lowest, or, where all are large,
    the smallest. Where all files lie in one folder there is nothing to keep together, and they
    are divided one by one in the same way.

    Args:
      seconds: the length of each file by its path.
    """
    groups = _groups(seconds)
    if len(groups) < 2:
        groups = {path: [path] for path in seconds}
    if len(groups) < 2:
        return set()
    held = {name: sum(seconds[path] for path in paths) for name, paths in groups.items()}
    limit = LARGEST * sum(held.values())
    small = sorted((name for name in groups if held[name] <= limit), key=_fraction)
    chosen = [name for name in small if _fraction(name) < VALIDATION] or small[:1]
    if not small:
        chosen = [min(groups, key=lambda name: (held[name], _fraction(name)))]
    if len(chosen) == len(groups):  # one is left for training
        chosen.pop()
    return {path for name in chosen for path in groups[name]}


def _groups(paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns the files of each folder at the level at which folders are divided."""
    folders = {path: _album(PurePosixPath(path).parent.parts) for path in paths}
    deepest = max((len(parts) for parts in folders.values()), default=0)
    level = deepest
    for depth in range(1, deepest):
        if len({parts[:depth] for parts in folders.values() if len(parts) >= depth}) >= MANY:
            level = depth
            break
    groups = defaultdict(list)
    for path, parts in folders.items():
        groups["/".join(parts[:level])].append(path)
    return dict(groups)


def _album(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a folder's parts without the discs that it is cut into."""
    while len(parts) > 1 and DISC.fullmatch(parts[-1]):
        parts = parts[:-1]
    return parts


def _fraction(name: str) -> float:
    """Returns a number in [0, 1) that depends on `name` alone."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _identity(path: str) -> tuple[int, int] | None:
    """Returns what all names of a file have in common, None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
