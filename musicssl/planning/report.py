"""The plan of a compiled step: its figures as plain values, and their tables.

Seconds are of one step. "roofline" is the time that the model's operations take at the data sheet's
peak rate, which nothing beats. "compiler" adds up the TPU compiler's estimated cycles and then the
exchanges between chips, at half the data sheet's rate and without any overlap. Input, saves and
compilation come on top of both.
"""

import math
import re
import time
from typing import Any, NotRequired, TypedDict, cast

import jax
import ml_collections
from jax.sharding import Mesh

from musicssl import audio
from musicssl.planning import hlo
from musicssl.planning.topology import Topology
from musicssl.runtime import sharding
from musicssl.training import flops, step

# What one core reads, decodes and crops of int16 records in a second, in seconds of audio:
# `python -m tests.benchmarks.input`, half of what two threads of an AMD EPYC do.
_READ_BY_A_CORE = 20_000
SLICE_LINKS = 12.5e9  # bytes a second of a host's network between slices: 100 Gbit/s
# The share of the peak rate that Pallas kernels are taken to reach, since the compiler has no
# estimate for them. Its own schedule of attention's takes 25 % at 1496 frames and 23 % at 256, when
# waiting for memory is left out: `python -m tests.benchmarks.attention_kernel`.
_KERNEL_SHARE = 0.23
_HOUR = 3600 * audio.SAMPLE_RATE // audio.STEM_HOP  # frames in an hour of targets
_MEMORY_KINDS = ("argument", "output", "alias", "temp", "generated_code")
# In the order in which a scope's names are looked for: a teacher's attention is the teacher's.
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


class StateBytes(TypedDict):
    """Bytes of the training state on one device, by what they hold."""

    parameters: int
    teacher: int
    optimizer: int


class Memory(StateBytes):
    """Bytes on one device.

    limit: what a program may take, None where nothing tells. fits: whether the compiler accepted
    the step. wanted: what the step takes, None where a refusal does not say. The others are the
    compiler's analysis of an accepted step.
    """

    limit: int | None
    fits: bool
    argument: NotRequired[int]
    output: NotRequired[int]
    alias: NotRequired[int]
    temp: NotRequired[int]
    generated_code: NotRequired[int]
    wanted: int | None


class Seconds(TypedDict):
    """Seconds of one step.

    roofline: at the peak rate, None where that is not known. compiler: by the compiler's estimate,
    exchanges included. exchange: those alone. Both are there for TPUs of a known data sheet.
    """

    roofline: float | None
    compiler: NotRequired[float]
    exchange: NotRequired[float]


class Exchange(TypedDict):
    """One kind of exchange between devices.

    count: how many a step makes. bytes: of all their results on one device. activations: the
    shapes among them that are of activations, of which there should be none.
    """

    kind: str
    count: int
    bytes: int
    activations: list[list[int]]


class Feed(TypedDict):
    """What one host has to read in a second: seconds of audio, bytes, and cores that are busy."""

    audio_seconds: float
    bytes: float
    cores: float


class Tried(TypedDict):
    """A batch that was put to the compiler: clips on each device, bytes wanted, and the verdict."""

    clips: int
    bytes: int | None
    fits: bool


class Predicting(TypedDict):
    """What a step costs, and what for.

    by: the configuration, or the method that it is compared with. flops: of the global batch's
    step. predictions: masked frames of it whose targets are predicted, in the mean.
    """

    by: str
    flops: float
    predictions: float


class _Kernels(TypedDict, total=False):
    """What is known of Pallas kernels, for which the compiler has no estimate.

    uncounted_kernels: how many have no figure; absent where the step was refused. hertz: of the
    clock that cycles are counted in. kernels: the cycles entered for the others. The last two are
    there for TPUs of a known data sheet.
    """

    uncounted_kernels: int
    hertz: float
    kernels: int


