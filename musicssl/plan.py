"""Plan a run before it costs money: python -m musicssl.plan --config=... --topology=v5e:4x4,h100:8

Compiles the training step of a configuration ahead of time for machines that need not be there (see
`planning.topology`), and tells whether it fits, how large a batch may be, what it sends and how
long it may take. Times are rooflines and estimates from the compiled program, never measurements.
Needs jax[tpu] for TPUs, jax[cuda13] for GPUs. Exit codes: 0 planned, also where a step does not
fit; 2 a request that cannot be met.

    --batch=16      clips on each device, in place of the configuration's global batch
    --batch=auto    the most clips that fit a TPU or GPU; compiles several times
    --batch=auto:40 the same, beginning at a guess
    --output=PATH   PATH.json and PATH.md; by default runs/plans/<config>-<variant>
"""

import json
import sys

from absl import flags
from tqdm import tqdm

from musicssl import command, host
from musicssl.planning import compilation, report, topology


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_list("topology", None, f"what to plan for, one or more of {topology.KNOWN}")
    flags.DEFINE_string("batch", "", "clips on each device, or auto for the most that fit")
    command.define_path("output", "where PATH.json and PATH.md are written")


def main(argv: list[str]) -> None:
    del argv
    f = flags.FLAGS
    with command.refusing():
        compilation.check_batch(f.batch, f.topology)
        topology.prepare(f.topology)
        progress = tqdm(f.topology, desc="planning", file=sys.stderr)
        plans = [compilation.plan(f.config, topology.topology(spec), f.batch) for spec in progress]
    output = host.path(f.output or f"runs/plans/{f.config.name}-{f.config.variant}")
    text = report.markdown(plans)
    with command.refusing():
        output.parent.mkdir(parents=True, exist_ok=True)
        for ending, content in ((".json", json.dumps(plans, indent=1) + "\n"), (".md", text)):
            output.with_name(f"{output.name}{ending}").write_text(content)
    print(text)


if __name__ == "__main__":
    command.run(main, define_flags, required=["config", "topology"])
