"""EmoMusic: 744 excerpts of 45 s with arousal and valence; the emotion regression task."""

import csv
import hashlib
import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, sources
from data_pipelines.shards import BuildError

_HOST = "https://cvml.unige.ch/databases/emoMusic"
_INFO, _STATIC = "songs_info.csv", "static_annotations.csv"
_SET = "Mediaeval 2013 set"  # the column that marks the official evaluation songs
_ANNOTATIONS = sources.DownloadSource(  # digests: jukemir assets/emomusic.json
    "annotations.tar.gz",
    f"{_HOST}/annotations.tar.gz",
    "sha256:e0cb0b06e1b0ce7f04b1572fc410937699b7fad9dae67ddaa745f06cda4b0b33",
)
_CLIPS = sources.DownloadSource(
    "clips_45sec.tar.gz",
    f"{_HOST}/clips_45sec.tar.gz",
    "sha256:3994a5d5fefc27f9540d1a69cd7f1294c68e6cb311ce49765021e2e9c7a1057b",
)


def read_table(text: str) -> dict[int, dict[str, str]]:
    """Read one of the comma-separated tables, by song_id, without the stray spaces."""
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    table = {}
    for row in rows:
        cleaned = {key.strip(): (value or "").strip() for key, value in row.items() if key}
        table[int(cleaned["song_id"])] = cleaned
    return table


def split_of(artist: str, mediaeval_set: str) -> str:
    """Return the split of a song: jukemir's rule.

    The official evaluation songs are the test set. Development songs go by their artist's name,
    reduced to lower-case ASCII letters and single spaces: sha1 mod 10 below 8 is train. So no
    artist is in both train and validation; some are in both train and test.
    """
    if mediaeval_set == "evaluation":
        return "test"
    letters = (c for c in artist.lower() if c.isascii() and (c.isalpha() or c.isspace()))
    name = " ".join("".join(letters).split())
    digest = int(hashlib.sha1(name.encode()).hexdigest(), 16)
    return "train" if digest % 10 < 8 else "validation"


def _z_score(raw: np.ndarray, development: np.ndarray) -> np.ndarray:
    """Standardise [songs, 2] with the mean and population deviation of development songs.

    Published values: arousal 4.7561 and 1.3860, valence 4.9739 and 1.2546. `development` is
    boolean [songs], true for train and validation songs.
    """
    known = raw[development]
    return (raw - known.mean(0)) / known.std(0)


def _read_songs(info: str, static: str, clips: epath.Path) -> dict[str, list[labelled.Track]]:
    """Join songs_info.csv and static_annotations.csv into tracks by split."""
    songs, annotations = read_table(info), read_table(static)
    ids = sorted(songs)
    if lacking := [song for song in ids if song not in annotations]:
        raise BuildError(f"{_STATIC} has no row for song_id {lacking[0]}: get annotations.tar.gz")
    arousal = [float(annotations[song]["mean_arousal"]) for song in ids]
    valence = [float(annotations[song]["mean_valence"]) for song in ids]
    raw = np.array(list(zip(arousal, valence, strict=True)))  # [songs, 2]
    splits = [split_of(songs[i]["Artist"], songs[i][_SET]) for i in ids]
    scaled = _z_score(raw, np.array(splits) != "test")
    tracks: dict[str, list[labelled.Track]] = {"train": [], "validation": [], "test": []}
    for song, split, original, standard in zip(ids, splits, raw, scaled, strict=True):
        labels = {"emotion_raw": original.astype("f4"), "emotion": standard.astype("f4")}
        name = f"{song}.mp3"
        tracks[split].append(labelled.Track(f"{song:04d}", name, clips / name, labels))
    return tracks


class Builder(labelled.LabelledBuilder):
    """Splits train, validation, test; labels `emotion` (z-scored) and `emotion_raw` (1 to 9).

    Both are float32 [2] in the order arousal, valence.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "clips_45seconds/ or clips_45sec.tar.gz, and annotations/ (or its .csv files directly) or "
        "annotations.tar.gz, from https://cvml.unige.ch/databases/emoMusic/. What is absent is "
        "downloaded."
    )
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {"train": 504, "validation": 115, "test": 125}
    TRACK_SECONDS = 45.0
    HOMEPAGE = "https://cvml.unige.ch/databases/emoMusic/"

    def label_features(self) -> dict:
        pair = tfds.features.Tensor(shape=(2,), dtype=np.float32)
        return {"emotion": pair, "emotion_raw": pair}

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        tables = _tables_folder(dl_manager)
        info, static = ((tables / name).read_text() for name in (_INFO, _STATIC))
        tracks = _read_songs(info, static, _clips_folder(dl_manager))
        return labelled.Contents(tracks, {"emotion": ["arousal", "valence"]})


def _tables_folder(dl_manager: tfds.download.DownloadManager) -> epath.Path:
    manual = sources.manual_dir(dl_manager)
    table = sources.placed(manual, _INFO, f"annotations/{_INFO}")
    if table is None:
        archive = sources.fetch(dl_manager, {"tables": _ANNOTATIONS})["tables"]
        root = sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.TAR_GZ)
        table = sources.placed(root, _INFO, f"*/{_INFO}") or root / _INFO
    return table.parent


def _clips_folder(dl_manager: tfds.download.DownloadManager) -> epath.Path:
    manual = sources.manual_dir(dl_manager)
    if (folder := sources.placed(manual, "clips_45seconds")) is not None:
        return folder
    archive = sources.fetch(dl_manager, {"clips": _CLIPS})["clips"]
    root = sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.TAR_GZ)
    return root / "clips_45seconds"
