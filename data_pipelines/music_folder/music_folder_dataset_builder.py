"""Any folder of music as a data set of 30-second records: see README.md beside this file."""

import dataclasses
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from data_pipelines import decode, machine
from data_pipelines.music_folder import tree
from data_pipelines.shards import RECORDED, BuildError, Input, ShardedBuilder

_SEGMENT = 30  # seconds of a record
_SHORTEST = 2  # seconds of the last record of a file, and of a file
_SOUND = 0.01  # share of a record's samples that are not 0; resampling rings into digital silence
_TOLD = 20  # how many unreadable folders are named
_SCANNERS = 16  # threads that read headers; mostly they wait for the disk


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """A builder config for one sample rate, in Hz."""

    sample_rate: int = 16_000


class Builder(ShardedBuilder):
    """Builds records from every audio file below --manual_dir."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012, TFDS's convention
    BUILDER_CONFIGS = [  # noqa: RUF012, TFDS's convention
        FolderConfig(name="16khz", description="16 kHz, as encoders expect.", sample_rate=16_000),
        FolderConfig(name="24khz", description="24 kHz.", sample_rate=24_000),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "--manual_dir is the folder that holds your music."

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(RECORDED),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Input]]:
        try:
            folder = epath.Path(dl_manager.manual_dir)
        except AssertionError as error:  # how TFDS says that the folder is not there or empty
            raise BuildError(
                "music_folder needs --manual_dir=DIR, a folder with music in it"
            ) from error

        # find the files
        try:
            listing = tree.walk(folder)
        except OSError as error:
            raise BuildError(
                f"{machine.shown(folder)}: {error.strerror}; make it readable"
            ) from error
        _say(folder, listing)
        if not listing.files:
            kinds = " ".join(sorted(decode.SUFFIXES))
            raise BuildError(f"{machine.shown(folder)} holds no audio file (known kinds: {kinds})")

        # read their lengths from their headers
        with ThreadPoolExecutor(_SCANNERS) as pool:
            lengths = pool.map(lambda path: decode.duration(folder / path), listing.files)
            bar = tqdm(lengths, "reading headers", len(listing.files), unit=" files", delay=5)
            seconds = dict(zip(listing.files, bar, strict=True))

        # whole folders go to validation
        validation = tree.validation_files(seconds)
        inputs: dict[str, list[Input]] = {"train": [], "validation": []}
        for path, length in seconds.items():
            split = "validation" if path in validation else "train"
            size = int(2 * self.sample_rate * length)  # of int16
            inputs[split].append(Input(path, size, str(folder / path)))
        return inputs

    def _generate_examples(self, source: Input) -> Iterator[tuple[str, dict[str, Any]]]:
        audio = decode.load(source.origin, self.sample_rate, _SHORTEST)
        name = machine.shown(source.path)
        for index, start in enumerate(range(0, len(audio), _SEGMENT * self.sample_rate)):
            segment = audio[start : start + _SEGMENT * self.sample_rate]  # [n] -> [<= 30 s]
            if len(segment) < _SHORTEST * self.sample_rate:
                continue
            if not _is_heard(segment, self.sample_rate):
                continue  # nothing to hear, and no variance to normalise by
            key = f"{name}#{index:04d}"
            seconds = np.float32(start / self.sample_rate)
            yield key, {"id": key, "path": name, "start": seconds, "audio": segment}


def _say(folder: epath.Path, listing: tree.Tree) -> None:
    """Print what a walk found, and what it ignored."""
    print(
        f"{machine.shown(folder)}: {len(listing.files)} audio files; ignored: {listing.others} "
        f"other files, {listing.repeated} second names of a file or folder, {listing.system} "
        f"system folders, {len(listing.unreadable)} unreadable folders",
        file=sys.stderr,
    )
    for path, why in listing.unreadable[:_TOLD]:
        print(f"{machine.shown(path)}: {why}; ignored", file=sys.stderr)


def _is_heard(segment: np.ndarray, sample_rate: int) -> bool:
    """Return whether int16 [n] is more than silence, rounding noise or a constant."""
    try:
        decode.check_heard(segment, sample_rate)
    except decode.Unusable:
        return False
    return bool(np.count_nonzero(segment) >= _SOUND * len(segment))
