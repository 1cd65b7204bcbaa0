"""The figures of a compiled step: memory, exchanges, operations and seconds.

Seconds are those of one step. "roofline" is the time that the model's operations take at the data
sheet's peak rate, which nothing beats. The time of the step itself is given as a range, from the
least to the estimate (`schema.Seconds`). Exchanges are counted one after another, at half the data
sheet's rate of the links and without any overlap. Input, saves and compilation are not included.
"""

import math
import re
import time
from typing import Any, cast

import jax
import ml_collections
from jax.sharding import Mesh

from musicssl import audio
from musicssl.planning import hlo, storage
from musicssl.planning.gpus import LAUNCH_SECONDS, Gpu
from musicssl.planning.schema import (
    MEMORY_KINDS,
    Contents,
    Exchange,
    Feed,
    Memory,
    Plan,
    Predicting,
    Seconds,
    StateBytes,
    Tried,
    Work,
)
from musicssl.planning.topology import Chip, Topology
from musicssl.runtime import sharding
from musicssl.training import flops, step

# Seconds of audio that one core reads, decodes and crops from int16 records per second: half of
# what two threads of an AMD EPYC do (`python -m tests.benchmarks.input`).
_READ_BY_A_CORE = 20_000
SLICE_LINKS = 12.5e9  # bytes per second of a TPU host's network between slices: 100 Gbit/s
# The share of the peak rate that a TPU's Pallas kernels are assumed to reach, since the compiler
# has no estimate for them. By its own schedule, attention's kernels reach 25 % at 1496 frames and
# 23 % at 256, without waiting for memory: `python -m tests.benchmarks.attention_kernel`.
KERNEL_SHARE = 0.23
# In the order in which they are looked for in a scope: a teacher's attention counts as the teacher.
_SCOPES = {
    "optimizer": "optimizer",
    "ema": "EMA",
    "teacher": "teacher",
    "labels": "labels",
    "head": "head",
    "input": "input and masks",
    "positional": "positional",
    **{f"stem_{i}": f"stem {i}" for i in range(7)},
    "attention": "attention",
    "feed_forward": "ffn",
    "projection": "projection",
}


def part(scope: str) -> str:
    """Return the part of the model that an instruction's scope belongs to."""
    names = re.split(r"[/().]", scope)
    for name, title in _SCOPES.items():
        if name in names:
            return title
    if not scope or scope.startswith(("state", "audio", "frozen")):
        return "copies"  # of arguments, between layouts and memories
    return "norms, residuals and the rest"


def make_plan(
    config: ml_collections.ConfigDict,
    place: Topology,
    mesh: Mesh,
    limit: int | None,
    program: jax.stages.Compiled | None,
    attempts: list[Tried],
    began: float,
) -> Plan:
    """Return the plan of one topology.

    Args:
      limit: bytes that a program may take on one device; None if it is not known.
      program: the compiled step; None if it does not fit.
      attempts: every batch that was compiled, including this configuration's.
      began: when the work on this plan began, by time.monotonic().
    """
    shapes = step.state_shapes(config)
    device = mesh.devices.flat[0]
    peak = flops.peak(device)
    operations = {name: n / mesh.size for name, n in _operations(config).items()}
    clips = config.batch_size // mesh.size
    crop_seconds = audio.crop_samples(config.data.crop_frames) / config.data.sample_rate
    reading = storage.readings(config)
    wanted = next(x["bytes"] for x in reversed(attempts) if x["clips"] == clips)

    # Read from the program: its exchanges, and its work if the chip is known.
    seconds: Seconds = {"roofline": sum(operations.values()) / peak if peak else None}
    contents = Contents(cycles={}, work={}, collectives=[])
    if program is not None:
        text = program.as_text() or ""
        contents["collectives"] = _exchanges(text, shapes, config)
        if isinstance(place.chip, Gpu):
            _enter_gpu(text, place.chip, peak, contents, seconds)
        else:
            _enter_tpu(text, place.chip, peak, contents, seconds)
        if "estimate" in seconds:
            seconds["exchange"] = exchange(contents["collectives"], place, mesh.shape["fsdp"])
            seconds["estimate"] += seconds["exchange"]

    return {
        "config": f"{config.name}:{config.variant}",
        "topology": place.spec,
        "devices": mesh.size,
        "kind": device.device_kind,
        "fsdp": mesh.shape["fsdp"],
        "clips": clips,
        "global_batch": config.batch_size,
        "crop_seconds": crop_seconds,
        "steps": config.steps,
        "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
        "checkpoint_bytes": stored(shapes),
        "memory": _memory(shapes, mesh, place, limit, program, wanted),
        "flops": operations,
        "peak_flops": peak,
        "predicting": predicting(config),
        "seconds": seconds,
        **contents,
        "feed": _feed(
            clips * place.per_host * crop_seconds,
            reading[config.data.order]["bytes"] * clips * place.per_host / config.batch_size,
            seconds,
        ),
        "reading": reading,
        "attempts": attempts,
        "compile_seconds": round(time.monotonic() - began, 1),
    }


