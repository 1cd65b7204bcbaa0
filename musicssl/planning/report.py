"""What a plan tells: the figures of a compiled step as plain values, and their tables.

Seconds are of one step. "roofline": the model's operations at the data sheet's peak rate, which
nothing beats. "compiler": the TPU compiler's estimated cycles, and the exchanges between chips
after them, at half the data sheet's rate and not overlapped. Input, saves and compilation come on
top of both.
"""

import math
import re

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
READ_BY_A_CORE = 20_000
SLICE_LINKS = 12.5e9  # bytes a second of a host's network between slices: 100 Gbit/s
# Of the peak rate, what Pallas kernels are entered at: the compiler has no estimate for them. Its
# own schedule of attention's, waiting for memory left out, takes 25 % at 1496 frames, 23 % at 256:
# `python -m tests.benchmarks.attention_kernel`.
KERNEL_SHARE = 0.23
MEMORY = ("argument", "output", "alias", "temp", "generated_code")
# In the order in which a scope's names are looked for: a teacher's attention is the teacher's.
SCOPES = {
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
    """The part of the model that an instruction's scope belongs to."""
    names = re.split(r"[/().]", scope)
    for name, title in SCOPES.items():
        if name in names:
            return title
    if not scope or scope.startswith(("state", "audio", "frozen")):
        return "copies"  # of arguments, between layouts and memories
    return "norms, residuals and the rest"


def facts(
    config: ml_collections.ConfigDict,
    place: Topology,
    mesh: Mesh,
    limit: int | None,
    program: jax.stages.Compiled | None,
) -> dict:
    """Everything a plan holds of one topology, in JSON's types.

    Args:
      limit: bytes of HBM that a program may take on one device, None where nothing tells.
      program: the compiled step, None where the compiler refused it.
    """
    shapes = step.state_shapes(config)
    device = mesh.devices.flat[0]
    peak = flops.peak(device)
    analytic = {name: n / mesh.size for name, n in parts(config).items()}
    seconds = audio.crop_samples(config.data.crop_frames) / config.data.sample_rate
    roofline = sum(analytic.values()) / peak if peak else None
    told = {
        "config": f"{config.name}:{config.variant}",
        "topology": place.spec,
        "devices": mesh.size,
        "kind": device.device_kind,
        "fsdp": mesh.shape["fsdp"],
        "clips": config.batch_size // mesh.size,
        "global_batch": config.batch_size,
        "crop_seconds": seconds,
        "steps": config.steps,
        "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
        "checkpoint_bytes": stored(shapes),
        "memory": memory(shapes, mesh, limit, program),
        "flops": analytic,
        "peak_flops": peak,
        "seconds": {"roofline": roofline},
        "cycles": {},
        "collectives": [],
    }
    if program is not None:
        text = program.as_text()
        told["collectives"] = sent(text, shapes, config)
        kernels = hlo.kernels(text)
        told["uncounted_kernels"] = sum(x.operations is None for x in kernels)
        told["cycles"] = hlo.cycles(text, part)
        if place.chip is not None:
            told["hertz"] = place.chip.hertz
            told["kernels"] = entered(told["cycles"], kernels, peak / place.chip.hertz)
            estimate = sum(told["cycles"].values()) / place.chip.hertz
            told["seconds"]["compiler"] = estimate + exchange(told["collectives"], place)
            told["seconds"]["exchange"] = exchange(told["collectives"], place)
    told["feed"] = feed(told, place)
    return told


def entered(cycles: dict[str, int], kernels: list[hlo.Kernel], each: float) -> int:
    """Adds Pallas kernels to their parts' cycles, and returns how many cycles they are.

    Args:
      each: operations a cycle at the peak rate, of which they are taken to reach KERNEL_SHARE.
    """
    total = 0
    for x in kernels:
        if x.operations is not None:
            taken = round(x.operations / each / KERNEL_SHARE)
            cycles[part(x.scope)] = cycles.get(part(x.scope), 0) + taken
            total += taken
    return total


def parts(config: ml_collections.ConfigDict) -> dict[str, float]:
    """flops.train_parts with the stem's layers apart."""
    found = dict(flops.train_parts(config))
    stem = flops.stem_layers(config.encoder, config.data.crop_frames)
    whole = found.pop("stem")
    layers = {f"stem {i}": whole * n / sum(stem) for i, n in enumerate(stem)}
    return layers | found


def stored(tree: object) -> int:
    """Bytes of all arrays of a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory(
    shapes: step.TrainState, mesh: Mesh, limit: int | None, program: jax.stages.Compiled | None
) -> dict:
    """Bytes on one device: what the state takes by kind, and what the compiler says it needs."""

    def held(tree: object) -> int:
        placed = sharding.state_shardings(tree, mesh)
        each = jax.tree.map(
            lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, placed
        )
        return sum(jax.tree.leaves(each))

    told = {
        "limit": limit,
        "fits": program is not None,
        "parameters": held(shapes.params),
        "teacher": held(shapes.teacher),
        "optimizer": held(shapes.optimizer),
    }
    if program is not None:
        analysis = program.memory_analysis()
        told |= {kind: getattr(analysis, f"{kind}_size_in_bytes") for kind in MEMORY}
    return told


def wanted_bytes(analysis: object) -> int:
    """Bytes that a program takes on one device; results in a donated argument's place are free."""
    sizes = {kind: getattr(analysis, f"{kind}_size_in_bytes") for kind in MEMORY}
    return sum(sizes.values()) - 2 * sizes["alias"]


def sent(text: str, shapes: step.TrainState, config: ml_collections.ConfigDict) -> list[dict]:
    """The program's exchanges by kind: how many, their bytes, and those of activations."""
    known = {dimensions(x.shape) for x in jax.tree.leaves(shapes.params)}
    small = config.batch_size * config.data.crop_frames  # a mask of the global batch
    found: dict[str, dict] = {}
    for x in hlo.collectives(text):
        row = found.setdefault(x.kind, {"kind": x.kind, "count": 0, "bytes": 0, "activations": []})
        row["count"] += x.times
        row["bytes"] += x.bytes * x.times
        if x.kind != "all-reduce":
            row["activations"] += [
                list(s) for s in x.shapes if math.prod(s) > small and dimensions(s) not in known
            ]
    return list(found.values())


def dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sorted, without ones: a layout may turn and fold what it gathers."""
    return tuple(sorted(n for n in shape if n > 1))


def exchange(rows: list[dict], place: Topology) -> float:
    """Seconds of a step's collectives one after another, at half the data sheet's rate.

    Of several slices only the sum of gradients leaves each (`sharding.make_mesh`), by the network.
    """
    total = 0.0
    for row in rows:
        reduce = row["kind"] == "all-reduce"
        outside = reduce and place.slices > 1
        rate = SLICE_LINKS / place.per_host if outside else place.chip.links / 2
        total += row["bytes"] * (2 if reduce else 1) / rate
    return total


def feed(told: dict, place: Topology) -> dict:
    """What one host reads at each pace: seconds of audio, bytes and cores, a second."""
    audio_seconds = told["clips"] * place.per_host * told["crop_seconds"]
    rates = {name: audio_seconds / s for name, s in told["seconds"].items() if s}
    rates.pop("exchange", None)
    return {
        name: {
            "audio_seconds": rate,
            "bytes": rate * audio.SAMPLE_RATE * 2,
            "cores": rate / READ_BY_A_CORE,
        }
        for name, rate in rates.items()
    }


def markdown(plans: list[dict]) -> str:
    """All plans: one table to compare them, then each one's parts, memory and exchanges."""
    lines = [f"# Plan of {plans[0]['config']}", "", summary(plans)]
    for told in plans:
        lines += [
            "",
            f"## {told['topology']}: {told['devices']} x {told['kind']}",
            "",
            *detail(told),
        ]
    return "\n".join(lines) + "\n"


def summary(plans: list[dict]) -> str:
    """One row a topology; times and shares of peak are the compiler's estimates."""
    head = (
        "| topology | chips | fsdp | clips a chip | HBM taken of limit | GFLOP a chip and step "
        "| step, roofline to compiler's estimate | of peak | hours for all steps "
        "| host MB/s | cores | checkpoint |"
    )
    return "\n".join([head, "|---" * 12 + "|", *(row(told) for told in plans)])


def row(told: dict) -> str:
    seconds, m = told["seconds"], told["memory"]
    hours = {name: s * told["steps"] / 3600 for name, s in seconds.items() if s}
    peak = seconds.get("compiler") and f"{seconds['roofline'] / seconds['compiler']:.0%}"
    quick = told["feed"].get("compiler") or told["feed"].get("roofline")
    cells = [
        told["topology"],
        told["devices"],
        told["fsdp"],
        told["clips"],
        f"{size(m['wanted'])} of {size(m['limit'])}" + ("" if m["fits"] else ": **does not fit**"),
        f"{sum(told['flops'].values()) / 1e9:,.0f}",
        between(seconds.get("roofline"), seconds.get("compiler"), 1e3, " ms"),
        peak or "no estimate",
        between(hours.get("roofline"), hours.get("compiler"), 1, " h"),
        f"{quick['bytes'] / 1e6:,.0f}" if quick else "no estimate",
        f"{quick['cores']:.1f}" if quick else "no estimate",
        size(told["checkpoint_bytes"]),
    ]
    return "| " + " | ".join(str(x) for x in cells) + " |"


def between(low: float | None, high: float | None, scale: float, unit: str) -> str:
    known = [f"{x * scale:,.1f}" for x in (low, high) if x]
    return " to ".join(known) + unit if known else "no estimate"


def size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def detail(told: dict) -> list[str]:
    """Verdict, memory, exchanges and the split by part of one topology."""
    m = told["memory"]
    lines = [verdict(told), ""]
    kinds = [k for k in ("parameters", "teacher", "optimizer", *MEMORY) if k in m]
    lines += [
        "| bytes on one device | |",
        "|---|---|",
        *(f"| {k} | {size(m[k])} |" for k in kinds),
        "",
    ]
    if not m["fits"]:
        return lines[:-1]
    lines += ["| exchange | times | MB | of activations |", "|---|---|---|---|"]
    lines += [
        f"| {x['kind']} | {x['count']} | "
        f"{x['bytes'] / 1e6:,.1f} | {len(x['activations']) or 'none'} |"
        for x in told["collectives"]
    ]
    return [*lines, "", *split(told)]


def verdict(told: dict) -> str:
    m = told["memory"]
    if m["limit"] is None:
        return f"Takes {size(m['wanted'])}; this backend's compiler refuses nothing."
    if not m["fits"]:
        more = f" by {size(m['wanted'] - m['limit'])}" if m["wanted"] else ""
        return f"The compiler refuses {told['clips']} clips a chip: over {size(m['limit'])}{more}."
    text = (
        f"The compiler accepts {told['clips']} clips a chip, {size(m['limit'] - m['wanted'])} free"
    )
    refused = [x["clips"] for x in told["attempts"] if not x["fits"]]
    return text + (f", and refuses {min(refused)}." if refused else ".")


def split(told: dict) -> list[str]:
    """Each part's estimated cycles beside its roofline, largest first."""
    counts, cycles = told["flops"], told["cycles"]
    if "hertz" not in told:
        return [
            "| part | GFLOP |",
            "|---|---|",
            *(f"| {k} | {v / 1e9:,.2f} |" for k, v in counts.items()),
        ]
    each = told["peak_flops"] / told["hertz"]  # operations a cycle
    total = sum(cycles.values())
    lines = [
        "| part | M cycles, estimated | share | roofline, M cycles | of peak |",
        "|---|---|---|---|---|",
    ]
    for name in [*cycles, *(k for k in counts if k not in cycles)]:
        have, least = cycles.get(name, 0), counts.get(name, 0) / each
        peak = f"{least / have:.0%}" if have and least else ""
        lines.append(
            f"| {name} | {have / 1e6:.2f} | {have / total:.1%} | {least / 1e6:.2f} | {peak} |"
        )
    least = sum(counts.values()) / each
    lines.append(f"| all | {total / 1e6:.2f} | | {least / 1e6:.2f} | {least / total:.0%} |")
    if told["kernels"]:
        lines += [
            "",
            f"{told['kernels'] / 1e6:.2f} M of these are Pallas kernels, entered at "
            f"{KERNEL_SHARE:.0%} of peak: the compiler has no estimate for them.",
        ]
    if told["uncounted_kernels"]:
        lines += [
            "",
            f"{told['uncounted_kernels']} Pallas kernels, without an estimate, are left out.",
        ]
    return lines
