"""Machines to plan for: TPU slices that need not exist, virtual CPU devices, this machine's.

v5e:4x4        16 chips of TPU v5e          v5p:8x8x8   512 chips of v5p
v5e:16x16@2    two slices of 256 chips      cpu:8       eight virtual devices of this CPU
here           the devices of this machine, GPUs for instance
"""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from musicssl.command import first_line

_SPEC = re.compile(r"(?P<kind>[a-z]\w*):(?P<shape>\d+(x\d+)*)(@(?P<slices>\d+))?")


class Chip(NamedTuple):
    """One generation of TPU, from its data sheet (cloud.google.com/tpu/docs/system-architecture).

    hertz: of the clock that the compiler counts cycles in, which is the peak rate divided by the
    operations of a cycle (131,072 on v5e). memory, links: bytes a second of HBM and of all links to
    other chips. axes: how many its torus has. options: for libtpu, so that a chip is one device.
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
KNOWN = f"{', '.join(_EXAMPLES)}, cpu:8, here"


class Topology(NamedTuple):
    """Devices to compile for. chip: None where the data sheet is not in CHIPS."""

    spec: str
    devices: list[jax.Device]
    chip: Chip | None
    slices: int

    @property
    def per_host(self) -> int:
        """The devices of one host."""
        return len(self.devices) // len({x.process_index for x in self.devices})


def prepare(specs: list[str]) -> None:
    """Tell jax and libtpu, before either looks for devices, that these alone are planned for.

    Raises:
      ValueError: a topology is not known, or it is of TPUs and libtpu is missing.
    """
    # What the specs name.
    matches: list[re.Match] = []
    for spec in specs:
        if spec == "here":
            continue
        match = _SPEC.fullmatch(spec)
        if not match or match["kind"] not in (*CHIPS, "cpu"):
            raise ValueError(f"--topology={spec} is not known: use {KNOWN}, @2 after it for slices")
        axes = match["shape"].count("x") + 1
        wanted = CHIPS[match["kind"]].axes if match["kind"] in CHIPS else 1
        if axes != wanted:
            raise ValueError(
                f"--topology={spec} has {axes} axes where {match['kind']} has {wanted}: use {KNOWN}"
            )
        matches.append(match)
    kinds = {match["kind"] for match in matches}
    if kinds - {"cpu"} and importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--topology names a TPU and its compiler is not installed: pip install 'jax[tpu]' "
            "(Linux x86_64; it needs no TPU)"
        )

    # What libtpu and jax are told.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no metadata server which TPU this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may compile too
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if "here" not in specs:
        jax.config.update("jax_platforms", "cpu")
    virtual = [int(match["shape"]) for match in matches if match["kind"] == "cpu"]
    if virtual:
        jax.config.update("jax_num_cpu_devices", max(virtual))


def topology(spec: str) -> Topology:
    """Return the devices of a spec that `prepare` has accepted.

    Raises:
      ValueError: the generation does not come in that shape.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:  # "here", the one spec without a shape
        return Topology(spec, jax.devices(), None, 1)
    kind, shape, slices = match["kind"], match["shape"], int(match["slices"] or 1)
    if kind == "cpu":
        return Topology(spec, jax.devices("cpu")[: int(shape)], None, 1)

    chip = CHIPS[kind]
    options = chip.options | ({"num_slices": slices} if slices > 1 else {})
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={spec}: {first_line(error)}") from error
    return Topology(spec, list(described.devices), chip, slices)


def memory_limit(device: jax.Device) -> int | None:
    """Return the bytes of HBM that a TPU's compiler gives a program, None for other devices.

    The compiler names them when it refuses a huge program.
    """
    if device.platform != "tpu":
        return None
    here = SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((2**42,), jnp.int8, sharding=here)
    try:
        jax.jit(lambda x: x + 1, out_shardings=here).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return refused_bytes(str(error))[1]
    raise RuntimeError("the compiler accepted 4 TiB: its verdicts on memory are not to be trusted")


def refused_bytes(message: str) -> tuple[int | None, int]:
    """Return the bytes wanted and the bytes there are, from the compiler's refusal.

    Those wanted are None where the message does not say.

    Raises:
      ValueError: the message is in unknown words.
    """
    amount = r"([\d.]+)([KMGT]?)"
    limit = re.search(rf"exceeds available HBM \({amount}\)|of {amount} hbm", message)
    if not limit:
        raise ValueError(f"the compiler's refusal is in unknown words: {message[:300]}")
    wanted = re.search(rf"Used {amount} of|HLO temporaries \({amount}\)", message)
    return (_bytes_of(wanted) if wanted else None), _bytes_of(limit)


def _bytes_of(match: re.Match) -> int:
    """Return the bytes of a number and its unit, the first two groups that matched."""
    number, unit = [x for x in match.groups() if x is not None][:2]
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))
