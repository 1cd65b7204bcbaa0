"""The only door to data_pipelines: batches, labelled records, counts, claims, buckets.

data_pipelines/ loads TensorFlow, so none of it is imported before data are read. Only its
machine.py, which needs nothing but Python, is also imported elsewhere.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import ml_collections
from jax.sharding import Mesh

from musicssl import audio, paths
from musicssl.command import EXIT_REFUSED, EXIT_STORAGE, note
from musicssl.runtime import buckets, distributed, sharding

if TYPE_CHECKING:
    from data_pipelines import batches, deform, labelled_records, records

DATA_DIR = "data"  # where data sets are by default
SYNTHESISED = ("synth_music", "synth_polyphony")  # data sets that need no download
# Seconds that a job waits until another job that writes to the same place ends. This is longer than
# schedulers give a job to save (Slurm's KillWait is 30 s), and longer than a machine that is gone
# keeps a claim on a file server.
PATIENCE = 60.0
_ENDED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of a job asked to end
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class NotComposed(ValueError):
    """A synthesised data set could not be composed; the message is one line that says why."""


class Batches:
    """The global batches of the training data, placed on the mesh."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        from data_pipelines import batches

        data = config.data
        self.samples = audio.crop_samples(data.crop_frames)
        for name in mixture(config):
            if name.split("/")[0] in SYNTHESISED:
                _compose(name, data.data_dir)
        if config.validate.every:
            require_validation(config)
        self.config, self.mesh = config, mesh
        self.reading: batches.Batches | None = None
        self.iterate = batches.iterate
        self.dataset = _open(config)
        if self.dataset.sample_rate != data.sample_rate:
            raise ValueError(
                f"data.sample_rate is {data.sample_rate} Hz, but {self.dataset.directory} holds "
                f"{self.dataset.sample_rate} Hz: build that data set at the wanted rate"
            )
        batches.check_crop(self.dataset, self.samples)

    def open(self, first: int) -> Iterator[jax.Array]:
        """Return the batches from step `first` on: int16 [b, n]."""
        config = self.config
        rows = sharding.rows_here(self.mesh, config.batch_size)
        self.reading = reading = self.iterate(
            self.dataset,
            seed=config.seed,
            batch_size=config.batch_size,
            samples=self.samples,
            start_step=first,
            rows=rows,
            on_damage=config.data.on_damage,
            order=config.data.order,
        )
        return (
            sharding.place_clips(self.mesh, config.batch_size, rows, batch["audio"])
            for batch in reading
        )

    def open_validation(self) -> Iterator[jax.Array]:
        """Return batches of the validation split, the same at every call."""
        config = self.config
        rows = sharding.rows_here(self.mesh, config.batch_size)
        reading = self.iterate(
            require_validation(config),
            seed=config.seed,
            batch_size=config.batch_size,
            samples=self.samples,
            rows=rows,
            on_damage=config.data.on_damage,
        )
        for batch in reading:
            yield sharding.place_clips(self.mesh, config.batch_size, rows, batch["audio"])

    def counts(self) -> dict[str, int]:
        """Count what fixes the order of batches; samples of damaged records are not known."""
        counts = {"records": len(self.dataset)}
        if self.config.data.on_damage == "stop":
            counts["samples"] = int(self.dataset.samples.sum())
        return counts

    def damage(self) -> dict[str, int]:
        """Count the damaged records that this process has skipped, if the run may skip them."""
        if self.config.data.on_damage == "stop" or self.reading is None:
            return {}
        return {"damaged_records": len(self.reading.damaged)}


