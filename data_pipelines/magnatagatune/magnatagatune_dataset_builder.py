"""MagnaTagATune: 25,863 clips of 29 s with crowd-sourced tags; the top-50 tagging task."""

import csv
import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, sources
from data_pipelines.shards import BuildError

# The 50 most frequent tags, by frequency (4,851 down to 490 positives). Synonyms stay apart, as
# in all published numbers (jukemir, MARBLE, musicnn).
_BY_FREQUENCY = (
    "guitar,classical,slow,techno,strings,drums,electronic,rock,fast,piano,ambient,beat,violin,"
    "vocal,synth,female,indian,opera,male,singing,vocals,no vocals,harpsichord,loud,quiet,flute,"
    "woman,male vocal,no vocal,pop,soft,sitar,solo,man,classic,choir,voice,new age,dance,"
    "male voice,female vocal,beats,harp,cello,no voice,weird,country,metal,female voice,choral"
)
TAGS = _BY_FREQUENCY.split(",")

_HOST = "https://mirg.city.ac.uk/datasets/magnatagatune"
_HEX = "0123456789abcdef"  # the folders of the archive
_ANNOTATIONS = (
    sources.DownloadSource(  # this and the digests below: jukemir assets/magnatagatune.json
        "annotations_final.csv",
        f"{_HOST}/annotations_final.csv",
        "sha256:99b94e95825d4fa576386a5367b9c96e0ec636e9f9c240aceb492f4728f68c3c",
    )
)
_PARTS = {
    part: sources.DownloadSource(f"mp3.zip.{part}", f"{_HOST}/mp3.zip.{part}", f"sha256:{digest}")
    for part, digest in (
        ("001", "f857fe185968773058cc71662c2ef5d8f2d4b7338e3c122cfd52f82dcb9760b9"),
        ("002", "fc2e1ec441755556ed1398b1808f1b08b6034372f8bc27394510c0c58cdb52ce"),
        ("003", "83a689824c17e82f6eb81cdbc4e4ca239a4cfc1fb41f1a5c80b861caec90450f"),
    )
}


def split_of(mp3_path: str) -> str:
    """Return the split of a clip: folders 0-9, a, b train; c validation; d, e, f test.

    The "12:1:3" split of jukemir, musicnn and MARBLE. Songs are disjoint over it, artists are
    not.
    """
    folder = mp3_path.partition("/")[0]
    if len(folder) != 1 or folder not in _HEX:
        raise BuildError(f"{mp3_path}: the folder should be one of the 16 hexadecimal digits")
    return {"c": "validation", "d": "test", "e": "test", "f": "test"}.get(folder, "train")


def _read_annotations(table: str, audio: epath.Path) -> dict[str, list[labelled.Track]]:
    """Read annotations_final.csv (tabs, quotes, 188 tag columns) into tracks by split.

    Clips without any of the 50 tags stay, as in jukemir, MARBLE and musicnn (the "minz" lists
    drop them: figures of the two are not comparable).
    """
    rows = csv.DictReader(io.StringIO(table), delimiter="\t")
    columns = rows.fieldnames or []
    absent = [name for name in ("clip_id", *TAGS, "mp3_path") if name not in columns]
    if absent:
        raise BuildError(f"annotations_final.csv has no column {absent[0]!r}: download it again")
    tracks: dict[str, list[labelled.Track]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        path = row["mp3_path"].strip()
        labels = {"tags": np.array([row[tag] == "1" for tag in TAGS], np.uint8)}
        tracks[split_of(path)].append(
            labelled.Track(row["clip_id"].strip(), path, audio / path, labels)
        )
    return tracks


class Builder(labelled.LabelledBuilder):
    """Splits train, validation, test; label `tags`, uint8 [50] in the order of TAGS."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "annotations_final.csv and either the unpacked folders 0 ... f (directly or in mp3/), "
        "mp3.zip, or mp3.zip.001, .002 and .003. Without them all is downloaded from "
        "mirg.city.ac.uk (3 GB)."
    )
    # The three zero-byte files, all in train, are taken off: 18,709 are listed.
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {"train": 18706, "validation": 1825, "test": 5329}
    TRACK_SECONDS = 29.1
    HOMEPAGE = "https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset"

    def label_features(self) -> dict:
        return {"tags": tfds.features.Tensor(shape=(len(TAGS),), dtype=np.uint8)}

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        table = sources.fetch(dl_manager, {"table": _ANNOTATIONS})["table"]
        tracks = _read_annotations(table.read_text(), _audio_folder(dl_manager))
        return labelled.Contents(tracks, {"tags": TAGS})


def _audio_folder(dl_manager: tfds.download.DownloadManager) -> epath.Path:
    """Return the folder that holds 0 ... f: placed by hand, or unpacked from the archive."""
    manual = sources.manual_dir(dl_manager)
    folder = sources.placed(manual, *_HEX, *(f"mp3/{digit}" for digit in _HEX))
    if folder is not None:
        return folder.parent
    archive = sources.placed(manual, "mp3.zip")
    if archive is None:
        parts = sources.fetch(dl_manager, _PARTS)
        target = epath.Path(dl_manager.download_dir) / "magnatagatune" / "mp3.zip"
        target.parent.mkdir(parents=True, exist_ok=True)
        archive = sources.join([parts[part] for part in sorted(_PARTS)], target)
    return sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.ZIP)
