"""The only door to data_pipelines: batches, labelled records, counts, claims, buckets.

data_pipelines/ loads TensorFlow, so nothing of it is imported before something is read. Its
machine.py alone, which needs nothing but Python, is imported elsewhere too.
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
from musicssl.runtime import distributed, sharding

if TYPE_CHECKING:
    from data_pipelines import batches, deform, labelled_records, records

DATA_DIR = "data"  # where data sets are, if nothing else is said
SYNTHESISED = ("synth_music", "synth_polyphony")  # data sets that need no download
# Seconds that a job waits for the end of another one that writes where it is to write: longer than
# what schedulers let a job save for (Slurm's KillWait is 30 s), and than a machine that is gone
# keeps a claim on a file server.
PATIENCE = 60.0
_ENDED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of who was asked to end
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class NotComposed(ValueError):
    """A synthesised data set that could not be composed; one line that says why."""


class Batches:
    """The host wing's global batches, placed on the mesh."""

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
                f"data.sample_rate is {data.sample_rate} Hz and {self.dataset.directory} holds "
                f"{self.dataset.sample_rate} Hz: build that data set at the rate wanted"
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
        """Return batches of the validation split, which are the same at every call."""
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
        """Count what the order of batches depends on; damaged records hide their samples."""
        counts = {"records": len(self.dataset)}
        if self.config.data.on_damage == "stop":
            counts["samples"] = int(self.dataset.samples.sum())
        return counts

    def damage(self) -> dict[str, int]:
        """Count the damaged records that this process has met, where a run goes on without them."""
        if self.config.data.on_damage == "stop" or self.reading is None:
            return {}
        return {"damaged_records": len(self.reading.damaged)}