def _enter_tpu(
    text: str, chip: Chip | None, peak: float | None, contents: Contents, seconds: Seconds
) -> None:
    """Enter the compiler's cycles, and the resulting time of the step if the chip is known."""
    calls = hlo.kernels(text)
    contents["cycles"] = hlo.cycles(text, part)
    contents["uncounted_kernels"] = sum(x.operations is None for x in calls)
    if chip is not None and peak is not None and seconds["roofline"] is not None:
        contents["hertz"] = chip.hertz
        contents["kernels"] = enter_kernels(contents["cycles"], calls, peak / chip.hertz)
        seconds["least"] = seconds["roofline"]
        seconds["estimate"] = sum(contents["cycles"].values()) / chip.hertz


def enter_kernels(
    cycles: dict[str, int], kernels: list[hlo.Kernel], operations_a_cycle: float
) -> int:
    """Add Pallas kernels to the cycles of their parts, and return how many cycles they take.

    Args:
      cycles: estimated by the compiler, by part; the kernels' are added to it.
      operations_a_cycle: at the peak rate, of which kernels are assumed to reach KERNEL_SHARE.
    """
    total = 0
    for kernel in kernels:
        if kernel.operations is not None:
            taken = round(kernel.operations / operations_a_cycle / KERNEL_SHARE)
            name = part(kernel.scope)
            cycles[name] = cycles.get(name, 0) + taken
            total += taken
    return total


def _enter_gpu(
    text: str, gpu: Gpu, peak: float | None, contents: Contents, seconds: Seconds
) -> None:
    """Enter the work of the program's kernels, and the resulting time of the step."""
    assert peak is not None, gpu.name
    launches = hlo.launches(text)
    contents["work"] = work_by_part(launches, gpu.bandwidth, peak)
    contents["uncounted_kernels"] = sum(x.times for x in launches if x.operations is None)
    parts = contents["work"].values()
    seconds["least"] = sum(x["seconds"] for x in parts)
    seconds["launch"] = sum(x["kernels"] for x in parts) * LAUNCH_SECONDS
    seconds["estimate"] = seconds["least"] + seconds["launch"]


def work_by_part(launches: list[hlo.Launch], bandwidth: float, peak: float) -> dict[str, Work]:
    """Return the work of a GPU's kernels by part of the model, the longest first.

    Args:
      bandwidth, peak: bytes and operations per second.
    """
    work: dict[str, Work] = {}
    for x in launches:
        moving, computing = x.bytes / bandwidth, (x.operations or 0) / peak
        empty = Work(kernels=0, bytes=0, operations=0, seconds=0.0, memory_seconds=0.0)
        total = work.setdefault(part(x.scope), empty)
        total["kernels"] += x.times
        total["bytes"] += x.times * x.bytes
        total["operations"] += x.times * (x.operations or 0)
        total["seconds"] += x.times * max(moving, computing)
        total["memory_seconds"] += x.times * (moving if moving > computing else 0)
    return dict(sorted(work.items(), key=lambda item: -item[1]["seconds"]))


