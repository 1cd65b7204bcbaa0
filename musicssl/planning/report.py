"""Plans as tables in Markdown."""

from typing import cast

from musicssl import audio
from musicssl.planning import storage
from musicssl.planning.costs import KERNEL_SHARE
from musicssl.planning.gpus import LAUNCH_SECONDS, MEMORY_SHARE
from musicssl.planning.schema import MEMORY_KINDS, DeviceCost, EvaluationPlan, Plan, TaskCost

_HOUR = 3600 * audio.SAMPLE_RATE // audio.STEM_HOP  # frames in an hour of targets
_ENDS = (
    "The time of a step is a range from the least to the estimate; neither is a timing. TPU: the "
    "least is the time at the peak rate, and the estimate is the compiler's cycles plus the "
    "exchanges. GPU: the least is the roofline of the compiled program's kernels, and the estimate "
    "adds the time to start them and the exchanges."
)


def markdown(plans: list[Plan]) -> str:
    """Return a table that compares the plans, then the parts, memory and exchanges of each."""
    lines = [f"# Plan of {plans[0]['config']}", "", _summary(plans), "", _ENDS]
    for plan in plans:
        title = f"## {plan['topology']}: {plan['devices']} x {plan['kind']}"
        lines += ["", title, "", *_detail(plan)]
    return "\n".join(lines) + "\n"


def _summary(plans: list[Plan]) -> str:
    """Return a table with one row for each topology.

    Shares of the peak are those of the estimates.
    """
    head = (
        "| topology | chips | fsdp | clips a chip | memory taken of limit | GFLOP a chip and step "
        "| step, least to estimate | of peak | hours for all steps "
        "| host MB/s | cores | checkpoint |"
    )
    return "\n".join([head, "|---" * 12 + "|", *(_summary_row(plan) for plan in plans)])


