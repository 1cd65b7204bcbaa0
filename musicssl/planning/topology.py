"""Machines to plan for: TPUs and GPUs that need not be present, virtual CPU devices, this machine.

v5e:4x4        16 chips of TPU v5e          v5p:8x8x8   512 chips of v5p
v5e:16x16@2    two slices of 256 chips      h100:8      a machine of eight H100
h100:2x8       two such machines            cpu:8       eight virtual devices of this CPU
here           the devices of this machine
"""

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from musicssl.command import first_line
from musicssl.planning.gpus import GPUS, MEMORY_SHARE, MOST, Gpu
from musicssl.training import flops

_SPEC = re.compile(r"(?P<kind>[a-z]\w*):(?P<shape>\d+(x\d+)*)(@(?P<slices>\d+))?")


class Chip(NamedTuple):
    """One generation of TPU, from its data sheet (cloud.google.com/tpu/docs/system-architecture).

    hertz: of the clock in which the compiler counts cycles, which is the peak rate divided by the
    operations per cycle (131,072 on v5e). memory, links: bytes per second of HBM and of all links
    to other chips. axes: how many its torus has. options: for libtpu, so that a chip is one device.
    """

    hertz: float
    memory: float
    links: float
    axes: int
    options: dict[str, Any]


_MEGACORE: dict[str, Any] = {
    "chip_config_name": "megacore",
    "chips_per_host_bounds": (2, 2, 1),
    "wrap": (False, False, False),
}
CHIPS = {
    "v4": Chip(1.05e9, 1228e9, 300e9, 3, _MEGACORE),
    "v5e": Chip(1.5e9, 819e9, 200e9, 2, {}),
    "v5p": Chip(1.75e9, 2765e9, 600e9, 3, {}),
    "v6e": Chip(1.75e9, 1640e9, 448e9, 2, {}),
}
_EXAMPLES = [f"{name}:{'x'.join('4' * chip.axes)}" for name, chip in CHIPS.items()]
KNOWN = f"{', '.join([*_EXAMPLES, *(f'{name}:8' for name in GPUS)])}, h100:2x8, cpu:8, here"


class Topology(NamedTuple):
    """Devices to compile for.

    chip: their data sheet, None if it is in neither CHIPS nor GPUS. slices: of TPUs. per_host: how
    many devices one machine has.
    """

    spec: str
    devices: list[jax.Device]
    chip: Chip | Gpu | None
    slices: int
    per_host: int


class DataSheet(NamedTuple):
    """The best that a machine can do.

    devices: how many it has. peak: operations per second of one device in bfloat16. bandwidth:
    bytes per second of one device's memory. half_in_float32: whether float32 products have half the
    peak rate (TF32 on GPUs); TPUs compute them in bfloat16 unless another precision is asked for.
    """

    devices: int
    peak: float
    bandwidth: float
    half_in_float32: bool


def data_sheet(spec: str) -> DataSheet:
    """Return the data sheet of a TPU or GPU topology, which needs no compiler.

    Raises:
      ValueError: the topology is not known, or is not of TPUs or GPUs.
    """
    match = _match(spec) if spec != "here" else None
    if match is None or match["kind"] == "cpu":
        raise ValueError(
            f"--topology={spec}: this machine is measured; name a TPU or GPU such as h100:1"
        )
    kind = match["kind"]
    devices = math.prod(int(n) for n in match["shape"].split("x")) * int(match["slices"] or 1)
    chip: Chip | Gpu = GPUS[kind] if kind in GPUS else CHIPS[kind]
    if isinstance(chip, Gpu):
        peak, bandwidth, half = flops.peak_of(chip.name), chip.bandwidth, True
    else:
        peak, bandwidth, half = flops.peak_of(f"TPU {kind}"), chip.memory, False
    assert peak is not None  # of every kind that a topology can be of
    return DataSheet(devices, peak, bandwidth, half)


def prepare(specs: list[str]) -> None:
    """Prepare jax and the compilers for these topologies, before they look for devices.

    Raises:
      ValueError: a topology is not known, or its compiler is missing.
    """
    matches = [_match(spec) for spec in specs if spec != "here"]
    kinds = {match["kind"] for match in matches}
    if kinds & CHIPS.keys() and importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--topology names a TPU, but its compiler is not installed: pip install 'jax[tpu]' "
            "(Linux x86_64; it needs no TPU)"
        )
    if kinds & GPUS.keys() and not has_cuda():
        raise ValueError(
            "--topology names a GPU, but its compiler is not installed: pip install 'jax[cuda13]' "
            "(Linux; it needs no GPU)"
        )

    # Settings of libtpu, of jax's CUDA plugin and of jax.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no metadata server which TPU this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may compile too
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the driver is not needed
    if "here" not in specs:
        jax.config.update("jax_platforms", "cpu")
    virtual = [int(match["shape"]) for match in matches if match["kind"] == "cpu"]
    if virtual:
        jax.config.update("jax_num_cpu_devices", max(virtual))


