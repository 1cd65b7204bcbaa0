"""GTZAN with the fault-filtered split: 930 clips of 30 s, their genre, beats and bar positions."""

import itertools
import sys
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, sources
from data_pipelines.shards import BuildError

GENRES = [
    "blues",
    "classical",
    "country",
    "disco",
    "hiphop",
    "jazz",
    "metal",
    "pop",
    "reggae",
    "rock",
]

_DNN_MGR = (
    "https://raw.githubusercontent.com/coreyker/dnn-mgr/"
    "bdad579ea6cb37b665ea6019fe1026a6ce20cbc7/gtzan"
)
# Kereliuk, Sturm and Larsen 2015. Which clip is in which list follows no rule, so the lists are
# downloaded (or placed by hand), never derived. Digests: jukemir assets/gtzan.json.
_LIST_DIGESTS = {
    "train": "2b04966cef1486f1a7767b74271533fa23e220388db804a1937835e1fc4fa3fa",
    "valid": "f8fbee7c52397a0e0f3a91dc54fedecb2e27f5bdc9a9daeab8cb10d077e26956",
    "test": "09cafa6a89ce0a27f30ed250d56ecb4d03c22fffb5a693f96c7ae655ee02ac72",
}
_LISTS = {
    "validation" if name == "valid" else name: sources.DownloadSource(
        f"{name}_filtered.txt", f"{_DNN_MGR}/{name}_filtered.txt", f"sha256:{digest}"
    )
    for name, digest in _LIST_DIGESTS.items()
}
# The original host (opihi.cs.uvic.ca) is gone; this is the mirror that Hugging Face's loader used.
_AUDIO = sources.DownloadSource(
    "genres.tar.gz",
    "https://huggingface.co/datasets/marsyas/gtzan/resolve/main/data/genres.tar.gz",
)
# GTZAN-Rhythm (Marchand, Fresnel and Peeters 2015) as plain text.
_COMMIT = "fd9cafdebb6426fee41c3718791be61306323dd7"
BEATS = sources.DownloadSource(
    f"gtzan_tempo_beat-{_COMMIT}.zip",
    f"https://github.com/TempoBeatDownbeat/gtzan_tempo_beat/archive/{_COMMIT}.zip",
)
BEATS_TREE = "git-tree:76c2d35e0a94124013253719c22644a646079ccf"  # of its beats/ at that commit


def read_list(text: str) -> list[tuple[str, str]]:
    """Read a fault-filtered list, one `blues/blues.00029.wav` a line, into (genre, path)."""
    clips = []
    for line in filter(None, map(str.strip, text.splitlines())):
        genre, _, name = line.partition("/")
        if genre not in GENRES or not name.startswith(f"{genre}."):
            raise BuildError(f"{line}: not a GTZAN path such as blues/blues.00029.wav")
        clips.append((genre, line))
    return clips


