"""VocalSet: 10 hours of 20 singers in 17 techniques; the technique and the singer task."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, paths, sources
from data_pipelines.shards import BuildError

_SINGERS = [f"f{i}" for i in range(1, 10)] + [f"m{i}" for i in range(1, 12)]
# The ten classes of the technique task, then the seven that only the singer task uses.
TECHNIQUES = [
    "belt",
    "breathy",
    "inhaled",
    "lip_trill",
    "spoken",
    "straight",
    "trill",
    "trillo",
    "vibrato",
    "vocal_fry",
]
_OTHERS = ["fast_forte", "fast_piano", "forte", "messa", "pp", "slow_forte", "slow_piano"]
_TEST_SINGERS = ("f2", "f8", "m3", "m5", "m10")  # test_singers_technique.txt of the data set

# Superfluous files, by technique and name: MARBLE v1, tasks/VocalSet/preprocess.py.
_DELETED = (
    "f2_scales_vibrato_a(1)",
    "caro_vibrato",
    "dona_vibrato",
    "row_vibrato",
    "slow_vibrato_arps",
)
_ARCHIVE = sources.DownloadSource(
    "VocalSet11.zip",
    "https://zenodo.org/records/1203819/files/VocalSet11.zip?download=1",
    "md5:0c09396242f946e7111ad7d8fc649b81",  # Zenodo record 1203819
)
_ARCHIVE_1_2 = sources.DownloadSource(
    "VocalSet1-2.zip",
    "https://zenodo.org/records/1442513/files/VocalSet1-2.zip?download=1",
    "md5:c5e5efab412637fc94972b93c343a2f0",  # Zenodo record 1442513, as quoted in public code
)


@dataclasses.dataclass(frozen=True)
class Recording:
    """One usable file: its path below the singers' folder, technique, singer and its final name."""

    path: str
    technique: str
    singer: str
    name: str  # with the singer's prefix, without .wav

    @property
    def key(self) -> str:
        return f"{self.technique}/{self.name}"


def read_tree(files: Sequence[str]) -> tuple[list[Recording], dict[str, str]]:
    """Select and name the recordings among `<singer>/<context>/<technique>/<file>.wav` paths.

    The singer is the folder (female2 is f2), and files that lack the prefix get it: MARBLE v1
    renames 28 such files to the same names. Paths of another depth, of a folder that is not one
    of the 17 techniques (female2 has a misspelt `vibrado`), or of the operating system are not
    part of the task.

    Returns:
      The recordings in the order of techniques and names, and {path: reason} of faulty files.
    """
    recordings: dict[str, Recording] = {}
    faults = {}
    for path in sorted(files):
        parts = path.split("/")
        if len(parts) != 4 or parts[2] not in (*TECHNIQUES, *_OTHERS) or parts[3].startswith("."):
            continue
        technique, stem = parts[2], parts[3].rpartition(".")[0]
        singer, prefix = _singer(parts[0]), stem.partition("_")[0]
        if technique == "vibrato" and stem in _DELETED:
            faults[path] = "superfluous: in no table of the paper"
        elif prefix in _SINGERS and prefix != singer:
            faults[path] = f"misnamed: {prefix} by its name, {singer} by its folder"
        else:
            name = stem if prefix == singer else f"{singer}_{stem}"
            recording = Recording(path, technique, singer, name)
            if recordings.setdefault(recording.key, recording) is not recording:
                faults[path] = f"duplicate: a second {recording.key}"
    # With the extension, as MARBLE lists them: "u(1).wav" comes before "u.wav".
    return sorted(recordings.values(), key=lambda r: (r.technique, f"{r.name}.wav")), faults


def _singer(folder: str) -> str:
    singer = folder.replace("female", "f").replace("male", "m")
    if singer not in _SINGERS:
        raise BuildError(f"{folder} is not a singer's folder such as female1 or male11")
    return singer


