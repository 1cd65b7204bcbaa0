"""MTG-Jamendo: 55,000 full tracks with instrument, mood/theme, genre and top-50 tags."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, paths, sources
from data_pipelines.shards import BuildError

SUBSETS = {  # our name: that of the published files
    "instrument": "instrument",
    "moodtheme": "moodtheme",
    "genre": "genre",
    "top50": "top50tags",
}
_SPLITS = ("train", "validation", "test")

_RAW = (
    "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/"
    "d6252e4a3b378ba045b0159401b805b3a0cfe9de/data"
)
TABLES = {  # split-0, the one that published figures use
    f"{subset}/{split}": sources.DownloadSource(
        f"autotagging_{SUBSETS[subset]}-{split}.tsv",
        f"{_RAW}/splits/split-0/autotagging_{SUBSETS[subset]}-{split}.tsv",
    )
    for subset, split in itertools.product(SUBSETS, _SPLITS)
}
_CDN = "https://cdn.freesound.org/mtg-jamendo"


@dataclasses.dataclass
class JamendoConfig(labelled.RateConfig):
    """Which tracks to store: those with a tag of one of `subsets`."""

    subsets: tuple[str, ...] = tuple(SUBSETS)
    collection: str = "raw_30s"  # the download that holds them


class TableRow(NamedTuple):
    """A track of a split file: its path, its length in seconds, its tags of one subset."""

    path: str
    seconds: float
    tags: tuple[str, ...]


def read_table(text: str) -> dict[str, TableRow]:
    """Read a split file into {track id: row}.

    The files have CRLF or LF ends and as many columns as a track has tags: five fixed ones, then
    one tag each, such as `genre---rock`.
    """
    header, *lines = text.splitlines() or [""]
    if header.split("\t")[:5] != ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION"]:
        raise BuildError(f"not an MTG-Jamendo split file: its first line is {header[:60]!r}")
    rows = (line.split("\t") for line in lines if line)
    return {row[0]: TableRow(row[3], float(row[4]), tuple(filter(None, row[5:]))) for row in rows}


def _vocabulary(tables: Mapping[str, Mapping[str, TableRow]], subset: str) -> list[str]:
    """Return the sorted tags of a subset's three split files.

    The split files, not the whole-subset files: those hold 95, 41 and 59 genre, instrument and
    mood/theme tags, of which 87, 40 and 56 are in all splits (README of the data set).
    """
    tags: set[str] = set()
    for split in _SPLITS:
        for row in tables[f"{subset}/{split}"].values():
            tags.update(row.tags)
    return sorted(tags)


def _merge(
    tables: Mapping[str, Mapping[str, TableRow]], subsets: Iterable[str]
) -> dict[str, dict[str, dict[str, TableRow]]]:
    """Join the subsets' tables into {split: {track: {subset: row}}}.

    A track is in the same split of every subset that has it (the subsets were filtered from one
    split); tables in which that does not hold are refused.
    """
    merged: dict[str, dict[str, dict[str, TableRow]]] = {split: {} for split in _SPLITS}
    home: dict[str, str] = {}
    for subset in subsets:
        for split in _SPLITS:
            for track, row in tables[f"{subset}/{split}"].items():
                if home.setdefault(track, split) != split:
                    raise BuildError(f"{track} is in {home[track]} and {split}: mixed split files")
                merged[split].setdefault(track, {})[subset] = row
    return merged


class Builder(labelled.LabelledBuilder):
    """Splits train, validation, test; labels `instrument`, `moodtheme`, `genre`, `top50`.

    One store of audio serves the four tasks. Each label is uint8 [classes of the subset]; a
    track belongs to a subset exactly if that vector is not all zero, since every track of a
    subset's files has a tag of it. The names of the classes are in the data set's metadata.
    """

    BUILDER_CONFIGS: ClassVar[list[JamendoConfig]] = [
        JamendoConfig(name="16khz", sample_rate=16000, description="All tracks, 16 kHz, 434 GB."),
        JamendoConfig(name="24khz", sample_rate=24000, description="All tracks, 24 kHz, 651 GB."),
        *(
            JamendoConfig(
                name=f"moodtheme_{rate}khz",
                sample_rate=1000 * rate,
                subsets=("moodtheme",),
                collection="autotagging_moodtheme",
                description=f"Mood/theme tracks only, {rate} kHz, {size} GB.",
            )
            for rate, size in ((16, 126), (24, 189))
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the audio as the data set's download.py leaves it, unpacked (00/ ... 99/ with <id>.mp3 or "
        "<id>.low.mp3) or as .tar archives, and, if they are not to be downloaded, the twelve "
        "files autotagging_<subset>-<split>.tsv of data/splits/split-0."
    )
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {
        "instrument/train": 14395,
        "instrument/validation": 5466,
        "instrument/test": 5115,
        "moodtheme/train": 9949,
        "moodtheme/validation": 3802,
        "moodtheme/test": 4231,
        "genre/train": 32572,
        "genre/validation": 11043,
        "genre/test": 11479,
        "top50/train": 32136,
        "top50/validation": 10888,
        "top50/test": 11356,
    }
    TRACK_SECONDS = 244.5
    MAX_SIMULTANEOUS_DOWNLOADS = 8  # of 100 archives of 1.6 GB
    HOMEPAGE = "https://github.com/MTG/mtg-jamendo-dataset"

    def label_features(self) -> dict:
        return {
            subset: tfds.features.Tensor(shape=(None,), dtype=np.uint8)
            for subset in self.builder_config.subsets
        }

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        config = self.builder_config
        wanted = {name: t for name, t in TABLES.items() if name.split("/")[0] in config.subsets}
        files = sources.fetch(dl_manager, wanted)
        tables = {name: read_table(file.read_text()) for name, file in files.items()}
        classes = {subset: _vocabulary(tables, subset) for subset in config.subsets}
        locate = _locator(dl_manager, config.collection)
        tracks: dict[str, list[labelled.Track]] = {}
        for split, members in _merge(tables, config.subsets).items():
            tracks[split] = [
                _track(split, track, rows, classes, locate) for track, rows in members.items()
            ]
        return labelled.Contents(tracks, classes)


def _track(
    split: str,
    track: str,
    rows: Mapping[str, TableRow],
    classes: Mapping[str, Sequence[str]],
    locate: Callable[[str], epath.Path | labelled.Member],
) -> labelled.Track:
    path, seconds, _ = next(iter(rows.values()))
    tags = {subset: rows[subset].tags if subset in rows else () for subset in classes}
    labels = {subset: _multi_hot(tags[subset], names) for subset, names in classes.items()}
    counted = tuple(f"{subset}/{split}" for subset in rows)
    return labelled.Track(track, path, locate(path), labels, seconds=seconds, counted=counted)


def _multi_hot(tags: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return uint8 [classes]: 1 for each of `names` that is among `tags`."""
    return np.array([name in tags for name in names], np.uint8)