def has_cuda() -> bool:
    """Return whether jax's CUDA plugin, which contains the GPUs' compiler, is installed."""
    plugins = importlib.util.find_spec("jax_plugins")
    folders = plugins.submodule_search_locations if plugins else None
    return any(list(Path(folder).glob("xla_cuda*")) for folder in folders or ())


def _match(spec: str) -> re.Match:
    """Return a topology's parts.

    Raises:
      ValueError: it is not known, or has the wrong number of axes for its kind.
    """
    match = _SPEC.fullmatch(spec)
    if not match or match["kind"] not in (*CHIPS, *GPUS, "cpu"):
        raise ValueError(
            f"--topology={spec} is not known: use {KNOWN}, and @2 after a TPU's for two slices"
        )
    kind, sizes = match["kind"], [int(n) for n in match["shape"].split("x")]
    if kind in GPUS:
        if len(sizes) > 2 or min(sizes) < 1 or sizes[-1] > MOST or match["slices"]:
            raise ValueError(
                f"--topology={spec}: give the number of GPUs in a machine, {MOST} at most, and "
                f"before it the number of machines if there are several: {kind}:8, {kind}:2x8"
            )
        return match
    wanted = CHIPS[kind].axes if kind in CHIPS else 1
    if len(sizes) != wanted:
        raise ValueError(
            f"--topology={spec} has {len(sizes)} axes, but {kind} has {wanted}: use {KNOWN}"
        )
    return match


def topology(spec: str) -> Topology:
    """Return the devices of a spec that `prepare` has accepted.

    Raises:
      ValueError: the generation does not come in that shape.
    """
    if spec == "here":
        return Topology(spec, jax.devices(), None, 1, jax.local_device_count())
    match = _match(spec)
    kind, shape, slices = match["kind"], match["shape"], int(match["slices"] or 1)
    if kind == "cpu":
        return Topology(spec, jax.devices("cpu")[: int(shape)], None, 1, int(shape))

    if kind in GPUS:
        each = int(shape.split("x")[-1])
        axes = f"{shape}x1" if "x" in shape else f"1x{shape}x1"  # machines, GPUs of each, 1
        described = _described(
            spec, "cuda", topology_name="", target_config=GPUS[kind].target, topology=axes
        )
        return Topology(spec, described, GPUS[kind], 1, each)

    chip = CHIPS[kind]
    options = chip.options | ({"num_slices": slices} if slices > 1 else {})
    described = _described(spec, "tpu", topology_name=f"{kind}:{shape}", **options)
    hosts = len({x.process_index for x in described})
    return Topology(spec, described, chip, slices, len(described) // hosts)


def _described(spec: str, platform: str, **options: Any) -> list[jax.Device]:
    """Return devices that need not be present.

    Raises:
      ValueError: the compiler knows no such machine.
    """
    try:
        return list(topologies.get_topology_desc(platform=platform, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={spec}: {first_line(error)}") from error


def memory_limit(place: Topology) -> int | None:
    """Return the bytes of one device that a program may take; None if not known.

    A TPU's compiler states them when it refuses a huge program. On a GPU, jax takes a share of the
    memory.
    """
    if isinstance(place.chip, Gpu):
        return int(place.chip.memory * MEMORY_SHARE)
    if place.devices[0].platform != "tpu":
        return None
    here = SingleDeviceSharding(place.devices[0])
    huge = jax.ShapeDtypeStruct((2**42,), jnp.int8, sharding=here)
    try:
        jax.jit(lambda x: x + 1, out_shardings=here).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return refused_bytes(str(error))[1]
    raise RuntimeError("the compiler accepted 4 TiB: its verdicts on memory cannot be trusted")


def refused_bytes(message: str) -> tuple[int | None, int]:
    """Return the bytes wanted and the bytes available, from the compiler's refusal.

    The bytes wanted are None if the message does not say.

    Raises:
      ValueError: the message is not worded as expected.
    """
    amount = r"([\d.]+)([KMGT]?)"
    limit = re.search(rf"exceeds available HBM \({amount}\)|of {amount} hbm", message)
    if not limit:
        raise ValueError(f"the compiler's refusal is not worded as expected: {message[:300]}")
    wanted = re.search(rf"Used {amount} of|HLO temporaries \({amount}\)", message)
    return (_bytes_of(wanted) if wanted else None), _bytes_of(limit)


def _bytes_of(match: re.Match) -> int:
    """Return the bytes of a number and its unit, the first two groups that matched."""
    number, unit = [x for x in match.groups() if x is not None][:2]
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))
