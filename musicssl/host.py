"""The only module that imports data_pipelines: batches, labelled records, label counts, bare reads.

data_pipelines/ loads TensorFlow, so nothing of it is imported before something is read.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import ml_collections
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from musicssl import audio
from musicssl.command import say
from musicssl.runtime import sharding

if TYPE_CHECKING:
    from data_pipelines import labelled_records


class Batches:
    """The host wing's global batches, placed on the mesh."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: Mesh):
        from data_pipelines import batches

        data = config.data
        self.samples = audio.crop_samples(data.crop_frames)
        if data.name.split("/")[0] == "synth_music" and not batches.is_built(
            data.name, data.data_dir
        ):
            _compose(data.name, data.data_dir)
        self.config, self.mesh = config, mesh
        self.reading: batches.Batches | None = None
        self.iterate = batches.iterate
        self.dataset = batches.open_dataset(data.name, data.data_dir, "train")
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
        )
        return (
            sharding.place_clips(self.mesh, config.batch_size, rows, batch["audio"])
            for batch in reading
        )

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


def _compose(name: str, data_dir: str) -> None:
    """Build the synthetic data set, which needs no download, on its first use."""
    if jax.process_index() == 0:
        say(f"{name} is not in {data_dir} yet: composing it")
        command = [sys.executable, "-m", "data_pipelines.build", name, f"--data_dir={data_dir}"]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"{name} was not built: see above, or build it with {command[1:]}")
    multihost_utils.sync_global_devices("data set built")


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

    Raises:
      ValueError: its name cannot be one.
    """
    from data_pipelines import labelled_records

    labelled_records.build_for(name, data_dir or "data", sample_rate)


def open_labelled(
    name: str, data_dir: str, split: str, sample_rate: int, limit: int
) -> "labelled_records.Labelled":
    """Open a split of a built data set: its records' audio and labels.

    Raises:
      FileNotFoundError, ValueError: as `labelled_records.open_labelled`.
    """
    from data_pipelines import labelled_records

    return labelled_records.open_labelled(name, data_dir or "data", split, sample_rate, limit)


def published_chance(task: str) -> float | None:
    """Return what an answer that does not hear scores on a task's published test labels.

    It is None for a task whose labels were not counted. TensorFlow is not loaded.
    """
    from data_pipelines import counts

    return counts.chance(task) if task in counts.TABLES else None