class Plan(_Kernels):
    """What is known of a configuration's step on a topology; serialises to JSON as it is.

    config: family and variant. topology: as on the command line. devices, kind: how many there
    are, and JAX's name for them. fsdp: how many share one copy of the state. clips: on each
    device. global_batch: on all of them. crop_seconds: the length of a clip. steps: of the whole
    run. parameters: of the student, how many. checkpoint_bytes: of the whole state. flops: the
    model's operations a step on one device, by part. peak_flops: the device's peak rate, None where
    it is not known. predicting: this configuration, and data2vec 1.0 beside data2vec 2.0. cycles:
    estimated by the compiler, by part. feed: for each pace of `seconds`. attempts: every batch that
    was compiled. compile_seconds: what it took to make this plan.
    """

    config: str
    topology: str
    devices: int
    kind: str
    fsdp: int
    clips: int
    global_batch: int
    crop_seconds: float
    steps: int
    parameters: int
    checkpoint_bytes: int
    memory: Memory
    flops: dict[str, float]
    peak_flops: float | None
    predicting: list[Predicting]
    seconds: Seconds
    cycles: dict[str, int]
    collectives: list[Exchange]
    feed: dict[str, Feed]
    attempts: list[Tried]
    compile_seconds: float


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
    """Return all that a plan holds of one topology.

    Args:
      limit: bytes of HBM that a program may take on one device, None where nothing tells.
      program: the compiled step, None where the compiler refused it.
      attempts: every batch that was compiled; the one of this configuration among them.
      began: when the work on this plan began, by time.monotonic().
    """
    shapes = step.state_shapes(config)
    device = mesh.devices.flat[0]
    peak = flops.peak(device)
    operations = {name: n / mesh.size for name, n in _operations(config).items()}
    clips = config.batch_size // mesh.size
    crop_seconds = audio.crop_samples(config.data.crop_frames) / config.data.sample_rate
    wanted = next(x["bytes"] for x in reversed(attempts) if x["clips"] == clips)

    # Read from the program: its exchanges, cycles and kernels.
    seconds: Seconds = {"roofline": sum(operations.values()) / peak if peak else None}
    cycles: dict[str, int] = {}
    collectives: list[Exchange] = []
    kernels: _Kernels = {}
    if program is not None:
        text = program.as_text() or ""
        collectives = _exchanges(text, shapes, config)
        calls = hlo.kernels(text)
        kernels["uncounted_kernels"] = sum(x.operations is None for x in calls)
        cycles = hlo.cycles(text, part)
        if place.chip is not None and peak is not None:
            hertz = place.chip.hertz
            kernels["hertz"] = hertz
            kernels["kernels"] = enter_kernels(cycles, calls, peak / hertz)
            exchanging = exchange(collectives, place)
            seconds["compiler"] = sum(cycles.values()) / hertz + exchanging
            seconds["exchange"] = exchanging

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
        "memory": _memory(shapes, mesh, limit, program, wanted),
        "flops": operations,
        "peak_flops": peak,
        "predicting": predicting(config),
        "seconds": seconds,
        "cycles": cycles,
        "collectives": collectives,
        **kernels,
        "feed": _feed(clips * place.per_host * crop_seconds, seconds),
        "attempts": attempts,
        "compile_seconds": round(time.monotonic() - began, 1),
    }


def enter_kernels(
    cycles: dict[str, int], kernels: list[hlo.Kernel], operations_a_cycle: float
) -> int:
    """Add Pallas kernels to the cycles of their parts, and return how many cycles they are.

    Args:
      cycles: estimated by the compiler, by part; the kernels' are added to it.
      operations_a_cycle: at the peak rate, of which kernels are taken to reach _KERNEL_SHARE.
    """
    total = 0
    for kernel in kernels:
        if kernel.operations is not None:
            taken = round(kernel.operations / operations_a_cycle / _KERNEL_SHARE)
            name = part(kernel.scope)
            cycles[name] = cycles.get(name, 0) + taken
            total += taken
    return total


