"""Prints the planned cost of pre-training a study's models in chip-hours, before any are spent.

Each distinct training step is compiled for each topology by `python -m musicssl.plan`, which needs
the compiler for a TPU or GPU but not the device; its plan is kept in <workdir>/cost. A step is
planned with a number of clips per chip, and a model's hours are the time that all clips of its
updates take at that pace. Models whose steps differ only in details that cost little (masks,
clusters, MFCC) share a compilation, and their hours differ by the ratio of their operations.
Probing, data and the k-means of codebooks are not included.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections

from musicssl.runtime.workdir import flat, git_commit
from musicssl.training import flops

if TYPE_CHECKING:  # it loads what a compilation needs
    from musicssl.planning.schema import Plan

_CHIP_SECONDS = 120  # of audio on a chip at a time: 4 clips of 30 s or 16 of 5 s fit in 16 GB
# Leaves that do not change the compiled step, or too little to compile it again.
_SHARED = (
    *("name", "variant", "then", "steps", "seed", "start_from", "nonfinite", "log_every"),
    *("checkpoint.", "probe.", "optim.", "data.name", "data.data_dir", "data.on_damage"),
    *("batch_size", "accumulate", "mask.", "data2vec.", "hubert.", "teacher.encoder"),
    *("teacher.ceps", "teacher.clusters", "teacher.batches", "teacher.sample", "teacher.restarts"),
    *("teacher.polish", "teacher.passes", "teacher.tolerance", "data.normalize"),
)


class Costed(NamedTuple):
    """A model whose cost is wanted, its configuration and the flag that names it."""

    name: str
    flag: str
    config: ml_collections.ConfigDict


class _PlannedStep(NamedTuple):
    """A step to be compiled.

    first: the model whose step it is. clips: per chip. path: of the plan, without a suffix.
    """

    first: Costed
    topology: str
    clips: int
    path: Path

    @property
    def command(self) -> list[str]:
        """The command that plans it."""
        return [
            *("python", "-m", "musicssl.plan", f"--config={self.first.flag}"),
            *(f"--topology={self.topology}", f"--batch={self.clips}", f"--output={self.path}"),
        ]


def main(models: Sequence[Costed], topologies: str, workdir: Path, dry_run: bool) -> int:
    """Make the missing plans and print a table for each topology; return the exit code.

    Args:
      topologies: comma-separated, as for musicssl.plan.

    Raises:
      ValueError: a step does not fit, or the planner gives no time.
    """
    for topology in topologies.split(","):
        steps = {model.name: _planned_step(model, models, topology, workdir) for model in models}
        distinct = {step.path: step for step in steps.values()}

        # The plans that are missing.
        missing = [step for step in distinct.values() if not _answer_path(step).exists()]
        for number, step in enumerate(missing, 1):
            line = shlex.join(step.command)
            if dry_run:
                print(line)
                continue
            print(f"study: plan {number} of {len(missing)}: {line}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, *step.command[1:]], stdout=subprocess.DEVNULL, check=False
            )
            if done.returncode:
                return done.returncode
            _commit_path(step).write_text(git_commit())
        if dry_run:
            continue

        # The hours that they give.
        rows = []
        for model in models:
            step = steps[model.name]
            (plan,) = json.loads(_answer_path(step).read_text())
            rows.append(_cost(model, step, plan))
        print(_table(rows))
        print(_commits(distinct.values()))
    return 0


def _commit_path(step: _PlannedStep) -> Path:
    return Path(f"{step.path}.commit")


def _commits(steps: Iterable[_PlannedStep]) -> str:
    """Return a line with the commits of the plans, since kept plans do not notice a change."""
    paths = [_commit_path(step) for step in steps]
    kept = dict.fromkeys(path.read_text() if path.exists() else "unknown" for path in paths)
    now = git_commit()
    line = f"Planned at commit {', '.join(kept)}"
    if list(kept) == [now]:
        return f"{line}."
    return f"{line}; today's is {now}: delete {paths[0].parent} to plan again."


def _answer_path(step: _PlannedStep) -> Path:
    return Path(f"{step.path}.json")


def _planned_step(
    model: Costed, models: Sequence[Costed], topology: str, workdir: Path
) -> _PlannedStep:
    """Return the step that gives a model's cost, of the first model with the same step."""
    shape = _shape(model.config)
    first = next(other for other in models if _shape(other.config) == shape)

    # As many clips as fit, in multiples of 8, since accelerators tile clips by 8.
    seconds = 0.02 * model.config.data.crop_frames
    clips = int(_CHIP_SECONDS / seconds)
    clips = max(1, clips // 8 * 8 or clips)

    digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:8]
    name = f"{first.name}-{digest}-{topology.replace(':', '-')}-{clips}"
    return _PlannedStep(first, topology, clips, workdir / "cost" / name)


