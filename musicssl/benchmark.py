"""Time a configuration's training step, its parts and its surroundings, and their limits.

    python -m musicssl.benchmark --config=configs/musichubert.py:k500 --batch=4

Every figure is shown with its limit: the operations per second from the data sheet if the device
and precision are known, else those of a large matrix product; the bytes per second of a large copy;
the encoder's own forward pass; a bare read of the same files. Parts are timed alone, forward and
backward, so they need not add up to the step, which overlaps and fuses them. The step needs no data
set, and neither TensorFlow nor clu. Exit codes: 0 timed, 2 a request that cannot be met.

    --batch=4       clips per device, in place of the configuration's global batch
    --only=step,... only some of the rows; the default is all
    --seconds=3     seconds of measurement per row, after a first call that compiles
    --backend=cpu   the platform, if there are several
    --output=PATH   writes PATH.json; the default is runs/benchmarks/<config>-<variant>
"""

import sys

import jax
from absl import flags

from musicssl import command, environment, host
from musicssl.planning import benchmark, compilation
from musicssl.planning.benchmark import AROUND, STEP
from musicssl.runtime import sharding


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_integer("batch", 0, "clips per device", lower_bound=0)
    flags.DEFINE_list("only", [], f"some of {', '.join(STEP + AROUND)}")
    flags.DEFINE_float("seconds", 3.0, "seconds of measurement per row", lower_bound=0.0)
    flags.DEFINE_string("backend", "", "cpu, gpu or tpu")
    command.define_path("output", "where PATH.json is written")


def main(argv: list[str]) -> None:
    del argv
    f = flags.FLAGS
    with command.refusing(RuntimeError):
        if unknown := sorted(set(f.only) - {*STEP, *AROUND}):
            raise ValueError(f"--only={','.join(unknown)}: use some of {', '.join(STEP + AROUND)}")
        if f.backend:
            jax.config.update("jax_platforms", f.backend)
        environment.require_devices()
        mesh = sharding.make_mesh(f.config.mesh.fsdp)
        config = f.config
        if f.batch:
            config = compilation.with_batch(config, f.batch * mesh.size)
    here = benchmark.machine(mesh, config.precision, f.seconds)
    rows = []
    for row in benchmark.measured(config, here, f.only or [*STEP, *AROUND]):
        rows.append(row)
        print(f"{row.name}: {row.seconds:.3g} s", file=sys.stderr)
    output = host.path(f.output or f"runs/benchmarks/{config.name}-{config.variant}")
    with command.refusing():
        benchmark.write_report(config, here, rows, output)


if __name__ == "__main__":
    command.run(main, define_flags, required=["config"])