def split_tables(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Split for both tasks as MARBLE v1's code does, by recording.

    A recording's group is its index in the sorted listing of its technique, so the groups of
    different techniques run together. With NumPy's legacy generator, seed 42617, one shuffle of
    the groups each: technique (training singers; 0.4 validation), singer (0.2 test), singer
    (0.4 of the rest validation). The technique test set is the five official singers.

    The paper says 9 training and 6 validation singers for technique, without naming them, so the
    code's rule is the one here. It leaves singers in common between train and validation. MARBLE
    shuffles only the groups that yield a 3 s chunk; here every recording counts, so a group with
    only shorter ones would change the shuffle.
    """
    by_technique = itertools.groupby(recordings, lambda recording: recording.technique)
    group: dict[str, int] = {}
    for _, members in by_technique:
        group |= {recording.key: index for index, recording in enumerate(members)}

    # three shuffles by one generator, whose order is part of the rule
    random = np.random.RandomState(42617)
    technique = [r for r in recordings if r.technique in TECHNIQUES]
    train, validation = _shuffle_groups(
        [r for r in technique if r.singer not in _TEST_SINGERS], group, 0.4, random
    )
    rest, singer_test = _shuffle_groups(recordings, group, 0.2, random)
    singer_train, singer_validation = _shuffle_groups(rest, group, 0.4, random)
    return {
        "technique_train": train,
        "technique_validation": validation,
        "technique_test": [r for r in technique if r.singer in _TEST_SINGERS],
        "singer_train": singer_train,
        "singer_validation": singer_validation,
        "singer_test": singer_test,
    }


def _shuffle_groups(
    recordings: Sequence[Recording],
    group: dict[str, int],
    share: float,
    random: np.random.RandomState,
) -> tuple[list[Recording], list[Recording]]:
    """Take the first ceil(share) of the shuffled groups out, as sklearn's GroupShuffleSplit."""
    groups = np.unique([group[recording.key] for recording in recordings])
    order = groups[random.permutation(len(groups))]
    out = set(order[: int(np.ceil(share * len(groups)))].tolist())
    kept = [recording for recording in recordings if group[recording.key] not in out]
    taken = [recording for recording in recordings if group[recording.key] in out]
    return kept, taken


class Builder(labelled.LabelledBuilder):
    """Splits {technique,singer}_{train,validation,test}; labels `technique` and `singer`.

    Both tasks are in one build, as split names, because their splits cut across each other: a
    recording of a technique class is stored once for each task (2.2 GB in all at 16 kHz).
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "VocalSet11.zip (v1.1) or VocalSet1-2.zip (v1.2) from Zenodo records 1203819 and 1442513, "
        "or their unpacked FULL/ (v1.1) or data_by_singer/ (v1.2). Without them v1.1 is downloaded "
        "(2.1 GB)."
    )
    # The papers count 3 s chunks, which the task cuts; no count of recordings is published.
    TRACK_SECONDS = 10.0
    HOMEPAGE = "https://zenodo.org/records/1203819"

    def label_features(self) -> dict:
        return {
            "technique": tfds.features.ClassLabel(names=TECHNIQUES + _OTHERS),
            "singer": tfds.features.ClassLabel(names=_SINGERS),
        }

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        root = _singers_folder(dl_manager)
        files = paths.matching(root, "*/*/*/*.wav")
        recordings, faults = read_tree([file.relative_to(root).as_posix() for file in files])
        tracks = {}
        for split, chosen in split_tables(recordings).items():
            tracks[split] = [_track(recording, root) for recording in chosen]
        classes = {"technique": TECHNIQUES, "singer": _SINGERS}
        return labelled.Contents(tracks, classes, faults)


def _track(recording: Recording, root: epath.Path) -> labelled.Track:
    labels = {"technique": recording.technique, "singer": recording.singer}
    return labelled.Track(recording.key, recording.path, root / recording.path, labels)


def _singers_folder(dl_manager: tfds.download.DownloadManager) -> epath.Path:
    """Return the folder of the singers' folders: placed by hand, or from either archive.

    Version 1.2 holds the recordings three times, sorted by singer, by technique and by vowel.
    """
    manual = sources.manual_dir(dl_manager)
    if (folder := _placed(manual)) is not None:
        return folder
    source = _ARCHIVE_1_2 if sources.placed(manual, _ARCHIVE_1_2.filename) else _ARCHIVE
    archive = sources.fetch(dl_manager, {"audio": source})["audio"]
    root = sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.ZIP)
    if (folder := _placed(root)) is None:
        raise BuildError(f"{archive} holds neither FULL/ nor data_by_singer/: download it again")
    return folder


def _placed(folder: epath.Path | None) -> epath.Path | None:
    names = ("FULL", "data_by_singer")
    return sources.placed(folder, *names, *(f"*/{name}" for name in names))
