"""What the labelled data sets share: they turn whole files with labels into records.

A builder says which tracks exist and where their audio is (`contents`). Here the tracks are decoded
and the sizes compared with the published ones. Shards, workers and skipped.tsv are those of
data_pipelines.shards.
"""

import abc
import collections
import contextlib
import dataclasses
import functools
import hashlib
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import decode, shards


@dataclasses.dataclass(frozen=True)
class Member:
    """A file inside an uncompressed tar, by the part of its name before the first dot."""

    archive: epath.Path
    stem: str


@dataclasses.dataclass(frozen=True)
class Track:
    """A future record: its unique id, the path it is known by, where its audio is, its labels.

    `seconds` is its length, if a table states it; `counted` names the entries of EXPECTED_SIZES
    that it counts towards, if they are not simply its split.
    """

    id: str
    path: str
    audio: epath.Path | Member
    labels: Mapping[str, Any]
    md5: str | None = None
    seconds: float | None = None
    counted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a builder found: tracks by split and class names by label.

    `faults` are the files that were left out, {path: reason}; `notes` are lines for the user.
    """

    tracks: Mapping[str, Sequence[Track]]
    classes: Mapping[str, Sequence[str]]
    faults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclasses.dataclass
class RateConfig(tfds.core.BuilderConfig):
    """A builder config for one sample rate, in Hz."""

    sample_rate: int = 16_000


class LabelledBuilder(shards.ShardedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS takes it
    """A data set of whole files with labels: int16 mono at the config's rate.

    Records hold `id`, `path` (relative to the source, posix), `start` (0.0: always the whole
    file), `audio` (int16 [n]) and the builder's labels. In `info.metadata` are "classes", the
    names of the classes of each label, and "sizes", {name: {"built", "published"}}.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[RateConfig]] = [
        RateConfig(name="16khz", sample_rate=16_000, description="16 kHz."),
        RateConfig(name="24khz", sample_rate=24_000, description="24 kHz."),
    ]
    # Published numbers of usable items, by split (mtg_jamendo: by subset/split).
    EXPECTED_SIZES: ClassVar[dict[str, int]] = {}
    TRACK_SECONDS: ClassVar[float]  # the usual length of a track, from which shards are planned
    HOMEPAGE: ClassVar[str]

    @abc.abstractmethod
    def label_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Return the features of the labels, by name."""

    @abc.abstractmethod
    def contents(self, dl_manager: tfds.download.DownloadManager) -> Contents:
        """Find or download the files and read the tables."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({**shards.RECORDED, **self.label_features()}),
            homepage=self.HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[shards.Input]]:
        self._contents = contents = self.contents(dl_manager)
        _check(self.name, contents.tracks)

        def size(track: Track) -> int:
            return int(2 * self.sample_rate * (track.seconds or self.TRACK_SECONDS))  # int16

        inputs = {}
        for split, tracks in contents.tracks.items():
            inputs[split] = [shards.Input(track.path, size(track), track) for track in tracks]
        return inputs

    def _generate_examples(self, source: shards.Input) -> Iterator[tuple[str, dict[str, Any]]]:
        track = source.origin
        audio = _decode(track, self.sample_rate)
        record = {"id": track.id, "path": track.path, "start": np.float32(0), "audio": audio}
        yield track.id, record | dict(track.labels)

    def _generate_splits(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> Sequence[tfds.core.SplitInfo]:
        splits = super()._generate_splits(dl_manager, download_config)
        contents, summary = self._contents, self.summary
        sizes = _sizes(self.name, contents.tracks, dict(summary.skipped), self.EXPECTED_SIZES)
        for line in [*contents.notes, *differences(sizes)]:
            print(f"{self.info.full_name}: {line}", file=sys.stderr)
        classes = {label: list(names) for label, names in contents.classes.items()}
        self.info.metadata.update(classes=classes, sizes=sizes)
        summary.files += len(contents.faults)
        summary.skipped = sorted([*summary.skipped, *contents.faults.items()])
        shards.write_skipped(epath.Path(self.data_path) / shards.SKIPPED, summary.skipped)
        return splits


def differences(sizes: Mapping[str, Mapping[str, int | None]]) -> list[str]:
    """Return a line for each entry of `info.metadata["sizes"]` that is not as published."""
    return [
        f"{name} has {size['built']:,} items, but the published split has {size['published']:,}"
        for name, size in sizes.items()
        if size["published"] not in (None, size["built"])
    ]


def _check(name: str, tracks: Mapping[str, Sequence[Track]]) -> None:
    """Raise BuildError for a split without tracks, or with an id that occurs twice."""
    for split, members in tracks.items():
        if not members:
            raise shards.BuildError(f"{name}: found no track of split {split}; see its README.md")
        counts = collections.Counter(track.id for track in members)
        if twice := [identity for identity, count in counts.items() if count > 1]:
            raise shards.BuildError(f"{name}: {twice[0]} occurs twice in the tables of {split}")


def _sizes(
    name: str,
    tracks: Mapping[str, Sequence[Track]],
    skipped: Mapping[str, str],
    published: Mapping[str, int],
) -> dict[str, dict[str, int | None]]:
    """Count what was built, by split or by Track.counted, next to the published numbers."""
    planned: collections.Counter[str] = collections.Counter()
    built: collections.Counter[str] = collections.Counter()
    for split, members in tracks.items():
        left = [track for track in members if track.path not in skipped]
        if not left:
            reason = skipped[members[0].path]
            raise shards.BuildError(f"{name}: split {split} has no usable track ({reason})")
        for track in members:
            planned.update(track.counted or [split])
        for track in left:
            built.update(track.counted or [split])
    return {entry: {"built": built[entry], "published": published.get(entry)} for entry in planned}


def _decode(track: Track, sample_rate: int) -> np.ndarray:
    """Return a track's audio, int16 [n], or raise decode.Unusable."""
    with _on_disk(track.audio) as path:
        if not path.exists():
            raise decode.Unusable("missing: no such file")
        if track.md5 and hashlib.md5(path.read_bytes()).hexdigest() != track.md5:
            raise decode.Unusable("corrupt: its MD5 is not the published one")
        return decode.load(path, sample_rate, quietest=0)  # a published item, however soft


@contextlib.contextmanager
def _on_disk(audio: epath.Path | Member) -> Iterator[epath.Path]:
    """Yield the path of a file, or of a temporary copy where it is a member of an archive."""
    if not isinstance(audio, Member):
        yield audio
        return
    info = _index(audio.archive).get(audio.stem)
    if info is None:
        raise decode.Unusable(f"missing: not in {audio.archive.name}")
    with tempfile.NamedTemporaryFile(suffix=epath.Path(info.name).suffix) as copy:
        with audio.archive.open("rb") as archive:
            archive.seek(info.offset_data)
            copy.write(archive.read(info.size))
        copy.flush()
        yield epath.Path(copy.name)


@functools.lru_cache(maxsize=128)  # mtg_jamendo has 100 archives, and a shard may need any of them
def _index(archive: epath.Path) -> dict[str, tarfile.TarInfo]:
    """List an uncompressed tar by the stems of its members; read their headers only."""
    with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = [member for member in tar if member.isfile()]
    return {epath.Path(member.name).name.partition(".")[0]: member for member in members}
