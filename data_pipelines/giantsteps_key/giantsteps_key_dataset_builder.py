"""GiantSteps Key: global key of electronic dance music; train and validation from the MTG set."""

import csv
import hashlib
import io
import itertools
from collections.abc import Iterable
from typing import ClassVar

import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, paths, sources
from data_pipelines.shards import BuildError

_TONICS = ["C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B"]
KEYS = [f"{tonic} {mode}" for mode, tonic in itertools.product(("major", "minor"), _TONICS)]
_FLATS = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}

_GITHUB = "https://github.com/GiantSteps"
_AUDIO_HOST = "http://www.cp.jku.at/datasets/giantsteps"
# GitHub does not promise that an archive's bytes stay the same, so there is no digest: the commit
# in the URL names the content, and the archives carry the MD5 of every audio file.
REPOSITORIES = {
    "test": sources.DownloadSource(
        "giantsteps-key-dataset.zip",
        f"{_GITHUB}/giantsteps-key-dataset/archive/c8cb8aad2cb53f165be51ea099d0dc75c64a844f.zip",
    ),
    "train": sources.DownloadSource(
        "giantsteps-mtg-key-dataset.zip",
        f"{_GITHUB}/giantsteps-mtg-key-dataset/archive/"
        "fd7b8c584f7bd6d720d170c325a6d42c9bf75a6b.zip",
    ),
}
_AUDIO = {"test": f"{_AUDIO_HOST}/backup", "train": f"{_AUDIO_HOST}/mtg_key_backup"}


def parse_key(text: str, where: str = "key") -> str:
    """Return a key such as `C minor` as one of KEYS: tonic as a flat, mode in lower case.

    Args:
      where: file and track, for the error.
    """
    words = text.split()
    tonic = words[0][:1].upper() + words[0][1:] if words else ""
    key = f"{_FLATS.get(tonic, tonic)} {words[1].lower()}" if len(words) == 2 else text
    if key not in KEYS:
        raise BuildError(f"{where}: {text!r} is not a key such as 'C minor' or 'F# major'")
    return key


def artist_splits(credits: Iterable[str]) -> dict[str, str]:
    """Assign every artist to train or validation: jukemir's rule.

    An artist's split is sha1 of the lower-case name mod 116: below 100 train, else validation.
    Artists who share a credit with a validation artist go there too; that pass runs twice, in the
    order of the table.

    Args:
      credits: the ARTIST field of each track, names separated by commas.
    """
    teams = [_names(credit) for credit in credits]
    split = {}
    for name in (name for team in teams for name in team):
        digest = int(hashlib.sha1(name.lower().encode()).hexdigest(), 16)
        split[name] = "train" if digest % 116 < 100 else "validation"
    for team in teams * 2:
        if any(split[name] == "validation" for name in team):
            split.update(dict.fromkeys(team, "validation"))
    return split


def _select_mtg(annotations: str, metadata: str) -> dict[int, tuple[str, str]]:
    """Return {track id: (split, key)} of the MTG key set's usable tracks.

    Confidence must be 2 and the key a single one (no "/"): 1,159 of 1,486 tracks, as in jukemir
    and MARBLE (their papers say 1,077).
    """
    credit = {int(row["ID"]): row["ARTIST"] for row in _rows(metadata)}
    split = artist_splits(credit.values())
    usable = {}
    for row in _rows(annotations):
        key = row["MANUAL KEY"].strip()
        if row["C"].strip() != "2" or "/" in key:
            continue
        track = int(row["ID"])
        if track not in credit:
            raise BuildError(
                f"beatport_metadata.txt has no track {track}: download the repository again"
            )
        team = {split[name] for name in _names(credit[track])}
        key = parse_key(key, f"annotations.txt, track {track}")
        usable[track] = ("validation" if "validation" in team else "train", key)
    return usable