def _locator(
    dl_manager: tfds.download.DownloadManager, collection: str
) -> Callable[[str], epath.Path | labelled.Member]:
    """Return the function from a table's path (41/241.mp3) to where that track's audio is.

    Hand-placed folders come first, each file by either of its names, then hand-placed archives,
    then a download of the 100 archives of mono mp3 ("audio-low"), which are read as they are:
    unpacked they would lie on disk twice.
    """
    manual = sources.manual_dir(dl_manager)
    placed = sources.placed(manual, "[0-9][0-9]", "*/[0-9][0-9]")
    archives = paths.matching(manual, "*-[0-9][0-9].tar") if manual else []
    tars = {tar.name[-6:-4]: tar for tar in archives}
    if not placed and not tars:
        tars = _download_tars(dl_manager, collection)

    def locate(path: str) -> epath.Path | labelled.Member:
        folder, _, name = path.partition("/")
        if placed:
            names = (path.removesuffix(".mp3") + ".low.mp3", path)
            if found := sources.placed(placed.parent, *names):
                return found
            if not tars:
                return placed.parent / path
        if folder not in tars:
            raise BuildError(f"no archive *-{folder}.tar in --manual_dir, which should hold {path}")
        return labelled.Member(tars[folder], name.removesuffix(".mp3"))

    return locate


def _download_tars(
    dl_manager: tfds.download.DownloadManager, collection: str
) -> dict[str, epath.Path]:
    """Download the 100 archives of a collection, checked by its published list of SHA-256."""
    published = f"{collection}_audio-low_sha256_tars.txt"
    digests = sources.DownloadSource(published, f"{_RAW}/download/{published}")
    lines = sources.fetch(dl_manager, {"digests": digests})["digests"].read_text().split("\n")
    tars = {}
    for line in filter(str.strip, lines):
        digest, name = line.split()
        url = f"{_CDN}/{collection}/audio-low/{name}"
        tars[name[-6:-4]] = sources.DownloadSource(name, url, f"sha256:{digest}")
    return sources.fetch(dl_manager, tars)