def mixture(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Return the data sets to train on and their weights: data.mix, or data.name alone.

    Raises:
      ValueError: data.mix is no list of data sets and weights, or does not go with data.order.
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
    """Open the records to train on, in a copy on this machine where data.mirror says so."""
    from data_pipelines import batches

    data = config.data
    if not data.mirror:
        return _mixed(config, lambda name: batches.open_dataset(name, data.data_dir, "train"))

    def copied(name: str) -> "records.Dataset":
        return batches.mirror(name, data.data_dir, "train", data.mirror)

    distributed.meet("before the data are copied")  # else Gloo waits for the last for 30 s at most
    dataset = _mixed(config, copied)
    distributed.meet("the data are copied")
    return dataset


def _mixed(
    config: ml_collections.ConfigDict, open_one: Callable[[str], "records.Dataset"]
) -> "records.Dataset | batches.Mixture":
    """Open the data sets of a configuration: one as it is, several as a mixture."""
    from data_pipelines import batches

    weights = mixture(config)
    datasets = [open_one(name) for name in weights]
    return datasets[0] if len(datasets) == 1 else batches.Mixture(datasets, [*weights.values()])


def require_validation(
    config: ml_collections.ConfigDict,
) -> "records.Dataset | batches.Mixture":
    """Open the validation split of the data that are trained on.

    Raises:
      ValueError, FileNotFoundError: they have none, or it holds nothing as long as a crop.
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
            f"{error} (for looks at the validation split; --config.validate.every=0 goes without)"
        ) from error
    return dataset


def _compose(name: str, data_dir: str) -> None:
    """Build a synthesised data set, if it is not there, in process 0; all processes call this.

    Where another process is composing it, its end is awaited.

    Raises:
      NotComposed: it cannot be built, or not be seen by all processes.
      OSError: the storage did not answer for long.
    """

    def build() -> None:
        if is_built(name, data_dir):
            return
        note(f"{name} is not in {data_dir} yet: composing it")
        command = ["-m", "data_pipelines.build", name, f"--data_dir={data_dir}"]
        # its summary goes where progress goes: a command's own stdout is for results
        done = subprocess.run([sys.executable, *command, "--wait"], stdout=2, check=False)
        if done.returncode == EXIT_STORAGE:
            raise OSError(errno.EIO, "the storage did not answer: see above", data_dir)
        if done.returncode in _ENDED:  # this process too, though it may wait for a place to save
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
            f"{name} is in {data_dir} of the first machine alone: use a folder that all machines "
            "share"
        )


@contextlib.contextmanager
def claimed(folder: Path, remedy: str, writes: bool = False) -> Iterator[None]:
    """Be the only job that writes into a folder: process 0 claims it for all processes of the job.

    One that is claimed is waited for: who was asked to end may still be saving.

    Args:
      remedy: what to do, if the other one does not end.
      writes: whether the job certainly writes; else it does without a folder that it cannot write
        into, as where a complete run is kept.

    Raises:
      ValueError: another job has it still after PATIENCE seconds, it is a file, or it cannot be
        written into.
      OSError: the bucket that it is on did not answer.
    """
    with contextlib.ExitStack() as held:

        def waiting(other: OSError, seconds: float) -> None:
            left = PATIENCE - seconds
            note(f"{folder} is in use by {other}: waiting for its end, up to {left:.0f} s")

        def take() -> None:
            try:
                if not paths.is_remote(folder) and folder.is_file():
                    raise ValueError(f"{folder} is a file: give a folder")
                if not paths.is_remote(folder) and not folder.exists():  # a bucket needs none
                    folder.mkdir(parents=True, exist_ok=True)
                    held.callback(_remove_if_empty, folder)
                held.enter_context(claim(folder / ".claim", PATIENCE, waiting))
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

    On a bucket a process ends at once when another one has taken its claim over, which happens
    where it could not renew it for long: two must not write at the same time.
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

    One on gs:// has the methods of a path of this machine, as far as this package calls them. They
    bear with errors that pass, and raise OSError, with EIO where the bucket did not answer for
    long.
    """
    if not paths.is_remote(name):
        return Path(name)
    from data_pipelines import remote

    return remote.path(name)  # type: ignore[return-value]


def patiently(work: Callable[[], None], path: Path) -> None:
    """Do what TensorFlow does with a file, again and again through errors of a bucket that pass."""
    if not paths.is_remote(path):
        work()
        return
    from data_pipelines import retries

    retries.patiently(work, lambda: str(path))


def is_built(name: str, data_dir: str) -> bool:
    """Return whether a data set is there to be read."""
    from data_pipelines import batches

    return batches.is_built(name, data_dir)


def crops_and_records(config: ml_collections.ConfigDict) -> tuple[Iterator[dict], Iterator]:
    """Return the batches of a configuration, and the same files' records with nothing done."""
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
    """Raise FileNotFoundError, with the command that builds it, for a data set that is not there.

    A synthesised one is composed. All processes call this.

    Raises:
      NotComposed: that could not be done.
      ValueError: its name cannot be one.
    """
    from data_pipelines import labelled_records

    if name in SYNTHESISED:
        _compose(name, data_dir or DATA_DIR)
    labelled_records.build_for(name, data_dir or DATA_DIR, sample_rate)


def open_labelled(
    name: str, data_dir: str, split: str, sample_rate: int, limit: int
) -> "labelled_records.Labelled":
    """Open a split of a built data set: its records' audio and labels.

    Raises:
      FileNotFoundError, ValueError: as `labelled_records.open_labelled`.
    """
    from data_pipelines import labelled_records

    return labelled_records.open_labelled(name, data_dir or DATA_DIR, split, sample_rate, limit)


def check_deformation(spec: str) -> None:
    """Raise ValueError for a deformation of audio that is not known or cannot be made here."""
    from data_pipelines import deform

    deform.parse(spec)


def deformed(data: "labelled_records.Labelled", spec: str) -> "deform.Deformed":
    """Return records whose audio is deformed as it is read, such as by "noise:20"."""
    from data_pipelines import deform

    return deform.Deformed(data, deform.parse(spec))


def published_chance(task: str) -> float | None:
    """Return what an answer that does not hear scores on a task's published test labels.

    It is None for a task whose labels were not counted. TensorFlow is not loaded.
    """
    from data_pipelines import counts

    return counts.chance(task) if task in counts.TABLES else None


def crop_reads(samples: int, record: int) -> dict[str, tuple[float, float]]:
    """Return the bytes and the reads that a crop takes in the mean, by data.order.

    TensorFlow is not loaded.

    Args:
      record: samples of a data set's records.
    """
    from data_pipelines import reads

    return {order: reads.of_crop(order, samples, record) for order in reads.ORDERS}
