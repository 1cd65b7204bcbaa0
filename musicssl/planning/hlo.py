"""What a compiled program holds: collectives with their bytes, and estimated cycles by part.

Read from the optimised program's text, which is XLA's own and no stable interface: the tests hold
these readings to programs whose contents are known. Estimated cycles are the TPU compiler's cost
model, not timings. It has none for a Pallas kernel, a sort or a collective, and counts a loop's
body once, where this counts it as often as the loop is known to run.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {"pred": 8, "bf16": 16}  # of other types: the number in their name
HEADER = re.compile(r"(?:ENTRY )?%([\w.-]+) \(")
LINE = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
BODIES = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?(%[\w.-]+(?:, %[\w.-]+)*)")
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}


class Instruction(NamedTuple):
    """name, opcode, result: as the program spells them. scope: the source's names, joined by "/".

    cycles: the TPU compiler's estimate, None where it has none. line: all of it.
    """

    name: str
    opcode: str
    result: str
    scope: str
    cycles: int | None
    line: str


class Collective(NamedTuple):
    """An exchange between devices. shapes: of its results on one device, dimensions alone."""

    kind: str
    shapes: list[tuple[int, ...]]
    bytes: int
    scope: str
    times: int


def computations(program: str) -> dict[str, list[Instruction]]:
    """Instructions of each computation of a compiled program's text; the entry's is "ENTRY"."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in program.splitlines():
        if match := LINE.match(line):
            current.append(instruction(line, match))
        elif match := HEADER.match(line):
            current = found["ENTRY" if line.startswith("ENTRY") else match[1]] = []
    return found


def instruction(line: str, match: re.Match) -> Instruction:
    cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
    scope = re.search(r'op_name="([^"]*)"', line)
    return Instruction(
        match[1],
        match[3],
        match[2],
        scope[1] if scope else "",
        int(cycles[1]) if cycles else None,
        line,
    )


def executed(program: str, inside: bool = False) -> Iterator[tuple[Instruction, int]]:
    """Every instruction that runs and how often: loop bodies as often as the loop is known to.

    `inside` goes into fusions as well, which hold the collectives that a TPU fuses with others.
    """
    parts = computations(program)

    def walk(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for x in parts[name]:
            yield x, times
            if x.opcode in ("while", "call", "conditional", "async-start") or (
                inside and x.opcode == "fusion"
            ):
                names = BODIES.search(x.line)
                for body in names[1].split(", ") if names else ():
                    yield from walk(body[1:], times * trips(x, parts))

    return walk("ENTRY", 1)


def trips(loop: Instruction, parts: dict[str, list[Instruction]]) -> int:
    """How often a loop runs, as the compiler notes or by the one number in its condition."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%([\w.-]+)", loop.line)
    limits = [x.line for x in parts[condition[1]] if x.opcode == "constant"] if condition else []
    found = [int(n) for n in re.findall(r" constant\((\d+)\)", " ".join(limits))]
    return found[0] if len(found) == 1 else 1


def collectives(program: str) -> list[Collective]:
    """Each collective of the program once; of a split one its end counts, which has the result."""
    seen, found = set(), []
    for x, times in executed(program, inside=True):
        kind = x.opcode.removesuffix("-done")
        channel = re.search(r"channel_id=(\d+)", x.line)
        identity = channel[1] if channel else x.name
        if kind not in COLLECTIVES or identity in seen:
            continue
        seen.add(identity)
        found.append(Collective(kind, shapes(x.result), size(x.result), x.scope, times))
    return found


def shapes(result: str) -> list[tuple[int, ...]]:
    """Dimensions of a result, of every element of a tuple."""
    found = SHAPE.findall(re.sub(r"\{[^{}]*\}", "", result))
    return [tuple(int(n) for n in dims.split(",") if n) for _, dims in found]


def size(result: str) -> int:
    """Bytes of a result, its layout's padding left out."""
    total = 0
    for kind, dims in SHAPE.findall(re.sub(r"\{[^{}]*\}", "", result)):
        bits = BITS.get(kind) or int(re.search(r"\d+", kind)[0])
        for n in dims.split(","):
            bits *= int(n) if n else 1
        total += bits // 8
    return total


def cycles(program: str, part: Callable[[str], str]) -> dict[str, int]:
    """Estimated cycles by part(scope), largest first; {} from a compiler that estimates none."""
    total: dict[str, int] = {}
    for x, times in executed(program):
        if x.cycles:
            name = part(x.scope)
            total[name] = total.get(name, 0) + x.cycles * times
    return dict(sorted(total.items(), key=lambda item: -item[1]))


class Kernel(NamedTuple):
    """A Pallas kernel of a TPU. operations: as its author says, None where nothing is said."""

    scope: str
    operations: int | None


def kernels(program: str) -> list[Kernel]:
    """The Pallas kernels, which the compiler's estimates leave out, once a call."""
    return [
        Kernel(x.scope, said_operations(x.line))
        for x, times in executed(program)
        for _ in range(times)
        if x.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in x.line
    ]


def said_operations(line: str) -> int | None:
    said = re.search(r'"cost_estimate":\{"flops":"?(\d+)', line)
    return int(said[1]) if said else None