def _shape(config: ml_collections.ConfigDict) -> tuple:
    """Return the leaves that decide what is compiled."""
    leaves = sorted(flat(json.loads(config.to_json())).items())
    return tuple((name, str(x)) for name, x in leaves if not name.startswith(_SHARED))


def _cost(model: Costed, step: _PlannedStep, plan: "Plan") -> dict[str, Any]:
    """Return a model's hours on the topology, the least and the planner's estimate.

    Raises:
      ValueError: the step does not fit, or has no estimate.
    """
    if not plan["memory"]["fits"]:
        raise ValueError(
            f"{step.first.name}: {step.clips} clips per chip do not fit {step.topology}: name a "
            "--topology with more memory per chip"
        )
    seconds = plan["seconds"]
    if "least" not in seconds or "estimate" not in seconds:
        raise ValueError(
            f"{_answer_path(step)} has no estimate of time for --topology={step.topology}: name a "
            "TPU or GPU, and delete the plan if an older version made it"
        )

    # A chip's steps for all clips of all updates, each at the pace of the planned step.
    ratio = _operations(model.config) / _operations(step.first.config)
    paces = model.config.steps * model.config.batch_size / plan["clips"] / 3600
    chip_hours = {
        "least": paces * ratio * seconds["least"],
        "estimate": paces * ratio * seconds["estimate"],
    }
    return {
        "name": model.name,
        "as": step.first.name,
        "topology": plan["topology"],
        "chips": plan["devices"],
        "updates": model.config.steps,
        "batch": model.config.batch_size,
        "clips": plan["clips"],
        "chip_hours": chip_hours,
        "hours": {name: value / plan["devices"] for name, value in chip_hours.items()},
    }


def _operations(config: ml_collections.ConfigDict) -> float:
    """Return the floating-point operations of a clip in training."""
    return flops.train_step(config) / config.batch_size


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the models' hours and their sum, in Markdown."""
    head = ("model", "updates", "clips an update", "clips a chip", "hours", "chip-hours", "step of")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            *(row["name"], f"{row['updates']:,}", row["batch"], row["clips"]),
            *(_range(row["hours"]), _range(row["chip_hours"])),
            "itself" if row["as"] == row["name"] else row["as"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")

    # The last row: all models, one after another.
    total = {}
    for name in ("least", "estimate"):
        total[name] = sum(row["chip_hours"][name] for row in rows)
    wall = {name: value / rows[0]["chips"] for name, value in total.items()}
    cells = [f"all {len(rows)}", "", "", "", _range(wall), _range(total), ""]
    lines.append(f"| {' | '.join(cells)} |")
    return (
        f"{rows[0]['topology']}, {rows[0]['chips']} chips, one model after another; from the least "
        "to the planner's estimate, which is not a measurement:\n\n" + "\n".join(lines) + "\n"
    )


def _range(hours: dict[str, float]) -> str:
    """Spell hours from the least to the estimate."""
    return f"{hours['least']:,.0f} to {hours['estimate']:,.0f}"
