"""A TFDS builder whose shards are planned first and then written by one worker each.

TFDS's own Beam writer gathers every example of a split inside the runner before it writes the
first shard. On one machine that holds the whole data set in memory: 115 GB for 1,000 hours of
16 kHz audio. Here the plan says which inputs make which shard, only names travel to the workers,
and a worker holds one shard (128 MiB at most) and the input it reads. The plan depends on the
inputs alone, so the shards are the same bytes whatever runs them: processes of this machine, or
any Beam runner.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from data_pipelines import workers
from data_pipelines.decode import Unusable

_SHARD_BYTES = 64 << 20  # planned size of a shard of a data set of 1 GiB and more
_SMALLEST_SHARD = 4 << 20  # bytes; a smaller data set is still cut for about 16 workers
LARGEST_SHARD = 128 << 20  # bytes; an input that holds more than its plan said starts a new shard
SKIPPED = "skipped.tsv"
_TSV = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})

Example = dict[str, Any]
# The features that the records of every data set have.
RECORDED = {
    "id": tfds.features.Text(),
    "path": tfds.features.Text(doc="relative to the source, with slashes"),
    "start": tfds.features.Scalar(np.float32, doc="second of the file"),
    "audio": tfds.features.Tensor(
        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
}


class BuildError(Exception):
    """A build cannot continue; the message is one line with the cause and the remedy."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read.

    `path` names it in skipped.tsv, `size` is an estimate of the bytes that it will become, and
    `origin` is whatever the builder needs to read it.
    """

    path: str
    size: int
    origin: Any


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One worker's task: the inputs that make one shard, or several if they hold more."""

    index: int
    split: str
    inputs: tuple[Input, ...]

    @property
    def report(self) -> str:
        """The name of the file that says what the task did; it appears when it is done."""
        return f"task{self.index:06d}.json"


@dataclasses.dataclass
class Summary:
    """What a build did: files read, (path, reason) of those skipped, seconds of audio."""

    files: int
    skipped: list[tuple[str, str]]
    seconds: float

    def reasons(self) -> list[tuple[str, int]]:
        """Return (kind of reason, number of files), the most frequent first."""
        return collections.Counter(why.split(":")[0] for _, why in self.skipped).most_common()


class _Record(NamedTuple):
    """A record to be written: its key, its bytes, its samples of audio."""

    key: str
    serialized: bytes
    samples: int


@dataclasses.dataclass(frozen=True)
class TaskWriter:
    """Writes the parts of a task and its report into `folder`; Beam workers call this."""

    generate: Callable[[Input], Iterator[tuple[str, Example]]]
    features: tfds.features.FeaturesDict
    writer: Any  # of TFDS; writes (key, bytes) pairs in the data set's file format
    folder: str

    def __call__(self, task: ShardTask) -> None:
        folder = epath.Path(self.folder)
        parts: list[tuple[int, int]] = []
        skipped: list[tuple[str, str]] = []
        samples = 0
        for group in _grouped(self._records(task, skipped)):
            # In the order of a hash: neighbours in a shard are not neighbours in a piece.
            group.sort(key=lambda record: (_digest(record.key), record.key))
            pairs = [(record.key, record.serialized) for record in group]
            self.writer.write(str(_part(folder, task, len(parts))), pairs)
            parts.append((len(group), sum(len(record.serialized) for record in group)))
            samples += sum(record.samples for record in group)
        report = json.dumps({"parts": parts, "samples": samples, "skipped": skipped})
        writing = folder / f"{task.report}.writing"
        writing.write_text(report)
        writing.replace(folder / task.report)  # complete when it appears, since progress reads it

    def _records(self, task: ShardTask, skipped: list[tuple[str, str]]) -> Iterator[_Record]:
        """Yield the records of a task's inputs; add inputs without any to `skipped`."""
        for source in task.inputs:
            try:
                for key, example in self.generate(source):
                    serialized = _serialize(self.features, example)
                    yield _Record(key, serialized, len(example["audio"]))
            except Unusable as unusable:
                skipped.append((source.path, unusable.reason))


