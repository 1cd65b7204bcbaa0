"""What a run tells of itself as it trains: scalars for TensorBoard and in metrics.jsonl."""

import json
from pathlib import Path

import jax


class Writer:
    """Scalars to TensorBoard and to metrics.jsonl, from the first process."""

    def __init__(self, workdir: Path, first: int):
        self.path = workdir / "metrics.jsonl"
        self.writer = None
        if jax.process_index():
            return
        from clu import metric_writers

        self.writer = metric_writers.SummaryWriter(str(workdir))
        if self.path.exists():  # lines past the restored step will be written again
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= first]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            temporary.rename(self.path)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if self.writer is None:
            return
        self.writer.write_scalars(step, scalars)
        self.writer.flush()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
