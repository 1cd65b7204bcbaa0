"""Plan a run before it costs money: python -m musicssl.plan --config=... --topology=v5e:4x4,h100:8

Compiles the training step of a configuration ahead of time for machines that need not be present
(see `planning.topology`), and says whether it fits, how large a batch may be, how much the devices
exchange and how long a step may take. Times are rooflines and estimates from the compiled program,
never measurements. Needs jax[tpu] for TPUs and jax[cuda13] for GPUs. Exit codes: 0 planned, even if
the step does not fit; 2 a request that cannot be met.

With --evaluate it plans an evaluation instead: how much audio, computation, disk, memory and time
each task takes, on this machine by rates that are measured in a minute, and on a TPU or GPU by its
data sheet, which needs no compiler.

    python -m musicssl.plan --evaluate --config=configs/probe.py --config.encoder=DIR \\
        --config.tasks=mir --topology=h100:1

    --batch=16      clips per device, in place of the configuration's global batch
    --batch=auto    the most clips that fit a TPU or GPU; compiles several times
    --batch=auto:40 the same, starting from a guess
    --output=PATH   writes PATH.json and PATH.md; the default is runs/plans/<config>-<variant>, or
                    runs/plans/evaluation-<encoder>
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from musicssl import command, host, paths
from musicssl.planning import compilation, report, topology


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_list("topology", None, f"what to plan for, one or more of {topology.KNOWN}")
    flags.DEFINE_bool("evaluate", False, "plan an evaluation, not a training run")
    flags.DEFINE_string("batch", "", "clips per device, or auto for the most that fit")
    command.define_path("output", "where PATH.json and PATH.md are written")


def main(argv: list[str]) -> None:
    del argv
    f = flags.FLAGS
    if f.evaluate:
        from musicssl.planning import evaluation  # loads what only an evaluation needs

        with command.refusing():
            if f.batch:
                raise ValueError("--batch is for training steps: leave it out with --evaluate")
            costs = evaluation.run(f.config, f.topology or [])
        name = paths.split_kind(f.config.encoder)[1]
        _write(
            f.output or f"runs/plans/evaluation-{Path(name).name}", costs, report.evaluation(costs)
        )
        return
    with command.refusing():
        if not f.topology:
            raise ValueError(f"--topology is missing: give {f['topology'].help}")
        compilation.check_batch(f.batch, f.topology)
        topology.prepare(f.topology)
        progress = tqdm(f.topology, desc="planning", file=sys.stderr)
        plans = [compilation.plan(f.config, topology.topology(spec), f.batch) for spec in progress]
    _write(
        f.output or f"runs/plans/{f.config.name}-{f.config.variant}", plans, report.markdown(plans)
    )


def _write(output: str, plan: Any, text: str) -> None:
    """Write a plan as <output>.json and <output>.md, after printing the latter."""
    print(text)
    with command.refusing():
        path = host.path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        for ending, content in ((".json", json.dumps(plan, indent=1) + "\n"), (".md", text)):
            paths.write(path.with_name(f"{path.name}{ending}"), content.encode())


if __name__ == "__main__":
    command.run(main, define_flags, required=["config"])
