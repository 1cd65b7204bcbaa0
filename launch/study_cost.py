"""What pre-training a study's models takes, from the planner: chip-hours, before anything is spent.

Each distinct training step is compiled for each topology by `python -m musicssl.plan`, which needs
libtpu and no TPU, and its answer is kept in <workdir>/cost. A step is planned at a number of clips
a chip; a model's hours are its updates times the clips of an update at that pace. Models whose
steps differ in what hardly costs (masks, clusters, MFCC) share a compilation, and differ by the
ratio of their operations. Probing, data and a codebook's k-means come on top.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from musicssl.runtime.workdir import flat, git_commit
from musicssl.training import flops

CHIP_SECONDS = 120  # of audio on a chip at a time: 4 clips of 30 s or 16 of 5 s fit 16 GB
# Leaves that do not change what is compiled, or too little to compile it again.
SHARED = (
    *("name", "variant", "then", "steps", "seed", "start_from", "nonfinite", "log_every"),
    *("checkpoint.", "probe.", "optim.", "data.name", "data.data_dir", "data.on_damage"),
    *("batch_size", "accumulate", "mask.", "data2vec.", "hubert.", "teacher.encoder"),
    *("teacher.ceps", "teacher.clusters", "teacher.batches", "teacher.sample", "teacher.restarts"),
    *("teacher.polish", "teacher.passes", "teacher.tolerance", "data.normalize"),
)


class Costed(NamedTuple):
    """A model to be costed, its configuration and the flag that names it."""

    name: str
    flag: str
    config: ml_collections.ConfigDict


class Plan(NamedTuple):
    """A step to be compiled. first: the model whose step it is. path: of the answer, no suffix."""

    first: Costed
    topology: str
    clips: int
    path: Path

    @property
    def command(self) -> list[str]:
        return [
            *("python", "-m", "musicssl.plan", f"--config={self.first.flag}"),
            *(f"--topology={self.topology}", f"--batch={self.clips}", f"--output={self.path}"),
        ]


def main(models: Sequence[Costed], topologies: str, workdir: Path, dry_run: bool) -> int:
    """Plans what is not planned yet and prints the table; the exit code.

    Raises:
      ValueError: a step does not fit, or the planner gives no time.
    """
    for topology in topologies.split(","):
        plans = {model.name: plan_of(model, models, topology, workdir) for model in models}
        distinct = {plan.path: plan for plan in plans.values()}
        missing = [plan for plan in distinct.values() if not told(plan).exists()]
        for number, plan in enumerate(missing, 1):
            line = shlex.join(plan.command)
            if dry_run:
                print(line)
                continue
            print(f"study: plan {number} of {len(missing)}: {line}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, *plan.command[1:]], stdout=subprocess.DEVNULL, check=False
            )
            if done.returncode:
                return done.returncode
            planned_at(plan).write_text(git_commit())
        if not dry_run:
            rows = [
                estimate(x, plans[x.name], json.loads(told(plans[x.name]).read_text())[0])
                for x in models
            ]
            print(table(rows))
            print(commits(distinct.values()))
    return 0


def planned_at(plan: Plan) -> Path:
    return Path(f"{plan.path}.commit")


def commits(plans: Iterable[Plan]) -> str:
    """A line that says which code the plans are of: kept ones do not notice that it changes."""
    each = [planned_at(plan) for plan in plans]
    kept = dict.fromkeys(x.read_text() if x.exists() else "unknown" for x in each)
    now = git_commit()
    told = f"Planned at commit {', '.join(kept)}"
    if list(kept) == [now]:
        return f"{told}."
    return f"{told}; today's is {now}: delete {each[0].parent} to plan again."


def told(plan: Plan) -> Path:
    return Path(f"{plan.path}.json")


def plan_of(model: Costed, models: Sequence[Costed], topology: str, workdir: Path) -> Plan:
    """The plan that a model is costed by: of the first model with the same step."""
    mine = shape(model.config)
    first = next(x for x in models if shape(x.config) == mine)
    seconds = 0.02 * model.config.data.crop_frames
    clips = int(CHIP_SECONDS / seconds)
    clips = max(1, clips // 8 * 8 or clips)  # accelerators tile clips by 8
    digest = hashlib.sha256(repr(mine).encode()).hexdigest()[:8]
    name = f"{first.name}-{digest}-{topology.replace(':', '-')}-{clips}"
    return Plan(first, topology, clips, workdir / "cost" / name)


def shape(config: ml_collections.ConfigDict) -> tuple:
    """The leaves that decide what is compiled."""
    leaves = flat(json.loads(config.to_json()))
    return tuple((k, str(v)) for k, v in sorted(leaves.items()) if not k.startswith(SHARED))


def estimate(model: Costed, plan: Plan, answer: dict[str, Any]) -> dict[str, Any]:
    """A model's hours on the topology, by the roofline and by the compiler's estimate.

    Raises:
      ValueError: the step does not fit, or has no estimate.
    """
    if not answer["memory"]["fits"]:
        raise ValueError(
            f"{plan.first.name}: {plan.clips} clips a chip do not fit {plan.topology}: name a "
            "--topology with more memory a chip"
        )
    if "compiler" not in answer["seconds"]:
        raise ValueError(f"--topology={plan.topology} has no estimate of time: name a TPU")
    ratio = operations(model.config) / operations(plan.first.config)
    paces = model.config.steps * model.config.batch_size / answer["clips"] / 3600
    chip_hours = {
        name: paces * ratio * answer["seconds"][name] for name in ("roofline", "compiler")
    }
    return {
        "name": model.name,
        "as": plan.first.name,
        "topology": answer["topology"],
        "chips": answer["devices"],
        "updates": model.config.steps,
        "batch": model.config.batch_size,
        "clips": answer["clips"],
        "chip_hours": chip_hours,
        "hours": {name: value / answer["devices"] for name, value in chip_hours.items()},
    }


def operations(config: ml_collections.ConfigDict) -> float:
    """Floating-point operations of a clip in training."""
    return flops.train_step(config) / config.batch_size


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The models' hours and their sum, in Markdown."""
    head = ("model", "updates", "clips an update", "clips a chip", "hours", "chip-hours", "step of")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (
            row["name"], f"{row['updates']:,}", row["batch"], row["clips"], span(row["hours"]),
            span(row["chip_hours"]), "itself" if row["as"] == row["name"] else row["as"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    total = {
        name: sum(row["chip_hours"][name] for row in rows) for name in ("roofline", "compiler")
    }
    wall = {name: value / rows[0]["chips"] for name, value in total.items()}
    cells = (f"all {len(rows)}", "", "", "", span(wall), span(total), "")
    lines.append(f"| {' | '.join(cells)} |")
    return (
        f"{rows[0]['topology']}, {rows[0]['chips']} chips, one model after another; from the peak "
        "rate to the TPU compiler's estimate, which is no measurement:\n\n"
        + "\n".join(lines)
        + "\n"
    )


def span(hours: dict[str, float]) -> str:
    return f"{hours['roofline']:,.0f} to {hours['compiler']:,.0f}"
