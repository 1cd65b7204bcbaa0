"""Finds the audio files of a directory tree, and chooses its folders for validation."""

import dataclasses
import hashlib
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from data_pipelines.decode import SUFFIXES

_VALIDATION = 0.015  # share of the folders, by hash
_LARGEST = 0.2  # share of the audio that a validation folder may hold
_DISC = re.compile(r"(cd|dis[ck]|lp|side|volume|vol\.?)[ ._-]*(\d+|[a-d])", re.IGNORECASE)
_MANY = 20  # with this many folders side by side, files are divided at their level


# Folders of operating systems and storage servers: deleted files, snapshots, thumbnails.
_SYSTEM = frozenset(
    (
        *("lost+found", "$recycle.bin", "system volume information", "found.000", "__macosx"),
        *("#recycle", "@recycle", "#snapshot", "@snapshot", "@recently-snapshot", "@eadir", "@tmp"),
    )
)


@dataclasses.dataclass(frozen=True)
class Tree:
    """What a walk found: audio files (relative, posix), other files, second names of seen ones.

    `system` counts system folders, which are ignored; `unreadable` are folders and the reasons.
    """

    files: tuple[str, ...]
    others: int
    repeated: int
    system: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()


class _Walk:
    """A walk in progress; it enters every folder once, by a name without a link if possible."""

    def __init__(self) -> None:
        self.files: list[tuple[bool, str]] = []  # whether a link leads there, path
        self.repeated = self.system = 0
        self.unreadable: list[tuple[str, str]] = []
        self._seen: set[tuple[int, int] | None] = set()

    def below(self, root: str) -> None:
        """Find all files, those behind links to folders last."""
        links = self._enter(root, linked=False)
        while links:
            entered = [self._enter(path, linked=True) for path in sorted(links)]
            links = list(itertools.chain.from_iterable(entered))

    def _enter(self, root: str, linked: bool) -> list[str]:
        """Go through a folder and those in it; return the links to folders."""
        links: list[str] = []
        folders = [root]
        while folders:
            folder = folders.pop()
            identity = _identity(folder)
            if identity in self._seen:
                self.repeated += 1
                continue
            self._seen.add(identity)

            try:
                with os.scandir(folder) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                self.unreadable.append((folder, error.strerror or str(error)))
                continue

            for entry in inside:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    self.files.append((linked or entry.is_symlink(), entry.path))
                elif entry.name.lower() in _SYSTEM:
                    self.system += 1
                else:
                    (links if entry.is_symlink() else folders).append(entry.path)
        return links


def walk(root: str | os.PathLike) -> Tree:
    """Find the audio files below `root` by their extensions, in the order of their paths.

    Links are followed. A folder or file that can be reached twice (by links, also hard ones) counts
    once, by a name without a link if it has one; otherwise a file could be in both splits. Names
    with a leading dot are ignored (macOS keeps a "._track.mp3" beside "track.mp3"), and so are
    folders of _SYSTEM. An unreadable folder is reported, and the walk continues.

    Raises:
      OSError: `root` itself cannot be read.
    """
    root = os.fspath(root)
    os.scandir(root).close()
    walked = _Walk()
    walked.below(root)

    # one name for each file, without a link where there is one
    files, seen = [], set()
    others, repeated = 0, walked.repeated
    for _, path in sorted(walked.files):
        identity = _identity(path)
        if os.path.splitext(path)[1].lower() not in SUFFIXES:
            others += 1
        elif identity is not None and identity in seen:
            repeated += 1
        else:  # a broken link as well: decoding says so, in skipped.tsv
            seen.add(identity)
            files.append(_relative(path, root))
    unreadable = sorted((_relative(path, root), why) for path, why in walked.unreadable)
    return Tree(tuple(sorted(files)), others, repeated, walked.system, tuple(unreadable))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle, or an error of the disk
        return False


def _relative(path: str, root: str) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def validation_files(seconds: Mapping[str, float]) -> set[str]:
    """Choose the files of the validation split: whole folders, by a hash of their paths.

    Files are divided at the highest level of the tree that has _MANY folders side by side, so that
    in artist/album/track no artist is on both sides; in a smaller tree, by the folder that they lie
    in, or the album around it if that is a disc ("CD 2"). A share _VALIDATION of the folders goes
    to validation: those with the lowest hashes, but none that holds more than _LARGEST of the
    audio. If there are two folders or more, at least one goes there: the one with the lowest hash,
    or, if all are large, the smallest. If all files lie in one folder, there is nothing to keep
    together, and the files are divided one by one in the same way.

    Args:
      seconds: the length of each file by its path.
    """
    groups = _groups(seconds)
    if len(groups) < 2:
        groups = {path: [path] for path in seconds}
    if len(groups) < 2:
        return set()

    lengths = {}
    for name, paths in groups.items():
        lengths[name] = sum(seconds[path] for path in paths)

    # the folders with the lowest hashes, without large ones
    limit = _LARGEST * sum(lengths.values())
    small = sorted((name for name in groups if lengths[name] <= limit), key=_fraction)
    chosen = [name for name in small if _fraction(name) < _VALIDATION] or small[:1]
    if not small:
        chosen = [min(groups, key=lambda name: (lengths[name], _fraction(name)))]
    if len(chosen) == len(groups):  # one is left for training
        chosen.pop()
    return set(itertools.chain.from_iterable(groups[name] for name in chosen))


def _groups(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the files of each folder at the level at which folders are divided."""
    folders = {path: _album(PurePosixPath(path).parent.parts) for path in paths}
    deepest = max((len(parts) for parts in folders.values()), default=0)
    level = deepest
    for depth in range(1, deepest):
        if len({parts[:depth] for parts in folders.values() if len(parts) >= depth}) >= _MANY:
            level = depth
            break
    groups = defaultdict(list)
    for path, parts in folders.items():
        groups["/".join(parts[:level])].append(path)
    return dict(groups)


def _album(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return a folder's parts without the discs that it is cut into."""
    while len(parts) > 1 and _DISC.fullmatch(parts[-1]):
        parts = parts[:-1]
    return parts


def _fraction(name: str) -> float:
    """Return a number in [0, 1) that depends on `name` alone."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _identity(path: str) -> tuple[int, int] | None:
    """Return the identity that all names of a file share; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
