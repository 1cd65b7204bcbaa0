"""Features on disk, memory-mapped while written by a pass over the audio, which can resume."""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from musicssl import host
from musicssl.command import note
from musicssl.features import windows
from musicssl.paths import write

SAVE_EVERY = 32  # batches between notes of progress
_ALIKE = 0.02  # share of an answer's deviation: more than half precision on another machine causes


class FeatureFiles:
    """The files of a pass over the audio, one for each pool; `turn` keeps other passes away.

    Until it is complete, a file has another name. `written` [w] says of each window whether it has
    been written.
    """

    def __init__(self, layers: int, width: int, cut: windows.Windows, paths: dict[int, Path]):
        """Create the files, or reopen those of an interrupted pass.

        Args:
          layers, width: of the features.
          cut: the windows that will be written.
          paths: of the complete files, by pool.

        Raises:
          OSError: the disk has no room for them.
        """
        self.paths = paths
        folder = min(paths.values()).parent
        folder.mkdir(parents=True, exist_ok=True)
        name = _name_of_pass(paths.values())
        self.parts = {pool: _beside(name, f".{pool}.part") for pool in paths}
        self.progress = _beside(name, ".progress.json")
        self.written = _written(self.progress, self.parts, len(cut.record))
        self.batches = 0

        # The rows of each window, by pool.
        self.counts: dict[int, np.ndarray] = {}
        self.first: dict[int, np.ndarray] = {}
        shapes: dict[int, tuple[int, int, int]] = {}
        for pool in paths:
            counts = windows.rows_in(cut, pool)
            self.counts[pool], self.first[pool] = counts, np.cumsum(counts) - counts
            shapes[pool] = layers, int(counts.sum()), width

        # Open the files, if the disk can hold what remains to be written.
        size = sum(2 * math.prod(shape) for shape in shapes.values())
        again = bool(self.written.any())
        _check_space(folder, int((~self.written).mean() * size))
        if not again:  # it describes files that are about to be overwritten
            self.progress.unlink(missing_ok=True)
        self.files = {pool: _open(self.parts[pool], shapes[pool], again) for pool in paths}

    def write(self, numbers: Sequence[int], outputs: dict[int, np.ndarray]) -> None:
        """Write the rows of some windows; save at every SAVE_EVERY-th call.

        Args:
          outputs: by pool, [layers, b, r, d]: each window's rows, followed by filling.

        Raises:
          ValueError: a feature is not finite in float16.
        """
        for pool, values in outputs.items():
            for i, window in enumerate(numbers):
                first, count = self.first[pool][window], self.counts[pool][window]
                rows = values[:, i, :count]
                finite = np.isfinite(rows).all((1, 2))
                if not finite.all():
                    raise ValueError(
                        f"layer {finite.argmin()} of window {window} is not finite in float16: the "
                        "encoder is damaged, or its values exceed 65504 (a plug-in can scale them)"
                    )
                self.files[pool][:, first : first + count] = rows

        self.written[list(numbers)] = True
        self.batches += 1
        if self.batches % SAVE_EVERY == 0:
            self.save()

    def copy(self, heard: windows.Windows, paths: dict[int, Path], alike: np.ndarray) -> None:
        """Write the windows that complete files already have, if there are such files.

        Args:
          heard: the windows of those files. paths: of the files, by pool.
          alike: which of them each window sounds like, [w]; -1 for none.
        """
        if not all(path.exists() for path in paths.values()):
            return
        found = np.flatnonzero(~self.written & (alike >= 0))
        for pool, path in paths.items():
            features = np.load(path, mmap_mode="r")
            ends = np.cumsum(windows.rows_in(heard, pool))
            for window, other in zip(found, alike[found], strict=True):
                first, count = self.first[pool][window], self.counts[pool][window]
                rows = features[:, ends[other] - count : ends[other]]
                self.files[pool][:, first : first + count] = rows
        self.written[found] = True

    def save(self) -> None:
        """Note which windows are on disk: all up to a certain one, except for a few that wait."""
        for file in self.files.values():
            file.flush()
        end = int(np.flatnonzero(self.written)[-1]) + 1 if self.written.any() else 0
        waiting = np.flatnonzero(~self.written[:end]).tolist()
        noted = {"windows": end, "waiting": waiting, "pools": sorted(self.paths)}
        self.progress.write_text(json.dumps(noted))

    def stop(self) -> None:
        """Keep what an interrupted pass has written; leave no files if it has written nothing."""
        if self.written.any():
            self.save()
            return
        for path in (self.progress, *self.parts.values()):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the files their final names; remove what interrupted passes have left."""
        for pool, file in self.files.items():
            file.flush()
            self.parts[pool].rename(self.paths[pool])
        self.progress.unlink(missing_ok=True)
        name = _name_of_pass(self.paths.values())
        for left in name.parent.glob(f"{name.name}.*.part"):
            left.unlink(missing_ok=True)


def check_answer(folder: Path, answer: np.ndarray, name: str) -> None:
    """Note an encoder's answer in its folder of the cache, or compare it with the noted one.

    Raises:
      ValueError: they differ by more than rounding.
    """
    path = folder / "answer.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        held = io.BytesIO()
        np.save(held, answer)
        write(path, held.getvalue())
        return
    noted = np.load(path)
    if np.sqrt(np.mean((noted - answer) ** 2)) > _ALIKE * (noted.std() + 1e-9):
        raise ValueError(
            f"{name} gives other features than those in {folder}, though its file, its weights and "
            "its `version` are the same: give it another `version`"
        )


@contextlib.contextmanager
def turn(paths: Collection[Path]) -> Iterator[None]:
    """Until the block ends, let this process alone make those of these files that are missing.

    While another process makes them, this one waits and says which one that is; then none is
    missing any more.
    """
    while missing := [path for path in paths if not path.exists()]:
        name = _name_of_pass(missing)
        name.parent.mkdir(parents=True, exist_ok=True)
        with host.claim(_beside(name, ".claim"), math.inf, _say_who):
            missing = [path for path in missing if not path.exists()]
            if missing and _name_of_pass(missing) == name:
                yield
                return
    yield


def _say_who(other: OSError, seconds: float) -> None:
    """Say once a minute who extracts the same features; it is called more often than that."""
    if seconds % 60 < 10:
        note(f"these features are being extracted by {other}: waiting for that to end")


def _name_of_pass(paths: Collection[Path]) -> Path:
    """Return the beginning of the names of a pass's claim and unfinished files."""
    return min(paths).with_suffix("")


def _beside(name: Path, ending: str) -> Path:
    return name.with_name(name.name + ending)


def _check_space(folder: Path, needed: int) -> None:
    """Check that the disk can hold the files; else writing to their mapped memory would crash.

    Raises:
      OSError: there is not enough space.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, but these features take {needed / 1e9:.2f} "
            "GB: free some space, or set config.cache to another disk"
        )


def _open(path: Path, shape: tuple[int, ...], again: bool) -> np.memmap:
    """Open a float16 file, either a new one or one that an interrupted pass has left."""
    if again:
        return np.lib.format.open_memmap(path, "r+")
    return np.lib.format.open_memmap(path, "w+", np.float16, shape)


def _written(progress: Path, parts: dict[int, Path], count: int) -> np.ndarray:
    """Return which of `count` windows an interrupted pass has written to exactly these files."""
    written = np.zeros(count, bool)
    if not progress.exists() or not all(part.exists() for part in parts.values()):
        return written
    try:
        noted = json.loads(progress.read_text())
    except json.JSONDecodeError:
        return written
    if noted["pools"] == sorted(parts):
        written[: noted["windows"]] = True
        written[noted["waiting"]] = False
    return written
