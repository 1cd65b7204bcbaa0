"""Reads a compiled program: collectives, a TPU's estimated cycles, a GPU's kernels.

Everything is read from the text of the optimised program. That is XLA's own format and not a stable
interface, so the tests check these readings against programs with known contents.

TPU: estimated cycles come from the compiler's cost model and are not timings. The model has no
estimate for a Pallas kernel, a sort or a collective. It counts a loop's body once, whereas this
module counts it as often as the loop is known to run.

GPU: there is no cost model to read, so the bytes and operations of each kernel are counted here.
The same counting applies to a CPU's program.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SENT = "sum between slices"  # the kind of exchange that TPUs make over the network
_BITS = {"pred": 8, "bf16": 16}  # of other types: the number in their name
_HEADER = re.compile(r"(?:ENTRY )?%([\w.-]+) \(")
_LINE = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BODIES = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?(%[\w.-]+(?:, %[\w.-]+)*)")
# Instructions that start no kernel, although computations that they call may have some.
_NO_KERNEL = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id", "opt-barrier"),
}
_SLICES = {"slice", "dynamic-slice", "gather"}  # read no more than they return
_TRITON = "__gpu$xla.gpu.triton"  # the target of a call of a Pallas kernel
# Which of (operands..., result) are the output and the kernel of cuDNN's convolutions.
_CONVOLUTIONS = {
    "__cudnn$convForward": (-1, 1),
    "__cudnn$convBackwardInput": (0, 1),
    "__cudnn$convBackwardFilter": (1, -1),
}


class _Instruction(NamedTuple):
    """A line of a program.

    name, opcode, result: as the program spells them. operands: their names. scope: the source's
    names, joined by "/". cycles: the TPU compiler's estimate, None if it has none. line: the whole
    text.
    """

    name: str
    opcode: str
    result: str
    operands: list[str]
    scope: str
    cycles: int | None
    line: str


class Collective(NamedTuple):
    """An exchange between devices.

    shapes: the dimensions of its results on one device. bytes: of all results. times: how often a
    run of the program performs it.
    """

    kind: str
    shapes: list[tuple[int, ...]]
    bytes: int
    scope: str
    times: int


def _read_computations(program: str) -> dict[str, list[_Instruction]]:
    """Read the instructions of each computation of a program's text, the entry's as "ENTRY"."""
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    for line in program.splitlines():
        if match := _LINE.match(line):
            current.append(_read_instruction(line, match))
        elif match := _HEADER.match(line):
            current = []
            computations["ENTRY" if line.startswith("ENTRY") else match[1]] = current
    return computations


def _read_instruction(line: str, match: re.Match) -> _Instruction:
    """Read an instruction from its line and the match of _LINE in it."""
    cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
    scope = re.search(r'op_name="([^"]*)"', line)
    return _Instruction(
        name=match[1],
        opcode=match[3],
        result=match[2],
        operands=re.findall(r"%([\w.-]+)", line[match.end() : line.find(")", match.end())]),
        scope=scope[1] if scope else "",
        cycles=int(cycles[1]) if cycles else None,
        line=line,
    )


def _executed(
    computations: dict[str, list[_Instruction]], inside: bool = False
) -> Iterator[tuple[_Instruction, int]]:
    """Yield every instruction that runs, and how often it does.

    The body of a loop counts as often as the loop is known to run.

    Args:
      inside: also enter fusions, which hold the collectives that a TPU fuses with others.
    """
    entered = {"while", "call", "conditional", "async-start"} | ({"fusion"} if inside else set())

    def walk(name: str, times: int) -> Iterator[tuple[_Instruction, int]]:
        for x in computations[name]:
            yield x, times
            bodies = _BODIES.search(x.line) if x.opcode in entered else None
            if bodies:
                for body in bodies[1].split(", "):
                    yield from walk(body[1:], times * _trips(x, computations))

    return walk("ENTRY", 1)


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """Return how often a loop runs: by the compiler's note, or by the loop's condition.

    The condition is used if it contains exactly one number; otherwise the loop counts once.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%([\w.-]+)", loop.line)
    if not condition:
        return 1
    constants = [x.line for x in computations[condition[1]] if x.opcode == "constant"]
    limits = re.findall(r" constant\((\d+)\)", " ".join(constants))
    return int(limits[0]) if len(limits) == 1 else 1


