"""Built data sets for the evaluator: whole records by number, and the labels of all of them."""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import soxr
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_pipelines import retries
from data_pipelines.records import Dataset, is_built, open_dataset, require

_AUDIO = ("audio", "path", "start")


class Labelled(NamedTuple):
    """A split of a built data set.

    labels: one dict per record, without the audio. classes: names of each label's classes, if the
    data set tells them. sample_rate: in Hz, of what `read` returns. version: such as
    "gtzan/16khz/1.0.0". sizes: {entry: {"built", "published"}}, of the builders that state them.
    whole: all records of the split. numbers: where the records of `dataset` are in `whole`.
    """

    dataset: "Dataset | _ChosenRecords"
    labels: Sequence[Mapping[str, Any]]
    classes: Mapping[str, Sequence[str]]
    sizes: Mapping[str, Mapping[str, int | None]]
    sample_rate: int
    version: str
    whole: Dataset
    numbers: np.ndarray

    @property
    def digest(self) -> str:
        """Digest of the audio: which records there are, and their checksums."""
        return _digest(self.dataset)

    @property
    def split_digest(self) -> str:
        """Digest of the audio of all records of the split."""
        return _digest(self.whole)

    @property
    def sums(self) -> np.ndarray:
        """CRC-32 of the audio of each record, uint32 [records]."""
        return self.whole.index.whole_sums()[self.numbers]

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each record at `sample_rate`, int64 [records]."""
        return self.split_lengths[self.numbers]

    @property
    def split_lengths(self) -> np.ndarray:
        """Samples of each record of the split at `sample_rate`, int64 [records]."""
        scaled = self.whole.samples * self.sample_rate / self.whole.sample_rate
        return scaled.astype(np.int64)

    def read(self, record: int) -> np.ndarray:
        """Read one record's audio, int16 [n], resampled where the data set has another rate."""
        audio = np.empty(int(self.dataset.samples[record]), np.int16)
        self.dataset.read(record, 0, audio)
        if self.dataset.sample_rate != self.sample_rate:
            audio = soxr.resample(audio, self.dataset.sample_rate, self.sample_rate)
            audio = np.resize(audio, int(self.lengths[record]))
        return audio


def open_labelled(
    name: str,
    data_dir: str | os.PathLike,
    split: str,
    sample_rate: int,
    limit: int = 0,
    read_labels: bool = True,
) -> Labelled:
    """Open a split of DATA_DIR/NAME, in its build for `sample_rate` if there is one.

    Args:
      limit: how many records to use, spread evenly over the split; 0 means all.
      read_labels: False where only the audio is wanted: then each record's dict is empty.

    Raises:
      FileNotFoundError: the data set is not built.
      ValueError: there is no such split, or a record of it cannot be read.
    """
    dataset = open_dataset(build_for(name, data_dir, sample_rate), data_dir, split)
    if lost := np.flatnonzero(dataset.samples == 0).tolist():
        raise ValueError(str(dataset.damage(lost[0], f"one of {len(lost)} unreadable records")))

    # the labels, one set per record
    builder = _builder(dataset.directory)
    labels = _labels(dataset.directory, split) if read_labels else [{}] * len(dataset)
    if len(labels) != len(dataset):
        raise ValueError(f"{dataset.directory} is incomplete: build the data set again")

    # the records asked for
    metadata = builder.info.metadata or {}
    chosen = np.arange(len(labels))
    records: Dataset | _ChosenRecords = dataset
    if 0 < limit < len(labels):
        chosen = np.linspace(0, len(labels) - 1, limit).round().astype(int)
        records = _ChosenRecords(dataset, chosen)
    return Labelled(
        records,
        [labels[i] for i in chosen],
        _classes(builder.info.features) | dict(metadata.get("classes", {})),
        metadata.get("sizes", {}),
        sample_rate,
        "/".join(dataset.directory.split("/")[-3:]),
        dataset,
        chosen,
    )


@functools.lru_cache(3)  # a data set's splits, so that its next task need not read them again
def _labels(directory: str, split: str) -> list[Mapping[str, Any]]:
    """Read all records of a split without their audio, in the order of Dataset's."""
    builder = _builder(directory)
    features = [key for key in builder.info.features if key not in _AUDIO]
    decoders = tfds.decode.PartialDecoding(dict.fromkeys(features, True))
    reading = tfds.ReadConfig(interleave_cycle_length=1)  # one shard after another
    total = builder.info.splits[split].num_examples

    def read() -> list[Mapping[str, Any]]:
        examples = builder.as_dataset(split, decoders=decoders, read_config=reading)
        bar = tqdm(tfds.as_numpy(examples), "labels", total, unit=" records", delay=2)
        return list(bar)

    return retries.patiently(read, lambda: f"the labels in {directory}")


def _builder(directory: str) -> tfds.core.DatasetBuilder:
    return retries.patiently(lambda: tfds.builder_from_directory(directory), lambda: directory)


def build_for(name: str, data_dir: str | os.PathLike, sample_rate: int) -> str:
    """Return the build of DATA_DIR/NAME for `sample_rate` if it exists, else the default one.

    Raises:
      FileNotFoundError, ValueError: as `records.require`.
    """
    wanted = f"{name}/{sample_rate // 1000}khz"
    if is_built(wanted, data_dir):
        return wanted
    require(name, data_dir)
    return name


def _digest(records: "Dataset | _ChosenRecords") -> str:
    parts = (np.asarray(records.samples), records.index.sums)
    content = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    return hashlib.sha256(content).hexdigest()


class _ChosenRecords:
    """Some records of a Dataset, renumbered from 0."""

    def __init__(self, dataset: Dataset, records: np.ndarray):
        self.directory, self.sample_rate = dataset.directory, dataset.sample_rate
        self.index, self.samples = dataset.index, dataset.samples[records]
        self._whole, self._records = dataset, records

    def read(self, record: int, start: int, out: np.ndarray) -> None:
        self._whole.read(int(self._records[record]), start, out)


def _classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the class labels, also inside a sequence, as in "chords/quality"."""
    classes = {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if hasattr(inner, "names"):
            classes[key] = list(inner.names)
        elif isinstance(inner, Mapping):
            classes |= {
                f"{key}/{k}": list(v.names) for k, v in inner.items() if hasattr(v, "names")
            }
    return classes
