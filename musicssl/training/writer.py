"""What a run writes about itself as it trains: scalars for TensorBoard and in metrics.jsonl."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:  # it loads TensorFlow
    from clu.metric_writers import MetricWriter


class Writer:
    """A writer of scalars to TensorBoard and metrics.jsonl; only the first process writes.

    Args:
      first: the step that training begins at; lines of later steps are dropped from metrics.jsonl.
    """

    def __init__(self, workdir: Path, first: int):
        self.path = workdir / "metrics.jsonl"
        self.writer: MetricWriter | None = None
        if jax.process_index():
            return
        from clu import metric_writers

        self.writer = metric_writers.SummaryWriter(str(workdir))
        if self.path.exists():
            self._drop_after(first)

    def _drop_after(self, step: int) -> None:
        """Drop lines of later steps, which will be written again, and any unfinished line."""
        lines = self.path.read_text().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in complete if json.loads(line)["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.rename(self.path)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write the scalars of a step."""
        if self.writer is None:
            return
        self.writer.write_scalars(step, scalars)
        self.writer.flush()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
