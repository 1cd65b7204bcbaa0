"""What a compiled program holds: collectives with their bytes, and estimated cycles by part.

All of it is read from the optimised program's text, which is XLA's own and no stable interface, so
the tests hold these readings to programs whose contents are known. Estimated cycles come from the
TPU compiler's cost model and are no timings. The model has no estimate for a Pallas kernel, a sort
or a collective. It counts a loop's body once, where this counts it as often as the loop is known to
run.
"""

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
_BITS = {"pred": 8, "bf16": 16}  # of other types: the number in their name
_HEADER = re.compile(r"(?:ENTRY )?%([\w.-]+) \(")
_LINE = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BODIES = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?(%[\w.-]+(?:, %[\w.-]+)*)")


class _Instruction(NamedTuple):
    """A line of a program.

    name, opcode, result: as the program spells them. scope: the source's names, joined by "/".
    cycles: the TPU compiler's estimate, None where it has none. line: all of the text.
    """

    name: str
    opcode: str
    result: str
    scope: str
    cycles: int | None
    line: str


class Collective(NamedTuple):
    """An exchange between devices.

    shapes: the dimensions of its results on one device. bytes: of all of them. times: how often a
    run of the program makes it.
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
        scope=scope[1] if scope else "",
        cycles=int(cycles[1]) if cycles else None,
        line=line,
    )


def _executed(program: str, inside: bool = False) -> Iterator[tuple[_Instruction, int]]:
    """Yield every instruction that runs, and how often it does.

    The body of a loop counts as often as the loop is known to run.

    Args:
      inside: go into fusions as well, which hold the collectives that a TPU fuses with others.
    """
    computations = _read_computations(program)
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
    """Return how often a loop runs: as the compiler notes, or as its condition has it.

    A condition tells where it holds one number; otherwise the loop counts once.
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

    Where it is split into a start and an end, the end counts, which has the result.
    """
    seen: set[str] = set()
    exchanges = []
    for x, times in _executed(program, inside=True):
        kind = x.opcode.removesuffix("-done")
        channel = re.search(r"channel_id=(\d+)", x.line)
        identity = channel[1] if channel else x.name
        if kind not in _COLLECTIVES or identity in seen:
            continue
        seen.add(identity)
        exchanges.append(Collective(kind, _shapes(x.result), size(x.result), x.scope, times))
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
    """Return estimated cycles by part(scope), largest first; {} where the compiler has none."""
    total: dict[str, int] = {}
    for x, times in _executed(program):
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
    for x, times in _executed(program):
        if x.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in x.line:
            calls += [Kernel(x.scope, _stated_operations(x.line))] * times
    return calls


def _stated_operations(line: str) -> int | None:
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', line)
    return int(stated[1]) if stated else None