def collectives(program: str) -> list[Collective]:
    """Return each collective of a program once.

    If it is split into a start and an end, the end counts, since it has the result. Between slices,
    TPUs pass arrays over the network: the compiler writes a sum over all slices as a reduce-scatter
    inside each slice, a SENT of every chip's part to the other slices, which adds them up, and an
    all-gather inside each slice.
    """
    seen: set[tuple[str, str]] = set()  # the parts of one sum over slices may share a channel
    exchanges = []
    for x, times in _executed(_read_computations(program), inside=True):
        between_slices = x.opcode == "send" and "_xla_megascale_target" in x.line
        kind = SENT if between_slices else x.opcode.removesuffix("-done")
        channel = re.search(r"channel_id=(\d+)", x.line)
        identity = kind, channel[1] if channel else x.name
        if kind not in (*_COLLECTIVES, SENT) or identity in seen:
            continue
        seen.add(identity)
        # What is sent stands before a number and a token.
        result = re.sub(r", u32\[\], token\[\]\)$", ")", x.result)
        exchanges.append(Collective(kind, _shapes(result), size(result), x.scope, times))
    return exchanges


def _arrays(result: str) -> list[tuple[str, list[int]]]:
    """Return the type and the dimensions of a result, or of every element of a tuple."""
    arrays = []
    for kind, dimensions in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", result)):
        arrays.append((kind, [int(n) for n in dimensions.split(",") if n]))
    return arrays


def _shapes(result: str) -> list[tuple[int, ...]]:
    return [tuple(dimensions) for _, dimensions in _arrays(result)]


def size(result: str) -> int:
    """Return the bytes of a result, without any padding of its layout."""
    total = 0
    for kind, dimensions in _arrays(result):
        bits = _BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
        total += bits * math.prod(dimensions) // 8
    return total


def cycles(program: str, part: Callable[[str], str]) -> dict[str, int]:
    """Return estimated cycles by part(scope), largest first; {} if the compiler has none."""
    total: dict[str, int] = {}
    for x, times in _executed(_read_computations(program)):
        if x.cycles:
            name = part(x.scope)
            total[name] = total.get(name, 0) + x.cycles * times
    return dict(sorted(total.items(), key=lambda item: -item[1]))


class Kernel(NamedTuple):
    """A Pallas kernel of a TPU. operations: as its author states them, or None."""

    scope: str
    operations: int | None


def kernels(program: str) -> list[Kernel]:
    """Return the calls of Pallas kernels, which the compiler's estimates leave out."""
    calls = []
    for x, times in _executed(_read_computations(program)):
        if x.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in x.line:
            calls += [Kernel(x.scope, _stated_operations(x.line))] * times
    return calls


def _stated_operations(line: str) -> int | None:
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', line)
    return int(stated[1]) if stated else None


class Launch(NamedTuple):
    """A kernel that a GPU runs.

    bytes: everything that it reads and writes, counted once. operations: additions and
    multiplications of its products and convolutions, None if not known. times: how often a run of
    the program starts it.
    """

    scope: str
    bytes: int
    operations: int | None
    times: int


def launches(program: str) -> list[Launch]:
    """Return the kernels that a GPU's program starts, without its collectives.

    A call of a library counts as one kernel. If a fused kernel reads only slices of an operand, the
    slices count; otherwise the whole operand does. Repeated reads, which a cache may serve, do not
    count twice, and a library's scratch memory does not count at all. Norms, activations and other
    sums have no operations, as in `training.flops`. The operations of a Pallas kernel are those
    that its author states, as in `pallas_call(metadata={"operations": "640"})`.
    """
    computations = _read_computations(program)
    results = {x.name: x.result for body in computations.values() for x in body}
    kernels = []
    for x, times in _executed(computations):
        if x.opcode in _NO_KERNEL or x.opcode.endswith(("-start", "-done")):
            continue
        if x.opcode not in _COLLECTIVES:
            moved = _bytes_read(x, results, computations) + size(_without_scratch(x))
            count = _operations(x, results, computations)
            kernels.append(Launch(x.scope, moved, count, times))
    return kernels