def _grouped(records: Iterable[_Record]) -> Iterator[list[_Record]]:
    """Yield the records in lists, each as long as LARGEST_SHARD allows."""
    group: list[_Record] = []
    size = 0
    for record in records:
        if group and size + len(record.serialized) > LARGEST_SHARD:
            yield group
            group, size = [], 0
        group.append(record)
        size += len(record.serialized)
    if group:
        yield group


class ShardedBuilder(tfds.core.GeneratorBasedBuilder):
    """Base of the builders that turn audio files into records.

    A subclass gives builder configs with a `sample_rate` in Hz, `_info`, and
      _split_generators(dl_manager) -> {split: [Input]}
      _generate_examples(source: Input) -> iterator of (unique key, example), with an int16 array
        "audio" in every example; raises decode.Unusable, before its first example, for an input
        that goes to skipped.tsv.
    """

    workers = 1  # processes on this machine, if no Beam runner or options are given
    max_lost = 0.5  # a build that loses a larger share of its files fails
    summary: Summary  # of the build that this object did, once it has

    @property
    def sample_rate(self) -> int:
        """Hz, of the records' audio."""
        return self.builder_config.sample_rate

    def _generate_splits(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> Sequence[tfds.core.SplitInfo]:
        """Plan, write and number the shards (TFDS's hook, run in a temporary folder)."""
        tasks = plan(self._split_generators(dl_manager))
        folder = epath.Path(self.data_path)
        every_input = itertools.chain.from_iterable(task.inputs for task in tasks)
        _check_space(folder, sum(source.size for source in every_input))

        # the workers write parts, and a report on each task
        write = TaskWriter(
            self._generate_examples, self.info.features, self._example_writer(), str(folder)
        )
        with _progress(folder, tasks, self.sample_rate):
            self._run(tasks, write, download_config)

        # their reports, and whether enough was usable for the build to be kept
        reports = [json.loads((folder / task.report).read_text()) for task in tasks]
        listed = itertools.chain.from_iterable(report["skipped"] for report in reports)
        skipped = sorted((path, reason) for path, reason in listed)
        samples = sum(report["samples"] for report in reports)
        files = sum(len(task.inputs) for task in tasks)
        self.summary = Summary(files, skipped, samples / self.sample_rate)
        self._check_lost(folder)
        write_skipped(folder / SKIPPED, skipped)

        # the parts become shards of splits
        splits = self._number(folder, tasks, reports)
        if "train" in {task.split for task in tasks} - {split.name for split in splits}:
            raise BuildError("no file of split train is usable; add files or repair them")
        return splits

    def _run(
        self,
        tasks: Sequence[ShardTask],
        write: TaskWriter,
        download_config: tfds.download.DownloadConfig,
    ) -> None:
        """Run the tasks on Beam, if a runner or options are given, or on this machine."""
        runner, options = download_config.beam_runner, download_config.beam_options
        if runner or options:
            workers.run_on_beam(write, tasks, runner, options)
            return
        try:
            workers.run(write, tasks, self.workers, preload=type(self).__module__)
        except BrokenProcessPool as error:
            raise BuildError(
                "a worker process was killed, perhaps for lack of memory; use fewer --workers"
            ) from error

    def _check_lost(self, folder: epath.Path) -> None:
        """Raise BuildError if too few files are usable; leave a list of the others."""
        summary, lost = self.summary, len(self.summary.skipped)
        listed = folder.parent / f"{self.version}.{SKIPPED}"
        if lost < summary.files and lost <= self.max_lost * summary.files:
            listed.unlink(missing_ok=True)  # of an earlier build that failed
            return
        write_skipped(listed, summary.skipped)
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.reasons())
        raise BuildError(
            f"{lost} of {summary.files} audio files are unusable ({kinds}), more than the share "
            f"{self.max_lost:g} that --max_lost allows; see {listed}"
        )

    def _number(
        self, folder: epath.Path, tasks: Sequence[ShardTask], reports: Sequence[Mapping[str, Any]]
    ) -> list[tfds.core.SplitInfo]:
        """Rename the parts to shards; a split without parts is left out."""
        parts = collections.defaultdict(list)
        for task, report in zip(tasks, reports, strict=True):
            for number, (records, size) in enumerate(report["parts"]):
                parts[task.split].append((_part(folder, task, number), records, size))
            (folder / task.report).unlink()
        splits = []
        for split, members in parts.items():
            template = self._get_filename_template(split_name=split)
            for shard, (path, _, _) in enumerate(members):
                path.rename(template.sharded_filepath(shard_index=shard, num_shards=len(members)))
            lengths = [records for _, records, _ in members]
            size = sum(size for _, _, size in members)
            splits.append(tfds.core.SplitInfo(split, lengths, size, template))
        return splits


