"""Cycles of the attention kernels by the TPU compiler's own schedule, for v5e.

    python -m tests.benchmarks.attention_kernel [--clips=8] [--frames=1496]

The compiler has no estimate for a Pallas kernel, and `musicssl.plan` enters it at a stated share of
peak (`costs.KERNEL_SHARE`). It does write down the bundles of instructions that it has
scheduled for one block of rows, one a cycle; times the blocks they are the kernel's cycles, waiting
for memory left out. Needs libtpu, and no TPU.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from musicssl.model import attention_kernel
from musicssl.planning import costs, topology
from musicssl.training import flops

HEADS, CHANNELS = 12, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1496)
    options = parser.parse_args()
    b, t = options.clips, options.frames
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        place = compile_both(b, t)
        bundles = {name: scheduled(Path(folder), name) for name in attention_kernel.PRODUCTS}
    blocks = b * HEADS * CHANNELS // attention_kernel.LANES * (t // attention_kernel.rows_of(t))
    each = flops.peak(place.devices[0]) / place.chip.hertz
    total = wanted = 0
    for name, products in attention_kernel.PRODUCTS.items():
        cycles = bundles[name] * blocks
        least = products * 2 * b * HEADS * t**2 * CHANNELS / each
        total, wanted = total + cycles, wanted + least
        print(f"{name}: {bundles[name]} bundles, {cycles / 1e6:.2f} M cycles, {least / cycles:.1%}")
    print(
        f"both, {b} clips of {t} frames: {wanted / total:.1%} of peak; entered at "
        f"{costs.KERNEL_SHARE:.0%}"
    )


def compile_both(b: int, t: int) -> topology.Topology:
    topology.prepare(["v5e:2x2"])
    place = topology.topology("v5e:2x2")
    here = SingleDeviceSharding(place.devices[0])
    x = jax.ShapeDtypeStruct((b, t, HEADS, CHANNELS), jnp.bfloat16, sharding=here)
    salts = jax.ShapeDtypeStruct((b, HEADS, 2), jnp.uint32, sharding=here)

    def both_ways(q, k, v, dy, salts):
        attend = lambda *x: attention_kernel.attend(*x, salts, 0.1, False)  # noqa: E731
        y, back = jax.vjp(attend, q, k, v)
        return y, back(dy)

    jax.jit(both_ways, out_shardings=here).lower(x, x, x, x, salts).compile()
    return place


def scheduled(folder: Path, name: str) -> int:
    """Bundles of one kernel, of which all but a few are in the loop over its blocks."""
    (report,) = folder.glob(f"*attention_{name}*-schedule-analysis_final_bundles.txt")
    return int(re.search(r"total scheduled bundles: *(\d+)", report.read_text())[1])


if __name__ == "__main__":
    main()