def _operations(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Return flops.train_parts with the stem's layers listed separately."""
    operations = dict(flops.train_parts(config))
    stem = flops.stem_layers(config.encoder, config.data.crop_frames)
    whole = operations.pop("stem")
    layers = {f"stem {i}": whole * n / sum(stem) for i, n in enumerate(stem)}
    return layers | operations


def predicting(config: ml_collections.ConfigDict) -> list[Predicting]:
    """Return what a step costs and predicts; for data2vec 2.0, also for 1.0 on the same clips.

    data2vec 1.0 then masks as many frames of each clip as one of the copies does.
    """
    name = f"{config.name}:{config.variant}"
    own = flops.predictions(config)
    rows: list[Predicting] = [{"by": name, "flops": flops.train_step(config), "predictions": own}]
    if config.method == "data2vec2":
        first = config.copy_and_resolve_references()
        first.method = "data2vec"
        rows.append(
            {
                "by": "data2vec 1.0 on the same clips",
                "flops": flops.train_step(first),
                "predictions": own / config.mask.copies,
            }
        )
    return rows


def stored(tree: Any) -> int:
    """Return the bytes of all arrays of a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_bytes(shapes: step.TrainState, mesh: Mesh) -> StateBytes:
    """Return the bytes that the training state takes on one device."""

    def on_one_device(tree: Any) -> int:
        shardings = jax.tree.leaves(sharding.state_shardings(tree, mesh))
        arrays = zip(jax.tree.leaves(tree), shardings, strict=True)
        return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in arrays)

    return {
        "parameters": on_one_device(shapes.params),
        "teacher": on_one_device(shapes.teacher),
        "optimizer": on_one_device(shapes.optimizer),
    }


def _memory(
    shapes: step.TrainState,
    mesh: Mesh,
    place: Topology,
    limit: int | None,
    program: jax.stages.Compiled | None,
    wanted: int | None,
) -> Memory:
    """Return the bytes on one device: of the state, and in total by the compiler's account."""
    sizes = {} if program is None else _sizes(program.memory_analysis())
    device = {"device": place.chip.memory} if isinstance(place.chip, Gpu) else {}
    memory = {
        "limit": limit,
        **device,
        "fits": program is not None,
        **state_bytes(shapes, mesh),
        **sizes,
        "wanted": wanted,
    }
    return cast(Memory, memory)  # mypy cannot see which kinds `sizes` has


def _sizes(analysis: object) -> dict[str, int]:
    return {kind: getattr(analysis, f"{kind}_size_in_bytes") for kind in MEMORY_KINDS}


def wanted_bytes(analysis: object) -> int:
    """Return the bytes that a program takes on one device.

    Results that reuse the memory of a donated argument are free.
    """
    sizes = _sizes(analysis)
    return sum(sizes.values()) - 2 * sizes["alias"]


def _exchanges(
    text: str, shapes: step.TrainState, config: ml_collections.ConfigDict
) -> list[Exchange]:
    """Return the exchanges in a program's text by kind, in the order of their first occurrence."""
    parameters = {_dimensions(x.shape) for x in jax.tree.leaves(shapes.params)}
    mask = config.batch_size * config.data.crop_frames  # elements, of the global batch

    def is_activation(shape: tuple[int, ...]) -> bool:
        return math.prod(shape) > mask and _dimensions(shape) not in parameters

    exchanges: dict[str, Exchange] = {}
    for x in hlo.collectives(text):
        new: Exchange = {"kind": x.kind, "count": 0, "bytes": 0, "activations": []}
        same_kind = exchanges.setdefault(x.kind, new)
        same_kind["count"] += x.times
        same_kind["bytes"] += x.bytes * x.times
        if x.kind not in ("all-reduce", hlo.SENT):
            same_kind["activations"] += [list(shape) for shape in x.shapes if is_activation(shape)]
    return list(exchanges.values())


def _dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sort dimensions and drop ones, since a layout may transpose and fold what it gathers."""
    return tuple(sorted(n for n in shape if n > 1))


def exchange(exchanges: list[Exchange], place: Topology, fsdp: int) -> float:
    """Return the seconds of a step's exchanges one after another, at half the data sheet's rate.

    With several TPU slices or GPU machines, only sums of gradients cross the network between them
    (`sharding.make_mesh`), unless more devices share a copy of the state than a machine has. Both
    sum inside a slice or machine first, so that its devices share the transfer: the TPU's program
    says so (`hlo.collectives`), and NVIDIA's library does so by itself.

    Args:
      place: a topology whose chip is known.
      fsdp: how many devices share a copy of the state.
    """
    assert place.chip is not None, place.spec
    gpu = place.chip if isinstance(place.chip, Gpu) else None
    total = 0.0
    for x in exchanges:
        if x["kind"] == hlo.SENT:  # in a ring over the slices; a host's chips share its network
            sent = 2 * x["bytes"] * (place.slices - 1) / place.slices
            total += sent / (SLICE_LINKS / place.per_host)
            continue
        is_sum = x["kind"] == "all-reduce"
        sent = x["bytes"] * (2 if is_sum else 1)
        total += sent / (place.chip.links / 2)
        several = gpu is not None and len(place.devices) > place.per_host
        if gpu is not None and several and (is_sum or fsdp > place.per_host):
            total += sent / (gpu.network * place.per_host)
    return total


def _feed(audio_seconds: float, size: float, seconds: Seconds) -> dict[str, Feed]:
    """Return how much one host reads at each pace.

    Args:
      audio_seconds: the audio of a step's clips on that host.
      size: the bytes that are read for them.
    """
    feed: dict[str, Feed] = {}
    paces = {"roofline": seconds["roofline"], "estimate": seconds.get("estimate")}
    for name, pace in paces.items():
        if pace:
            rate = audio_seconds / pace
            cores = rate / _READ_BY_A_CORE
            feed[name] = {"audio_seconds": rate, "bytes": size / pace, "cores": cores}
    return feed
