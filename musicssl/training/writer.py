"""Writes a run's scalars to TensorBoard and metrics.jsonl as it trains.

The scalars also go to a tracker, if the configuration names one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import ml_collections

from musicssl import host, paths
from musicssl.command import say
from musicssl.runtime import distributed
from musicssl.runtime import workdir as workdir_lib
from musicssl.training.tracker import Tracker

if TYPE_CHECKING:  # it loads TensorFlow
    from clu.metric_writers import MetricWriter


class Writer:
    """A writer of scalars to TensorBoard and metrics.jsonl; only the first process writes.

    Args:
      first: the step that training begins at; lines of later steps are dropped from metrics.jsonl.
        If it is the last step, nothing is changed.

    Raises:
      ValueError: in every process, if the tracker cannot be opened.
    """

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict, first: int):
        self.path = workdir / "metrics.jsonl"
        self.writer: MetricWriter | None = None
        self.tracker: Tracker | None = None
        if config.tracker and first < config.steps:
            distributed.first_does(lambda: self._track(config))
        if jax.process_index() or first >= config.steps:
            return
        from clu import metric_writers

        self.writer = metric_writers.SummaryWriter(str(workdir))
        if self.path.exists():
            self._drop_after(first)

    def _track(self, config: ml_collections.ConfigDict) -> None:
        self.tracker = Tracker(config, self.path.parent)

    def _drop_after(self, step: int) -> None:
        """Drop lines of later steps, which will be written again; set unreadable lines aside."""
        lines = workdir_lib.metrics(self.path.parent)
        kept = [line for line, scalars in lines if scalars and scalars["step"] <= step]
        damaged = [line for line, scalars in lines if scalars is None]
        if damaged:
            aside = self.path.with_suffix(".jsonl.damaged")
            with aside.open("ab") as file:
                file.writelines(damaged)
            say(f"{self.path}: unreadable lines were moved to {aside.name}")
        paths.write(self.path, b"".join(kept))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a step."""
        if self.writer is None:
            return
        self.writer.write_scalars(step, scalars)
        host.patiently(self.writer.flush, self.path.parent)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        if self.tracker is not None:
            self.tracker.write(step, scalars)

    def close(self) -> None:
        """Let the tracker send what it has; everything else is on disk."""
        if self.tracker is not None:
            self.tracker.close()