class Builder(labelled.LabelledBuilder):
    """Splits train, validation (MTG key set) and test (GiantSteps Key); label `key`, 24 classes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the two repositories giantsteps-key-dataset and giantsteps-mtg-key-dataset of "
        "github.com/GiantSteps, as clones or unpacked archives, each with its <id>.LOFI.mp3 files "
        "in its audio/ folder. Repositories and files that are absent are downloaded."
    )
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {"train": 923, "validation": 236, "test": 604}
    TRACK_SECONDS = 120.0
    MAX_SIMULTANEOUS_DOWNLOADS = 8  # 1,763 files from a university's server
    HOMEPAGE = "https://github.com/GiantSteps/giantsteps-key-dataset"

    def label_features(self) -> dict:
        return {"key": tfds.features.ClassLabel(names=KEYS)}

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        mtg, test = _repository(dl_manager, "train"), _repository(dl_manager, "test")
        tables = (mtg / "annotations" / f"{t}.txt" for t in ("annotations", "beatport_metadata"))
        chosen = _select_mtg(*(table.read_text() for table in tables))
        files = paths.matching(test / "annotations" / "key", "*.LOFI.key")
        held_out = {
            int(file.name.partition(".")[0]): ("test", parse_key(file.read_text(), str(file)))
            for file in files
        }
        tracks: dict[str, list[labelled.Track]] = {"train": [], "validation": [], "test": []}
        for origin, root, selection in (("train", mtg, chosen), ("test", test, held_out)):
            audio = _audio(dl_manager, root, _AUDIO[origin], sorted(selection))
            for track, (split, key) in sorted(selection.items()):
                tracks[split].append(_track(origin, root, track, key, audio[track]))
        return labelled.Contents(tracks, {"key": KEYS})


def _track(
    origin: str, root: epath.Path, track: int, key: str, audio: epath.Path
) -> labelled.Track:
    path = f"{_name(origin)}/audio/{track}.LOFI.mp3"
    digest = _numbered(root / "md5", track, "md5")
    md5 = digest.read_text().split()[0] if digest else None
    return labelled.Track(f"{track:07d}", path, audio, {"key": key}, md5)


def _rows(table: str) -> csv.DictReader:
    return csv.DictReader(io.StringIO(table), delimiter="\t")


def _names(credit: str) -> list[str]:
    return [name.strip() for name in credit.strip().split(",")]


def _numbered(folder: epath.Path, track: int, kind: str) -> epath.Path | None:
    """Find <id>.LOFI.<kind>; older revisions of the repositories pad the id to seven digits."""
    return sources.placed(folder, f"{track}.LOFI.{kind}", f"{track:07d}.LOFI.{kind}")


def _name(origin: str) -> str:
    return REPOSITORIES[origin].filename.removesuffix(".zip")


def _repository(dl_manager: tfds.download.DownloadManager, origin: str) -> epath.Path:
    """Return the root of the test ("test") or the MTG ("train") repository."""
    name = _name(origin)
    manual = sources.manual_dir(dl_manager)
    table = sources.placed(manual, f"{name}/annotations", f"{name}-*/annotations")
    if table is None:
        archive = sources.fetch(dl_manager, {origin: REPOSITORIES[origin]})[origin]
        root = sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.ZIP)
        table = sources.placed(root, "*/annotations") or root / "annotations"
    return table.parent


def _audio(
    dl_manager: tfds.download.DownloadManager, root: epath.Path, host: str, tracks: list[int]
) -> dict[int, epath.Path]:
    """Return where each track's audio is: in the repository's audio/ folder, or downloaded.

    With an audio/ folder nothing is downloaded: a file that it lacks goes to the skipped list.
    """
    folder = root / "audio"
    if folder.exists():
        return {t: _numbered(folder, t, "mp3") or folder / f"{t}.LOFI.mp3" for t in tracks}
    urls = {str(track): f"{host}/{track}.LOFI.mp3" for track in tracks}
    downloaded = sources.download(dl_manager, urls)
    return {track: downloaded[str(track)] for track in tracks}