def read_beats(text: str, file: str = "beats") -> tuple[np.ndarray, np.ndarray]:
    """Read a .beats file, `seconds<TAB>position in the bar` a line, in order of time.

    Args:
      file: its name, for the error.

    Raises:
      BuildError: a line has another form.

    Returns:
      Times, float32 [beats], in seconds, and positions, int32 [beats], 1 for a downbeat and 0
      where the file has none. Some times lie after the end of the audio (up to 30.52 s): they
      are kept as annotated.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            time, *others = map(float, line.split())
            rows.append((time, int(others[0]) if others else 0))
            if not 0 <= time < np.inf:
                raise ValueError
        except (ValueError, OverflowError) as error:
            if line.strip():
                raise BuildError(
                    f"{file}, line {number}: {line!r} is not seconds and a position in the bar, "
                    "such as '0.52 1'"
                ) from error
    rows.sort(key=lambda row: row[0])
    times = np.array([time for time, _ in rows], np.float32)
    return times, np.array([position for _, position in rows], np.int32)


# Not registered: TFDS has a builder of the same name (one split of 1,000 from the dead host), and
# a second registration is an error. `python -m data_pipelines.build` does not need it.
class Builder(labelled.LabelledBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS takes it
    """Splits train, validation, test; labels `genre`, `beat_times` and `bar_positions`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "genres.tar.gz or the unpacked genres/ (Kaggle: genres_original/); optionally "
        "train_filtered.txt, valid_filtered.txt and test_filtered.txt, and the beats/ folder of "
        "TempoBeatDownbeat/gtzan_tempo_beat. What is absent is downloaded."
    )
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {"train": 443, "validation": 197, "test": 290}
    TRACK_SECONDS = 30.0
    HOMEPAGE = "http://marsyas.info/downloads/datasets.html"

    def label_features(self) -> dict:
        return {
            "genre": tfds.features.ClassLabel(names=GENRES),
            "beat_times": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "bar_positions": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        }

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        lists = sources.fetch(dl_manager, _LISTS)
        audio, beats = _audio_folder(dl_manager), _beats_folder(dl_manager)
        tracks = {}
        for split, file in lists.items():
            listed = read_list(file.read_text())
            tracks[split] = [_track(genre, path, audio, beats) for genre, path in listed]
        return labelled.Contents(tracks, {"genre": GENRES}, notes=_lacking(tracks, beats))


def _track(genre: str, path: str, audio: epath.Path, beats: epath.Path) -> labelled.Track:
    stem = path.partition("/")[2].removesuffix(".wav")  # blues.00029
    file = beats / f"gtzan_{stem.replace('.', '_')}.beats"
    times, positions = read_beats(file.read_text() if file.exists() else "", str(file))
    labels = {"genre": genre, "beat_times": times, "bar_positions": positions}
    clip = sources.placed(audio, path, f"{genre}/{stem}.au")  # its name in older copies
    return labelled.Track(stem, path, clip or audio / path, labels)


def _lacking(tracks: dict[str, list[labelled.Track]], beats: epath.Path) -> list[str]:
    """Return a line on the clips that have no beats; if none has any, the folder is wrong."""
    clips = list(itertools.chain.from_iterable(tracks.values()))
    without = [track.id for track in clips if not len(track.labels["beat_times"])]
    if clips and len(without) == len(clips):
        raise BuildError(f"{beats} has no file gtzan_<genre>_<NNNNN>.beats of any listed clip")
    return [f"clips without beats: {len(without)} ({', '.join(without[:5])})"] if without else []


def _audio_folder(dl_manager: tfds.download.DownloadManager) -> epath.Path:
    """Return the folder that holds blues ... rock."""
    manual = sources.manual_dir(dl_manager)
    folders = ("genres", "genres_original", "Data/genres_original")
    if (folder := sources.placed(manual, *folders)) is not None:
        return folder
    archive = sources.fetch(dl_manager, {"audio": _AUDIO})["audio"]
    return sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.TAR_GZ) / "genres"


def _beats_folder(dl_manager: tfds.download.DownloadManager) -> epath.Path:
    """Return the folder that holds gtzan_<genre>_<NNNNN>.beats."""
    manual = sources.manual_dir(dl_manager)
    folder = sources.placed(manual, "beats", "gtzan_tempo_beat*/beats")
    archive = sources.placed(manual, "gtzan_tempo_beat*.zip")
    by_hand = bool(folder or archive)
    if folder is None:
        archive = archive or sources.fetch(dl_manager, {"beats": BEATS})["beats"]
        root = sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.ZIP)
        folder = sources.placed(root, "*/beats", "beats") or root
    problem = sources.mismatch(folder, BEATS_TREE)
    if problem and not by_hand:
        raise BuildError(f"{BEATS.url}: of its beats/ {problem}; delete {archive} and run again")
    if problem:
        print(f"{folder}: {problem}; it is used anyway", file=sys.stderr)
    return folder