def _summary_row(plan: Plan) -> str:
    """Return a topology's row in the table that compares them."""
    memory = plan["memory"]
    verdict = "" if memory["fits"] else ": **does not fit**"

    # Times, from the least to the estimate; if the chip is not known, by the peak rate only.
    roofline, estimate = plan["seconds"]["roofline"], plan["seconds"].get("estimate")
    least = plan["seconds"].get("least", roofline)
    of_peak = f"{roofline / estimate:.0%}" if roofline and estimate else "no estimate"
    low, high = (x * plan["steps"] / 3600 if x else None for x in (least, estimate))

    # How much a host reads at the estimated pace, or else at the roofline's.
    feed = plan["feed"].get("estimate") or plan["feed"].get("roofline")
    megabytes = f"{feed['bytes'] / 1e6:,.0f}" if feed else "no estimate"
    cores = f"{feed['cores']:.1f}" if feed else "no estimate"
    cells = [
        plan["topology"],
        plan["devices"],
        plan["fsdp"],
        plan["clips"],
        f"{size(memory['wanted'])} of {size(memory['limit'])}{verdict}",
        f"{sum(plan['flops'].values()) / 1e9:,.0f}",
        _between(least, estimate, 1e3, " ms"),
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
    """Return a number of bytes in MiB or GiB."""
    if count is None:
        return "unknown"
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def _detail(plan: Plan) -> list[str]:
    """Return the lines of one topology: verdict, memory, exchanges and the split by part."""
    memory = cast(dict[str, int], plan["memory"])  # whose kinds are looked up by name
    lines = [
        _verdict(plan),
        "",
        *_predicting(plan),
        "",
        *_reading(plan),
        "",
        "| bytes on one device | |",
        "|---|---|",
    ]
    for kind in ("parameters", "teacher", "optimizer", *MEMORY_KINDS):
        if kind in memory:
            lines.append(f"| {kind} | {size(memory[kind])} |")
    if not plan["memory"]["fits"]:
        return lines

    lines += ["", "| exchange | times | MB | of activations |", "|---|---|---|---|"]
    for x in plan["collectives"]:
        activations = len(x["activations"]) or "none"
        lines.append(f"| {x['kind']} | {x['count']} | {x['bytes'] / 1e6:,.1f} | {activations} |")
    return [*lines, "", *(_work(plan) if plan["work"] else _parts(plan))]


def _predicting(plan: Plan) -> list[str]:
    """Return a table of what updates and predictions cost; times are of one chip."""
    lines = [
        "| | TFLOP an update | predictions an update | MFLOP a prediction "
        "| chip time an hour of targets, roofline to estimate |",
        "|---|---|---|---|---|",
    ]
    estimate = plan["seconds"].get("estimate")
    for row, seconds in zip(plan["predicting"], (estimate, None), strict=False):
        each = row["flops"] / row["predictions"]
        low = _HOUR * each / plan["peak_flops"] if plan["peak_flops"] else None
        high = _HOUR * seconds * plan["devices"] / row["predictions"] if seconds else None
        lines.append(
            f"| {row['by']} | {row['flops'] / 1e12:,.3f} | {row['predictions']:,.0f} "
            f"| {each / 1e6:,.1f} | {_between(low, high, 1, ' s')} |"
        )
    return lines


def _reading(plan: Plan) -> list[str]:
    """Return a table of how much is read from the data set, by order, and the limits of storage."""
    least, estimate = plan["seconds"].get("least"), plan["seconds"].get("estimate")
    paces = [x for x in (estimate, least or plan["seconds"]["roofline"]) if x]
    head = ["data.order", "MB a step", "reads a step", "MB/s", "reads/s"]
    head += [f"from {x.name}" for x in storage.KNOWN]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for order, x in plan["reading"].items():
        cells = [order, f"{x['bytes'] / 1e6:,.1f}", f"{x['reads']:,.1f}"]
        for amount in (x["bytes"] / 1e6, x["reads"]):
            rates = [f"{amount / pace:,.0f}" for pace in paces]
            cells.append(" to ".join(dict.fromkeys(rates)) or "no estimate")
        for place in storage.KNOWN:
            taken = storage.seconds(place, x)
            share = f", {taken / paces[0]:,.1f} of the step" if paces else ""
            cells.append(f"{taken * 1e3:,.0f} ms{share}")
        lines.append(f"| {' | '.join(cells)} |")
    known = "; ".join(f"{x.name} gives {_limits(x)}" for x in storage.KNOWN)
    return [
        *lines,
        "",
        "The table says how much all hosts together read from records of "
        f"{storage.RECORD_SECONDS} s, from the pace of the estimate to that of the least time. The "
        f"limits are: {known}. If reading takes more than 1.0 of the step, chips wait. With "
        "data.mirror, each host reads the data set once, and then its own copy.",
    ]


def _limits(place: storage.Storage) -> str:
    limits = [f"{place.bytes / 1e6:,.0f} MB/s"] if place.bytes else []
    return " and ".join([*limits, f"{place.reads:,.0f} reads/s"])


def _verdict(plan: Plan) -> str:
    """Say whether the step fits, and how much is left or missing."""
    limit, wanted = plan["memory"]["limit"], plan["memory"]["wanted"]
    if limit is None:
        return f"The step takes {size(wanted)}; the amount of memory is not known."
    if "device" in plan["memory"]:
        return _gpu_verdict(plan, limit, wanted or 0)
    if not plan["memory"]["fits"]:
        more = f" by {size(wanted - limit)}" if wanted else ""
        return f"The compiler refuses {plan['clips']} clips per chip: over {size(limit)}{more}."
    free = size(limit - (wanted or 0))
    text = f"The compiler accepts {plan['clips']} clips per chip, with {free} free"
    refused = [x["clips"] for x in plan["attempts"] if not x["fits"]]
    return text + (f", and refuses {min(refused)}." if refused else ".")


def _gpu_verdict(plan: Plan, limit: int, wanted: int) -> str:
    """Say whether the step fits a GPU, whose compiler refuses nothing."""
    share = (
        f"the {size(limit)} that jax takes of a GPU's {size(plan['memory']['device'])} by default "
        f"({MEMORY_SHARE:.0%}; XLA_PYTHON_CLIENT_MEM_FRACTION sets another share)"
    )
    refused = [x["clips"] for x in plan["attempts"] if not x["fits"]]
    if not plan["memory"]["fits"]:
        return f"{plan['clips']} clips per GPU take {size(wanted)}, more than {share}."
    more = f"; {min(refused)} clips take more" if refused else ""
    return f"{plan['clips']} clips per GPU take {size(wanted)} of {share}{more}."


def _work(plan: Plan) -> list[str]:
    """Return a table of the kernels' work in each part on a GPU, the longest first."""
    work, seconds = plan["work"], plan["seconds"]
    lines = [
        "| part | kernels | GB | GFLOP | ms, at least | of these bound by memory |",
        "|---|---|---|---|---|---|",
    ]
    total = [0, 0, 0, 0.0, 0.0]
    for name, x in work.items():
        cells = [x["kernels"], x["bytes"], x["operations"], x["seconds"], x["memory_seconds"]]
        total = [sum(pair) for pair in zip(total, cells, strict=True)]
        lines.append(_work_row(name, cells))
    lines.append(_work_row("all", total))
    lines += [
        "",
        f"Starting the kernels takes another {seconds['launch'] * 1e3:.2f} ms "
        f"({LAUNCH_SECONDS * 1e6:.0f} us each), and exchanges take {seconds['exchange'] * 1e3:.2f} "
        "ms. The table is read from the program that XLA compiles without a GPU, and so without "
        "choosing between algorithms by timing them. A kernel's time is that of its operands and "
        "results, each counted once, at the memory's rate, or that of its products and "
        "convolutions at the peak rate, whichever is longer. A Pallas kernel's operations are "
        "those that it states.",
    ]
    if plan["uncounted_kernels"]:
        lines += ["", f"The operations of {plan['uncounted_kernels']} kernels are not known."]
    return lines


def _work_row(name: str, cells: list) -> str:
    kernels, moved, operations, seconds, memory_seconds = cells
    return (
        f"| {name} | {kernels} | {moved / 1e9:.2f} | {operations / 1e9:,.1f} | "
        f"{seconds * 1e3:.2f} | {memory_seconds * 1e3:.2f} |"
    )


def _parts(plan: Plan) -> list[str]:
    """Return a table of each part's estimated cycles and roofline, the largest first."""
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

    # How the estimates treat Pallas kernels.
    if plan["kernels"]:
        lines += [
            "",
            f"{plan['kernels'] / 1e6:.2f} M of these are Pallas kernels, counted at "
            f"{KERNEL_SHARE:.0%} of the peak: the compiler has no estimate for them.",
        ]
    if plan["uncounted_kernels"]:
        lines += [
            "",
            f"{plan['uncounted_kernels']} Pallas kernels without an estimate are left out.",
        ]
    return lines


_OF_EVALUATION = (
    "Hours are those of the published data sets. Features stay on disk until they are deleted; "
    "a task that shares another's pass over the audio has no extraction of its own. Probes stop "
    "early: their time is a range from the fewest to the most epochs that they may take. Memory is "
    "the most that training them holds at once. Not counted are bootstrap intervals (minutes for "
    "tasks of many tags) and reading audio. Times here follow from rates that were just measured; "
    "times elsewhere are rooflines, which nothing beats and nothing reaches, for extraction on all "
    "devices and probes on one; float32 on a GPU is counted at TF32's rate, half of bfloat16's."
)


def evaluation(plan: EvaluationPlan) -> str:
    """Return a table of what each task of an evaluation takes, and of all of them."""
    specs = list(plan["tasks"][0]["devices"])
    head = [
        "task", "audio, h", "extraction, TFLOP", "features, GB", "probes", "memory, GiB",
        "extraction here", "probes here",
    ]  # fmt: skip
    for spec in specs:
        head += [f"extraction on {spec}, at least", f"probes on {spec}, at least"]
    rows = [_evaluated_row(task, specs) for task in plan["tasks"]]
    parameters = f"{plan['parameters'] / 1e6:,.1f} M parameters, " if plan["parameters"] else ""
    lines = [
        f"# Evaluation of {plan['encoder']}",
        "",
        f"{parameters}{plan['layers']} layers of {plan['width']}, {plan['precision']}. This "
        f"machine ({plan['machine']}) extracts {plan['extraction_rate']:,.1f} seconds of audio per "
        "second.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        f"| {' | '.join(_total_row(plan['tasks'], specs))} |",
        "",
        _OF_EVALUATION,
    ]
    return "\n".join(lines) + "\n"


def _evaluated_row(task: TaskCost, specs: list[str]) -> list[str]:
    shared = f"with {task['shares']}" if task["shares"] else ""
    flops = "unknown" if task["flops"] is None else f"{task['flops'] / 1e12:,.0f}"
    cells = [
        task["task"],
        f"{task['hours']:,.1f}",
        shared or flops,
        f"{task['cache_bytes'] / 1e9:,.2f}" if task["cache_bytes"] else "shared",
        f"{task['probes']:,}",
        f"{task['memory_bytes'] / 2**30:,.1f}",
        *_times(task["here"], shared),
    ]
    for spec in specs:
        cells += _times(task["devices"][spec], shared)
    return cells


def _times(cost: DeviceCost, shared: str) -> list[str]:
    extraction = shared or "unknown"
    if cost["extraction"] is not None:
        extraction = duration(cost["extraction"])
    return [extraction, _span(cost["grid"])]


def _span(seconds: list[float]) -> str:
    least, most = map(duration, seconds)
    return least if least == most else f"{least} to {most}"


def _total_row(tasks: list[TaskCost], specs: list[str]) -> list[str]:
    """Return the row of all tasks; audio that is extracted once counts once."""
    own = [task for task in tasks if not task["shares"]]
    unknown = any(task["flops"] is None for task in own)
    cells = [
        "all",
        f"{sum(task['hours'] for task in own):,.1f}",
        "unknown" if unknown else f"{sum(task['flops'] or 0 for task in own) / 1e12:,.0f}",
        f"{sum(task['cache_bytes'] for task in tasks) / 1e9:,.2f}",
        f"{sum(task['probes'] for task in tasks):,}",
        f"{max(task['memory_bytes'] for task in tasks) / 2**30:,.1f}",
    ]
    for place in ["here", *specs]:
        costs = [task["here"] if place == "here" else task["devices"][place] for task in tasks]
        seconds = sum(cost["extraction"] or 0 for cost in costs)
        known = place == "here" or not unknown
        both = [sum(cost["grid"][i] for cost in costs) for i in (0, 1)]
        cells += [duration(seconds) if known else "unknown", _span(both)]
    return cells


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