def _serialize(features: tfds.features.FeaturesDict, example: Example) -> bytes:
    """Return an example's bytes, its fields in the same order in every process."""
    record = tf.train.Example.FromString(features.serialize_example(example))
    return record.SerializeToString(deterministic=True)


def plan(inputs: Mapping[str, Sequence[Input]]) -> list[ShardTask]:
    """Divide the inputs of each split among tasks of about one shard, in the order of a hash.

    The order spreads an album over the shards. Only the sizes of the inputs count, so that the plan
    is the same on every machine.
    """
    total = sum(source.size for source in itertools.chain.from_iterable(inputs.values()))
    target = min(_SHARD_BYTES, max(_SMALLEST_SHARD, total // 16))
    groups: list[tuple[str, list[Input]]] = []
    for split, sources in inputs.items():
        filled = target
        for source in sorted(sources, key=lambda source: (_digest(source.path), source.path)):
            if filled + source.size / 2 >= target:  # nearest to the target on average
                groups.append((split, []))
                filled = 0
            groups[-1][1].append(source)
            filled += source.size
    return [ShardTask(index, split, tuple(group)) for index, (split, group) in enumerate(groups)]


def write_skipped(path: epath.Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Write one line, path<TAB>reason, for each file that was left out."""
    lines = [f"{name.translate(_TSV)}\t{reason.translate(_TSV)}\n" for name, reason in skipped]
    path.write_bytes("".join(lines).encode("utf-8", "backslashreplace"))  # names need not be UTF-8


@contextmanager
def _progress(folder: epath.Path, tasks: Sequence[ShardTask], sample_rate: int) -> Iterator[None]:
    """Show files done, hours of audio and times real time while workers write their reports."""
    waiting = {task.report: len(task.inputs) for task in tasks}
    done = threading.Event()
    bar = tqdm(total=sum(waiting.values()), unit=" files", desc="building", smoothing=0)

    def watch() -> None:
        seconds = 0.0
        while True:
            last = done.wait(1.0)
            for path in [path for path in folder.iterdir() if path.name in waiting]:
                seconds += json.loads(path.read_text())["samples"] / sample_rate
                bar.update(waiting.pop(path.name))
            speed = seconds / max(bar.format_dict["elapsed"], 1e-3)
            bar.set_postfix_str(f"{seconds / 3600:.2f} h of audio, {speed:.0f} x real time")
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()


def _check_space(folder: epath.Path, needed: int) -> None:
    """Raise BuildError if a local disk cannot hold `needed` bytes."""
    try:
        free = shutil.disk_usage(str(folder)).free
    except OSError:  # not a local folder
        return
    if needed > free:
        raise BuildError(
            f"{folder.parent} has {free / 1e9:.2f} GB free and the data set needs about "
            f"{needed / 1e9:.2f} GB; free some space or choose another --data_dir"
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


def _part(folder: epath.Path, task: ShardTask, number: int) -> epath.Path:
    return folder / f"task{task.index:06d}-{number:04d}.part"