def _bytes_read(
    x: _Instruction, results: dict[str, str], computations: dict[str, list[_Instruction]]
) -> int:
    """Return the bytes that a kernel reads of its operands.

    Args:
      results: of all instructions, by name.
    """
    whole = [size(results[name]) for name in x.operands]
    if _target(x) == _TRITON:  # whose blocks may be of one array several times
        return sum(size(results[name]) for name in set(x.operands))
    if x.opcode in _SLICES:
        return min(size(x.result), whole[0]) + sum(whole[1:])
    if x.opcode != "fusion":
        return sum(whole)
    body = computations[_body(x)]
    numbers = {y.name: re.search(r" parameter\((\d+)\)", y.line) for y in body}
    inside = {int(number[1]): name for name, number in numbers.items() if number}
    return sum(min(n, _bytes_used(inside[i], n, body)) for i, n in enumerate(whole))


def _bytes_used(name: str, whole: int, body: list[_Instruction]) -> int:
    """Return how much of an array the instructions of a fused kernel use: slices, or the whole."""
    used = 0
    for user in (x for x in body if name in x.operands):
        if user.opcode in _SLICES and name not in user.operands[1:]:
            used += size(user.result)
        elif user.opcode == "bitcast" and "ROOT" not in user.line:
            used += _bytes_used(user.name, whole, body)
        else:
            return whole
    return used


def _without_scratch(x: _Instruction) -> str:
    """Return the results of an instruction, without the scratch memory of NVIDIA's libraries."""
    if _target(x).startswith("__cu"):
        return re.sub(r", [su]8\[\d+\]\{0\}\)$", ")", x.result)
    return x.result


def _operations(
    x: _Instruction, results: dict[str, str], computations: dict[str, list[_Instruction]]
) -> int | None:
    """Return the operations of a kernel's products; None for a call that does not state them.

    Args:
      results: of all instructions, by name.
    """
    first = [_shapes(result)[:1] for result in (*(results[name] for name in x.operands), x.result)]
    arrays = list(itertools.chain(*first))
    target = _target(x)
    if x.opcode == "fusion":
        return sum(_operations(y, results, computations) or 0 for y in computations[_body(x)])
    if x.opcode == "dot" or target.startswith("__cublas$"):
        return _of_product(x.line, arrays[0], arrays[-1])
    if x.opcode == "convolution" or target in _CONVOLUTIONS:
        output, kernel = _CONVOLUTIONS.get(target, (-1, 1))
        return _of_convolution(x.line, arrays[output], arrays[kernel])
    if target.startswith("__cudnn$fmha"):
        return _of_attention(x.line, arrays[0], backward=target.endswith("Backward"))
    if target == _TRITON:
        stated = re.search(r'serialized_metadata = "(.*?)"', x.line)
        values = json.loads(stated[1].replace(r"\22", '"')) if stated else {}
        return int(values["operations"]) if "operations" in values else None
    return None if x.opcode == "custom-call" else 0


def _of_product(line: str, left: tuple[int, ...], result: tuple[int, ...]) -> int:
    """Return the operations of a matrix product."""
    (summed,) = re.findall(r'lhs_contracting_dim(?:ension)?s"?[:=] ?[\[{]([^\]}]*)', line)
    axes = [int(axis) for axis in re.findall(r"\d+", summed)]
    return 2 * math.prod(result) * math.prod(left[axis] for axis in axes)


def _of_convolution(line: str, output: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Return the operations of a convolution, or of either gradient, which takes as many."""
    (labels,) = re.findall(r"dim_labels=\w+_(\w+)->", line)
    return 2 * math.prod(output) * math.prod(kernel) // kernel[labels.index("o")]


def _of_attention(line: str, queries: tuple[int, ...], backward: bool) -> int:
    """Return the operations of cuDNN's attention: two products, five for the gradient."""
    (weights,) = re.findall(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)', line)
    shape = [int(n) for n in re.findall(r"\d+", weights)]
    return (5 if backward else 2) * 2 * math.prod(shape) * queries[-1]


def _body(fusion: _Instruction) -> str:
    """Return the name of the computation that a fusion calls."""
    return fusion.line.split(", calls=%")[1].split(",")[0].split(" ")[0]


def _target(x: _Instruction) -> str:
    """Return the target of a custom call; "" for any other instruction."""
    match = (
        re.search(r'custom_call_target="([^"]*)"', x.line) if x.opcode == "custom-call" else None
    )
    return match[1] if match else ""