def _operations(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Return flops.train_parts with the stem's layers apart."""
    operations = dict(flops.train_parts(config))
    stem = flops.stem_layers(config.encoder, config.data.crop_frames)
    whole = operations.pop("stem")
    layers = {f"stem {i}": whole * n / sum(stem) for i, n in enumerate(stem)}
    return layers | operations


def predicting(config: ml_collections.ConfigDict) -> list[Predicting]:
    """Return what a step costs and predicts; for data2vec 2.0 also what 1.0 would on those clips.

    1.0 then masks as many frames of each clip as one of the copies does.
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
    limit: int | None,
    program: jax.stages.Compiled | None,
    wanted: int | None,
) -> Memory:
    """Return the bytes on one device: of the state, and those that the compiler says it needs."""
    sizes = {} if program is None else _sizes(program.memory_analysis())
    memory = {
        "limit": limit,
        "fits": program is not None,
        **state_bytes(shapes, mesh),
        **sizes,
        "wanted": wanted,
    }
    return cast(Memory, memory)  # mypy cannot see which kinds `sizes` has


def _sizes(analysis: object) -> dict[str, int]:
    return {kind: getattr(analysis, f"{kind}_size_in_bytes") for kind in _MEMORY_KINDS}


def wanted_bytes(analysis: object) -> int:
    """Return the bytes that a program takes on one device.

    Results that take the place of a donated argument are free.
    """
    sizes = _sizes(analysis)
    return sum(sizes.values()) - 2 * sizes["alias"]


def _exchanges(
    text: str, shapes: step.TrainState, config: ml_collections.ConfigDict
) -> list[Exchange]:
    """Return the exchanges of a program's text by kind, in the order of their first."""
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
        if x.kind != "all-reduce":
            same_kind["activations"] += [list(shape) for shape in x.shapes if is_activation(shape)]
    return list(exchanges.values())


def _dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sort dimensions and drop ones: a layout may turn and fold what it gathers."""
    return tuple(sorted(n for n in shape if n > 1))


def exchange(exchanges: list[Exchange], place: Topology) -> float:
    """Return the seconds of a step's exchanges one after another, at half the data sheet's rate.

    Of several slices only the sum of gradients leaves each (`sharding.make_mesh`), by the network.

    Args:
      place: a topology whose chip is known.
    """
    assert place.chip is not None, place.spec
    total = 0.0
    for x in exchanges:
        is_sum = x["kind"] == "all-reduce"
        leaves_slice = is_sum and place.slices > 1
        rate = SLICE_LINKS / place.per_host if leaves_slice else place.chip.links / 2
        total += x["bytes"] * (2 if is_sum else 1) / rate
    return total


def _feed(audio_seconds: float, seconds: Seconds) -> dict[str, Feed]:
    """Return what one host reads at each pace.

    Args:
      audio_seconds: of a step's clips on that host.
    """
    feed: dict[str, Feed] = {}
    paces = {"roofline": seconds["roofline"], "compiler": seconds.get("compiler")}
    for name, pace in paces.items():
        if pace:
            rate = audio_seconds / pace
            bytes_read = rate * audio.SAMPLE_RATE * 2
            cores = rate / _READ_BY_A_CORE
            feed[name] = {"audio_seconds": rate, "bytes": bytes_read, "cores": cores}
    return feed


def markdown(plans: list[Plan]) -> str:
    """Return a table that compares the plans, then the parts, memory and exchanges of each."""
    lines = [f"# Plan of {plans[0]['config']}", "", _summary(plans)]
    for plan in plans:
        title = f"## {plan['topology']}: {plan['devices']} x {plan['kind']}"
        lines += ["", title, "", *_detail(plan)]
    return "\n".join(lines) + "\n"


def _summary(plans: list[Plan]) -> str:
    """Return a table of one row for each topology.

    Times and shares of peak are the compiler's estimates.
    """
    head = (
        "| topology | chips | fsdp | clips a chip | HBM taken of limit | GFLOP a chip and step "
        "| step, roofline to compiler's estimate | of peak | hours for all steps "
        "| host MB/s | cores | checkpoint |"
    )
    return "\n".join([head, "|---" * 12 + "|", *(_summary_row(plan) for plan in plans)])


def _summary_row(plan: Plan) -> str:
    """Return a topology's row in the table that compares them."""
    memory = plan["memory"]
    verdict = "" if memory["fits"] else ": **does not fit**"

    # Times, from the roofline to the compiler's estimate.
    roofline, compiler = plan["seconds"]["roofline"], plan["seconds"].get("compiler")
    of_peak = f"{roofline / compiler:.0%}" if roofline and compiler else "no estimate"
    low, high = (x * plan["steps"] / 3600 if x else None for x in (roofline, compiler))

    # What a host reads at the compiler's pace, or else at the roofline's.
    feed = plan["feed"].get("compiler") or plan["feed"].get("roofline")
    megabytes = f"{feed['bytes'] / 1e6:,.0f}" if feed else "no estimate"
    cores = f"{feed['cores']:.1f}" if feed else "no estimate"
    cells = [
        plan["topology"],
        plan["devices"],
        plan["fsdp"],
        plan["clips"],
        f"{size(memory['wanted'])} of {size(memory['limit'])}{verdict}",
        f"{sum(plan['flops'].values()) / 1e9:,.0f}",
        _between(roofline, compiler, 1e3, " ms"),
        of_peak,
        _between(low, high, 1, " h"),
        megabytes,
        cores,
        size(plan["checkpoint_bytes"]),
    ]
    return "| " + " | ".join(str(x) for x in cells) + " |"


def _between(low: float | None, high: float | None, scale: float, unit: str) -> str:
    known = [f"{x * scale:,.1f}" for x in (low, high) if x]
    return " to ".join(known) + unit if known else "no estimate"


def size(count: int | None) -> str:
    """Spell a number of bytes."""
    if count is None:
        return "unknown"
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def _detail(plan: Plan) -> list[str]:
    """Return the lines of one topology: verdict, memory, exchanges and the split by part."""
    memory = cast(dict[str, int], plan["memory"])  # whose kinds are looked up by name
    lines = [_verdict(plan), "", *_costs(plan), "", "| bytes on one device | |", "|---|---|"]
    for kind in ("parameters", "teacher", "optimizer", *_MEMORY_KINDS):
        if kind in memory:
            lines.append(f"| {kind} | {size(memory[kind])} |")
    if not plan["memory"]["fits"]:
        return lines

    lines += ["", "| exchange | times | MB | of activations |", "|---|---|---|---|"]
    for x in plan["collectives"]:
        activations = len(x["activations"]) or "none"
        lines.append(f"| {x['kind']} | {x['count']} | {x['bytes'] / 1e6:,.1f} | {activations} |")
    return [*lines, "", *_parts(plan)]


def _costs(plan: Plan) -> list[str]:
    """Return a table of what updates and predictions cost; times are of one chip."""
    lines = [
        "| | TFLOP an update | predictions an update | MFLOP a prediction "
        "| chip time an hour of targets, roofline to compiler's estimate |",
        "|---|---|---|---|---|",
    ]
    compiler = plan["seconds"].get("compiler")
    for row, seconds in zip(plan["predicting"], (compiler, None), strict=False):
        each = row["flops"] / row["predictions"]
        low = _HOUR * each / plan["peak_flops"] if plan["peak_flops"] else None
        high = _HOUR * seconds * plan["devices"] / row["predictions"] if seconds else None
        lines.append(
            f"| {row['by']} | {row['flops'] / 1e12:,.3f} | {row['predictions']:,.0f} "
            f"| {each / 1e6:,.1f} | {_between(low, high, 1, ' s')} |"
        )
    return lines


def _verdict(plan: Plan) -> str:
    """Say whether the step fits, and by how much."""
    limit, wanted = plan["memory"]["limit"], plan["memory"]["wanted"]
    if limit is None:
        return f"Takes {size(wanted)}; this backend's compiler refuses nothing."
    if not plan["memory"]["fits"]:
        more = f" by {size(wanted - limit)}" if wanted else ""
        return f"The compiler refuses {plan['clips']} clips a chip: over {size(limit)}{more}."
    free = size(limit - (wanted or 0))
    text = f"The compiler accepts {plan['clips']} clips a chip, {free} free"
    refused = [x["clips"] for x in plan["attempts"] if not x["fits"]]
    return text + (f", and refuses {min(refused)}." if refused else ".")


def _parts(plan: Plan) -> list[str]:
    """Return a table of each part's estimated cycles beside its roofline, largest first."""
    operations, cycles = plan["flops"], plan["cycles"]
    if "hertz" not in plan or plan["peak_flops"] is None:
        lines = ["| part | GFLOP |", "|---|---|"]
        return lines + [f"| {name} | {n / 1e9:,.2f} |" for name, n in operations.items()]

    operations_a_cycle = plan["peak_flops"] / plan["hertz"]
    total = sum(cycles.values())
    lines = [
        "| part | M cycles, estimated | share | roofline, M cycles | of peak |",
        "|---|---|---|---|---|",
    ]
    for name in [*cycles, *(name for name in operations if name not in cycles)]:
        taken, least = cycles.get(name, 0), operations.get(name, 0) / operations_a_cycle
        of_peak = f"{least / taken:.0%}" if taken and least else ""
        lines.append(
            f"| {name} | {taken / 1e6:.2f} | {taken / total:.1%} | {least / 1e6:.2f} | {of_peak} |"
        )
    least = sum(operations.values()) / operations_a_cycle
    lines.append(f"| all | {total / 1e6:.2f} | | {least / 1e6:.2f} | {least / total:.0%} |")

    # What the estimates say of Pallas kernels.
    if plan["kernels"]:
        lines += [
            "",
            f"{plan['kernels'] / 1e6:.2f} M of these are Pallas kernels, entered at "
            f"{_KERNEL_SHARE:.0%} of peak: the compiler has no estimate for them.",
        ]
    if plan["uncounted_kernels"]:
        lines += [
            "",
            f"{plan['uncounted_kernels']} Pallas kernels, without an estimate, are left out.",
        ]
    return lines