def mixture(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Return the data sets to train on and their weights: data.mix, or data.name alone.

    Raises:
      ValueError: data.mix is not a list of data sets and weights, or contradicts data.order.
    """
    from data_pipelines import batches

    if not config.data.mix:
        return {config.data.name: 1}
    if config.data.order == "blocks":
        raise ValueError("data.order is 'blocks', which reads one data set: leave data.mix out")
    try:
        return batches.parse(config.data.mix)
    except ValueError as error:
        raise ValueError(f"data.mix: {error}") from None


def _open(config: ml_collections.ConfigDict) -> "records.Dataset | batches.Mixture":
    """Open the records to train on, or a copy on this machine if data.mirror is set."""
    from data_pipelines import batches

    data = config.data
    if not data.mirror:
        return _mixed(config, lambda name: batches.open_dataset(name, data.data_dir, "train"))

    def copied(name: str) -> "records.Dataset":
        return batches.mirror(name, data.data_dir, "train", data.mirror)

    distributed.meet("before the data are copied")  # Gloo would wait only 30 s for the last process
    dataset = _mixed(config, copied)
    distributed.meet("the data are copied")
    return dataset


def _mixed(
    config: ml_collections.ConfigDict, open_one: Callable[[str], "records.Dataset"]
) -> "records.Dataset | batches.Mixture":
    """Open the data sets of a configuration: one by itself, several as a mixture."""
    from data_pipelines import batches

    weights = mixture(config)
    datasets = [open_one(name) for name in weights]
    return datasets[0] if len(datasets) == 1 else batches.Mixture(datasets, [*weights.values()])


def require_validation(
    config: ml_collections.ConfigDict,
) -> "records.Dataset | batches.Mixture":
    """Open the validation split of the training data.

    Raises:
      ValueError, FileNotFoundError: there is none, or its records are shorter than a crop.
    """
    from data_pipelines import batches

    data = config.data
    try:
        dataset = _mixed(
            config, lambda name: batches.open_dataset(name, data.data_dir, "validation")
        )
        batches.check_crop(dataset, audio.crop_samples(data.crop_frames))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{error} (needed for validation; --config.validate.every=0 turns it off)"
        ) from error
    return dataset


def _compose(name: str, data_dir: str) -> None:
    """Build a synthesised data set if it is missing, in process 0; all processes call this.

    If another process is composing it, this one waits.

    Raises:
      NotComposed: it cannot be built, or some processes cannot see it.
      OSError: the storage did not answer for minutes.
    """

    def build() -> None:
        if is_built(name, data_dir):
            return
        note(f"{name} is not in {data_dir} yet: composing it")
        command = ["-m", "data_pipelines.build", name, f"--data_dir={data_dir}"]
        # The summary of the build is progress; the command's own stdout is for results.
        done = subprocess.run([sys.executable, *command, "--wait"], stdout=2, check=False)
        if done.returncode == EXIT_STORAGE:
            raise OSError(errno.EIO, "the storage did not answer: see above", data_dir)
        if done.returncode in _ENDED:  # asked to end, as was this process, which waits to save
            raise KeyboardInterrupt
        if done.returncode:
            words = " ".join(["python", *command])
            raise ValueError(f"{name} was not built: see above, or build it with {words}")

    try:
        distributed.first_does(build)
    except ValueError as error:
        raise NotComposed(str(error)) from error
    if not distributed.all_say(is_built(name, data_dir)):
        raise NotComposed(
            f"{name} is in {data_dir} of the first machine only: use a folder that all machines "
            "share"
        )


@contextlib.contextmanager
def claimed(folder: Path, remedy: str, writes: bool = False) -> Iterator[None]:
    """Be the only job that writes to a folder: process 0 claims it for all processes of the job.

    If the folder is claimed, the job waits: an owner that was asked to end may still be saving.

    Args:
      remedy: what to do if the other job does not end.
      writes: whether the job certainly writes; if not, a folder that cannot be written to, such as
        that of a complete run, is accepted.

    Raises:
      ValueError: another job still holds the folder after PATIENCE seconds, it is a file, or it
        cannot be written to.
      OSError: the bucket that it is on did not answer.
    """
    with contextlib.ExitStack() as held:

        def waiting(other: OSError, seconds: float) -> None:
            left = PATIENCE - seconds
            note(f"{folder} is in use by {other}: waiting up to {left:.0f} s for that to end")

        def enter() -> None:
            if not paths.is_remote(folder) and not folder.exists():  # a bucket needs none
                folder.mkdir(parents=True, exist_ok=True)
                held.callback(_remove_if_empty, folder)
            held.enter_context(claim(folder / ".claim", PATIENCE, waiting))

        def take() -> None:
            try:
                if not paths.is_remote(folder) and folder.is_file():
                    raise ValueError(f"{folder} is a file: give a folder")
                try:
                    enter()
                except FileNotFoundError:  # its owner has ended and removed the empty folder
                    enter()
            except BlockingIOError as other:
                raise ValueError(f"{folder} is in use by {other}: {remedy}") from None
            except OSError as error:
                if error.errno not in _UNWRITABLE:
                    raise
                if writes:
                    why = f"cannot be written to ({error.strerror})"
                    raise ValueError(f"{folder} {why}: change that, or use another") from error

        distributed.first_does(take)
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def claim(
    path: Path,
    patience: float = 0.0,
    waiting: Callable[[OSError, float], None] = lambda other, seconds: None,
) -> contextlib.AbstractContextManager[None]:
    """Hold a file as `data_pipelines.claim.claim` does; BlockingIOError says who holds it.

    On a bucket, a process ends at once when another one has taken over its claim, which happens if
    it could not renew the claim for a while: two processes must not write at the same time.
    """
    if paths.is_remote(path):
        from data_pipelines import bucket_claim

        def lost(other: OSError) -> None:
            distributed.leave(EXIT_REFUSED, f"{path} was taken over by {other}")

        return bucket_claim.claim(str(path), patience, waiting, lost)
    from data_pipelines import claim

    return claim.claim(path, patience, waiting)


def path(name: str | os.PathLike) -> Path:
    """Return the path of a name that `paths.anywhere` accepts.

    A path on gs:// has those methods of a local path that this package calls. They retry after
    transient errors, and raise OSError, with EIO if the bucket did not answer for minutes. Once
    such a path has been made, Orbax does the same.
    """
    if not paths.is_remote(name):
        return Path(name)
    from data_pipelines import remote, retries

    buckets.limit_retries(retries.PATIENCE)
    return remote.path(name)  # type: ignore[return-value]


def patiently(work: Callable[[], None], path: Path) -> None:
    """Let TensorFlow do `work` on a file, and retry after transient errors of a bucket."""
    if not paths.is_remote(path):
        work()
        return
    from data_pipelines import retries

    retries.patiently(work, lambda: str(path))


def is_built(name: str, data_dir: str) -> bool:
    """Return whether a data set has been built."""
    from data_pipelines import batches

    return batches.is_built(name, data_dir)


def crops_and_records(config: ml_collections.ConfigDict) -> tuple[Iterator[dict], Iterator]:
    """Return the batches of a configuration, and the unprocessed records of the same files."""
    from data_pipelines import bare, batches

    data = config.data
    dataset = batches.open_dataset(data.name, data.data_dir, "train")
    crops = batches.iterate(
        dataset,
        seed=config.seed,
        batch_size=config.batch_size,
        samples=audio.crop_samples(data.crop_frames),
    )
    threads = min(os.cpu_count() or 1, batches.THREADS)
    return crops, iter(bare.records(dataset.layout.shards, threads))


def require_labelled(name: str, data_dir: str, sample_rate: int) -> None:
    """Raise FileNotFoundError for a missing data set, with the command that builds it.

    A missing synthesised data set is composed instead. All processes call this.

    Raises:
      NotComposed: it could not be composed.
      ValueError: the name cannot be a data set's.
    """
    from data_pipelines import labelled_records

    if name in SYNTHESISED:
        _compose(name, data_dir or DATA_DIR)
    labelled_records.build_for(name, data_dir or DATA_DIR, sample_rate)


def open_labelled(
    name: str, data_dir: str, split: str, sample_rate: int, limit: int, read_labels: bool = True
) -> "labelled_records.Labelled":
    """Open a split of a built data set: its records' audio, and their labels if they are wanted.

    Raises:
      FileNotFoundError, ValueError: as `labelled_records.open_labelled`.
    """
    from data_pipelines import labelled_records

    folder = data_dir or DATA_DIR
    return labelled_records.open_labelled(name, folder, split, sample_rate, limit, read_labels)


def check_deformation(spec: str) -> None:
    """Raise ValueError for a deformation of audio that is unknown or impossible here."""
    from data_pipelines import deform

    deform.parse(spec)


def deformed(data: "labelled_records.Labelled", spec: str) -> "deform.Deformed":
    """Return records whose audio is deformed as it is read, such as by "noise:20"."""
    from data_pipelines import deform

    return deform.Deformed(data, deform.parse(spec))


def published_chance(task: str) -> float | None:
    """Return the score of answering without listening, on a task's published test labels.

    It is None for a task whose labels have not been counted. TensorFlow is not loaded.
    """
    from data_pipelines import counts

    return counts.chance(task) if task in counts.TABLES else None


def crop_reads(samples: int, record: int) -> dict[str, tuple[float, float]]:
    """Return the bytes and the reads that a crop takes on average, by data.order.

    TensorFlow is not loaded.

    Args:
      record: how many samples the data set's records have.
    """
    from data_pipelines import reads

    return {order: reads.of_crop(order, samples, record) for order in reads.ORDERS}
