"""NSynth: 305,979 notes of 4 s; the instrument family and the pitch task.

TFDS has a builder of NSynth too. On one machine its Beam pipeline gathers every example of a split
in memory (74 GB of float32 for train), and its records have another form. This builder reads the
published wav archives and makes records in the form of all data sets here.
"""

import json
from typing import ClassVar

import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import labelled, sources
from data_pipelines.shards import BuildError

_FAMILIES = [  # in the order of instrument_family, 0 to 10
    "bass",
    "brass",
    "flute",
    "guitar",
    "keyboard",
    "mallet",
    "organ",
    "reed",
    "string",
    "synth_lead",
    "vocal",
]
_HOST = "http://download.magenta.tensorflow.org/datasets/nsynth"
_ARCHIVES = {  # no digest is published
    split: sources.DownloadSource(
        f"nsynth-{name}.jsonwav.tar.gz", f"{_HOST}/nsynth-{name}.jsonwav.tar.gz"
    )
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test"))
}


def _read_examples(text: str, audio: epath.Path) -> list[labelled.Track]:
    """Read examples.json, a dict by note name, into tracks; `audio` is the folder beside it."""
    tracks = []
    for name, note in sorted(json.loads(text).items()):
        family, pitch = note["instrument_family_str"], note["pitch"]
        if family not in _FAMILIES or not 0 <= pitch < 128:
            raise BuildError(f"examples.json: {name} has family {family!r} and pitch {pitch}")
        path = f"{audio.parent.name}/audio/{name}.wav"
        labels = {"family": family, "pitch": pitch}
        tracks.append(labelled.Track(name, path, audio / f"{name}.wav", labels))
    return tracks


# Not registered, since TFDS has a builder of the same name.
class Builder(labelled.LabelledBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS takes it
    """Splits train, validation, test; labels `family` (11 classes) and `pitch` (MIDI, 128)."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "nsynth-train.jsonwav.tar.gz, nsynth-valid.jsonwav.tar.gz and nsynth-test.jsonwav.tar.gz, "
        "or the folders nsynth-train/, nsynth-valid/ and nsynth-test/ unpacked from them. What is "
        "absent is downloaded (25 GB in all)."
    )
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {"train": 289205, "validation": 12678, "test": 4096}
    TRACK_SECONDS = 4.0
    HOMEPAGE = "https://magenta.tensorflow.org/datasets/nsynth"

    def label_features(self) -> dict:
        return {
            "family": tfds.features.ClassLabel(names=_FAMILIES),
            "pitch": tfds.features.ClassLabel(num_classes=128),
        }

    def contents(self, dl_manager: tfds.download.DownloadManager) -> labelled.Contents:
        roots = {split: _folder(dl_manager, split) for split in _ARCHIVES}
        tracks = {
            split: _read_examples((root / "examples.json").read_text(), root / "audio")
            for split, root in roots.items()
        }
        return labelled.Contents(tracks, {"family": _FAMILIES})


def _folder(dl_manager: tfds.download.DownloadManager, split: str) -> epath.Path:
    """Return nsynth-<split>/: placed by hand, or unpacked."""
    name = _ARCHIVES[split].filename.partition(".")[0]
    if (folder := sources.placed(sources.manual_dir(dl_manager), name)) is not None:
        return folder
    archive = sources.fetch(dl_manager, {split: _ARCHIVES[split]})[split]
    return sources.unpack(dl_manager, archive, tfds.download.ExtractMethod.TAR_GZ) / name
