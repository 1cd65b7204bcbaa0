"""Features that were computed elsewhere, read from a directory and checked against the data set.

    DIR/features.json                   {"name", "sample_rate", "frame_rate", "layers", "width"}
    DIR/<data set>/<split>/digest.txt   `digest` of the split's records
    DIR/<data set>/<split>/frames.npy   how many frames each record has, integers [records]
    DIR/<data set>/<split>/layer_00.npy, layer_01.npy, ...
                                        all records' frames after each other, floats [frames, width]

Records are in the order of the data set. Frame i of a record begins i / frame_rate seconds after
the record does; a frame may be as long as a window, or a clip. musicssl/probing/own_encoder.md has
a program that writes such a directory.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from musicssl.features import windows
from musicssl.features.source import FeatureSource, Hear, Outputs, Read

ABOUT = "features.json"
_FIGURES = ("sample_rate", "frame_rate", "layers", "width")
_MOST_LAYERS = 1000
_BATCH = 64  # windows that are written at once
_CHUNK = 1 << 24  # bytes that are read at once for a digest


class Split(NamedTuple):
    """The features of a split.

    layers: memory-mapped arrays [frames, width].
    first: the place of each record's first frame in them, [records + 1].
    records: the numbers in the split of the records that are evaluated.
    """

    folder: Path
    layers: Sequence[np.ndarray]
    first: np.ndarray
    records: np.ndarray
    frame_rate: float


def open_features(folder: Path) -> FeatureSource:
    """Open a directory of features.

    Raises:
      FileNotFoundError: there is no such directory, or it has no features.json.
      ValueError: features.json lacks something.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(
            f"features:{folder} has no {ABOUT}: musicssl/probing/own_encoder.md says what it holds"
        )
    try:
        about = json.loads(path.read_text())
        figures = {name: about[name] for name in _FIGURES}
        if any(isinstance(x, bool) or not 0 < x < np.inf for x in figures.values()):
            raise ValueError("a figure is not above 0")
        if any(figures[name] != int(figures[name]) for name in _FIGURES if name != "frame_rate"):
            raise ValueError("only frame_rate may be a fraction")
        if figures["layers"] > _MOST_LAYERS:
            raise ValueError(f"there are more than {_MOST_LAYERS} layers")
        layers, width = int(figures["layers"]), int(figures["width"])
        sample_rate, frame_rate = int(figures["sample_rate"]), float(figures["frame_rate"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must have {', '.join(_FIGURES)} as numbers: {type(error).__name__}: {error}"
        ) from None
    hop = round(sample_rate / frame_rate)
    if hop < 1 or abs(hop - sample_rate / frame_rate) > 1e-3 * hop:
        raise ValueError(
            f"{path}: {sample_rate} Hz and {frame_rate:g} frames per second make a frame of "
            f"{sample_rate / frame_rate:.2f} samples, which must be a whole number"
        )
    digest = _digest(folder)
    return FeatureSource(
        f"{about.get('name', folder.name)}, computed elsewhere ({digest[:12]})",
        f"features-{digest}",
        layers,
        width,
        sample_rate,
        False,
        {},
        lambda *_: [],
        windows.Frames(hop, hop),
        {"directory": str(folder), "sha256": digest},
        bind=functools.partial(_bind, folder, (layers, width, sample_rate / hop)),
    )


def _digest(folder: Path) -> str:
    """Return the digest of everything in a directory; all of it is read."""
    files = [folder / ABOUT, *sorted(folder.glob("*/*/*"))]
    total = sum(file.stat().st_size for file in files)
    digest = hashlib.sha256()
    with tqdm(
        total=total, desc="digest of the features", unit="B", unit_scale=True, delay=2
    ) as bar:
        for file in files:
            digest.update(str(file.relative_to(folder)).encode())
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
    return digest.hexdigest()


def _bind(
    folder: Path, figures: tuple[int, int, float], dataset: str, split: str, data: Any
) -> Hear:
    """Check the features of a split against its records; return the function that reads them.

    Args:
      figures: layers, width and frame rate.
      data: the split's records, data_pipelines.labelled_records.Labelled.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the features are of other records, or not of the expected form.
    """
    layers, width, frame_rate = figures
    where = folder / dataset / split
    records = len(data.split_lengths)
    if not (where / "digest.txt").is_file():
        raise FileNotFoundError(
            f"{where} has no digest.txt: it should hold features of the {records} records of "
            f"{data.version} {split}, whose digest is {data.split_digest}"
        )
    said = (where / "digest.txt").read_text(errors="replace").strip()
    if said != data.split_digest:
        raise ValueError(
            f"{where} has features of other records: its digest.txt is {said[:12]}..., but that of "
            f"{data.version} {split} is {data.split_digest[:12]}..."
        )

    # How many frames each record has, which must match its length.
    frames = _array(where / "frames.npy")
    if frames.ndim != 1 or frames.dtype.kind not in "iu" or len(frames) != records:
        raise ValueError(
            f"{where / 'frames.npy'} is {frames.dtype} {list(frames.shape)}, but should hold the "
            f"numbers of frames of {records} records, integers [{records}]"
        )
    expected = data.split_lengths / data.sample_rate * frame_rate
    wrong = np.flatnonzero(np.abs(frames - expected) > 2 + 0.02 * expected)
    if len(wrong):
        r = int(wrong[0])
        raise ValueError(
            f"{where / 'frames.npy'}: record {r} has {frames[r]} frames, but its "
            f"{data.split_lengths[r] / data.sample_rate:.2f} s make {expected[r]:.1f}"
        )

    # The layers.
    total = int(frames.sum())
    arrays = [_array(where / f"layer_{number:02}.npy") for number in range(layers)]
    for number, array in enumerate(arrays):
        if array.shape != (total, width) or array.dtype.kind != "f":
            raise ValueError(
                f"{where / f'layer_{number:02}.npy'} is {array.dtype} {list(array.shape)}, but "
                f"should be floats [{total}, {width}], a row per frame of the {records} records"
            )
    if frames.min() < 1:
        raise ValueError(f"{where / 'frames.npy'}: record {frames.argmin()} has no frame")
    first = np.concatenate([[0], np.cumsum(frames)])
    return functools.partial(_hear, Split(where, arrays, first, data.numbers, frame_rate))


def _hear(
    split: Split,
    cut: windows.Windows,
    read: Read,
    pools: Sequence[int],
    waiting: Sequence[int],
    batch: int,
) -> Iterator[Outputs]:
    """Read the rows of windows, as FeatureSource.hear."""
    del read, batch
    counts = {pool: windows.rows_in(cut, pool) for pool in pools}
    length = cut.frames.count(cut.samples)
    shape = len(split.layers), min(_BATCH, len(waiting))
    width = split.layers[0].shape[1]
    for begin in range(0, len(waiting), _BATCH):
        numbers = list(waiting[begin : begin + _BATCH])
        outputs = {
            pool: np.zeros((*shape, count[numbers].max(), width), np.float16)
            for pool, count in counts.items()
        }
        for place, window in enumerate(numbers):
            frames = _frames(split, cut, window)
            for pool, values in outputs.items():
                rows, most = int(counts[pool][window]), frames.shape[1] - 1
                parts = windows.parts(pool, rows, int(length[window]), split.frame_rate)
                for row, (a, z) in enumerate(parts):  # missing frames repeat the record's last
                    values[:, place, row] = frames[:, min(a, most) : z].mean(1)
        yield numbers, outputs


def _frames(split: Split, cut: windows.Windows, window: int) -> np.ndarray:
    """Return the frames that begin in a window, at least one: float32 [layers, t, d].

    Raises:
      ValueError: they are not finite.
    """
    record = int(split.records[cut.record[window]])
    before, end = int(split.first[record]), int(split.first[record + 1])
    start = min(before + -(-int(cut.start[window]) // cut.frames.hop), end - 1)
    stop = min(start + int(cut.frames.count(cut.samples[window])), end)
    frames = np.stack([layer[start:stop] for layer in split.layers]).astype(np.float32)
    finite = np.isfinite(frames).all((1, 2))
    if not finite.all():
        raise ValueError(
            f"{split.folder / f'layer_{int(finite.argmin()):02}.npy'} has values that are not "
            f"finite in the frames of record {record}"
        )
    return frames


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive, not one array: write it with numpy.save")
    return array
