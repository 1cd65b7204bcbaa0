"""Features on disk, memory-mapped while a pass over the audio writes them; a pass can go on."""

import json
import math
import shutil
from pathlib import Path

import numpy as np

from musicssl.features import windows

SAVE_EVERY = 32  # batches between notes of progress


class FeatureFiles:
    """Each pool's file, under another name until it is complete; `done` windows are written."""

    def __init__(self, layers: int, width: int, cut: windows.Windows, paths: dict[int, Path]):
        self.paths = paths
        self.counts = {pool: windows.rows_in(cut, pool) for pool in paths}
        self.first = {pool: np.cumsum(n) - n for pool, n in self.counts.items()}
        self.parts = {pool: path.with_suffix(".part") for pool, path in paths.items()}
        folder = min(paths.values())
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.progress = folder.with_suffix(".progress.json")
        self.done = _resume_point(self.progress, self.parts)
        self.batches = 0
        shapes = {p: (layers, int(n.sum()), width) for p, n in self.counts.items()}
        left = 1 - self.done / len(cut.record)
        _check_space(folder.parent, int(left * sum(2 * math.prod(x) for x in shapes.values())))
        self.files = {p: _open(self.parts[p], shape, self.done > 0) for p, shape in shapes.items()}

    def write(self, begin: int, end: int, outputs: dict[int, np.ndarray]) -> None:
        """Rows of windows begin to end; every SAVE_EVERY calls a note of how far it is."""
        for pool, values in outputs.items():
            _write(self.files[pool], values, self.first[pool], self.counts[pool], begin, end)
        self.batches += 1
        if self.batches % SAVE_EVERY == 0:
            for file in self.files.values():
                file.flush()
            self.progress.write_text(json.dumps({"windows": end, "pools": sorted(self.paths)}))

    def finish(self) -> None:
        for pool, file in self.files.items():
            file.flush()
            self.parts[pool].rename(self.paths[pool])
        self.progress.unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    """Raises OSError before files are laid out that the disk cannot hold: writing would crash."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free and these features take {needed / 1e9:.2f} GB: "
            "free some space, or set config.cache to another disk"
        )


def _open(path: Path, shape: tuple[int, ...], again: bool) -> np.ndarray:
    if again:
        return np.lib.format.open_memmap(path, "r+")
    return np.lib.format.open_memmap(path, "w+", np.float16, shape)


def _resume_point(progress: Path, parts: dict[int, Path]) -> int:
    """Windows that an interrupted pass has written of these very files, else 0."""
    if not progress.exists() or not all(part.exists() for part in parts.values()):
        return 0
    try:
        noted = json.loads(progress.read_text())
    except json.JSONDecodeError:
        return 0
    return noted["windows"] if noted["pools"] == sorted(parts) else 0


def _write(
    file: np.ndarray,
    values: np.ndarray,
    first: np.ndarray,
    counts: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """Puts a batch [layers, b, r, d] into rows; a window has its first counts[w] of the r."""
    values = values[:, : end - begin]
    real = np.arange(values.shape[2]) < counts[begin:end, None]  # [b, r]
    values = values[:, real]  # [layers, rows, d]
    if not np.isfinite(values).all():
        raise ValueError(
            f"features of windows {begin} to {end} are not finite in float16: the encoder is "
            "damaged, or its activations are beyond 65504"
        )
    file[:, first[begin] : first[begin] + values.shape[1]] = values
