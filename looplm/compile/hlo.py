"""Reads the text of a compiled XLA program: computations, instructions, loops and how often they turn.

Only what the accounting of collectives needs; see the XLA documentation of HLO for the language.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+[a-z0-9]*|c64|c128)\[([\d,]*)\]")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
NAME = re.compile(r"%([\w.\-]+(?:#\d+)*)")
CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    name: str
    shape: str
    """Of the result, as text; a tuple is in parentheses."""
    opcode: str
    arguments: str
    """What is between the parentheses of the opcode."""
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names; `x#1` is element 1 of the tuple x."""
        return NAME.findall(self.arguments)

    def attribute(self, name: str) -> str:
        """A computation that the instruction names, e.g. `body`."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        assert match, f"{self.opcode} without {name}"
        return match[1]


Computation = dict[str, Instruction]
"""By name, in order; the root is the last one."""


class Site(NamedTuple):
    """An instruction in the place from which it is reached."""

    instruction: Instruction
    computation: Computation
    computation_name: str
    loop_depth: int
    """Loops around it."""
    executions: float
    """How often a device runs it in one execution of the program."""


class Module:
    """A compiled program.

    Args:
        text: as printed by XLA (`compiled.as_text()`).
        unknown_trips: how often a loop turns whose number of turns depends on the program's arguments.
        never: in the origin (`op_name`) of loops that do not turn as a rule.
    """

    def __init__(self, text: str, unknown_trips: float = 1.0, never: str | None = None):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.unknown_trips = unknown_trips
        self.never = never
        computation: Computation = {}
        for line in text.splitlines():
            if line.startswith((" ", "\t")):
                if match := INSTRUCTION.match(line):
                    instruction = _instruction(match[2], line[match.end() :])
                    computation[match[2]] = instruction
            elif match := HEADER.match(line):
                computation = self.computations[match[2]] = {}
                self.entry = match[2] if match[1] else self.entry

    def walk(self) -> Iterator[Site]:
        """Every instruction that runs, from the entry down; the reductions inside collectives and the like excepted."""
        yield from self._walk(self.entry, 0, 1.0)

    def _walk(self, name: str, depth: int, executions: float) -> Iterator[Site]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield Site(instruction, computation, name, depth, executions)
            match instruction.opcode:
                case "while":
                    trips = self.turns(instruction, computation)
                    yield from self._walk(instruction.attribute("body"), depth + 1, executions * trips)
                # A custom call names what it runs where it hands a collective to another core (TPU7x: SparseCore).
                case "fusion" | "call" | "conditional" | "async-start" | "custom-call":
                    branches = BRANCHES.search(instruction.attributes)
                    called = NAME.findall(branches[1]) if branches else CALLED.findall(instruction.attributes)
                    for callee in called:
                        yield from self._walk(callee, depth, executions)

    def turns(self, loop: Instruction, computation: Computation) -> float:
        """What a loop counts as."""
        known = self.trip_count(loop, computation)
        if known is not None:
            return known
        origin = re.search(r'op_name="([^"]*)"', loop.attributes)
        return 0.0 if self.never and origin and self.never in origin[1].split("/") else self.unknown_trips

    def trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        """How often a while loop turns; None where that depends on data.

        XLA for CPU and GPU notes it. Where it is not noted (TPU) the condition is read: a counter from 0 in steps of 1,
        as `scan` and `fori_loop` write it, against a constant that may come in from outside the loop.
        """
        if match := TRIP_COUNT.search(loop.attributes):
            return int(match[1])
        condition = self.computations[loop.attribute("condition")]
        root = list(condition.values())[-1]
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        start, end = (self._constant(operand, condition, computation, loop) for operand in root.operands)
        return None if start is None or end is None else max(0, end - start)

    def _constant(self, operand: str, condition: Computation, outside: Computation, loop: Instruction) -> int | None:
        """What a value of a loop's condition is before the first turn, if that is written in the program."""
        name, _, index = operand.partition("#")
        value = condition[name]
        if value.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", value.attributes)[1]  # type: ignore[index]
        if index:
            start = outside.get(loop.operands[0])
            if start is None or start.opcode != "tuple":
                return None
            value = outside[start.operands[int(index)].partition("#")[0]]
            while value.opcode in ("copy", "bitcast"):
                value = outside[value.operands[0].partition("#")[0]]
        return int(value.arguments) if value.opcode == "constant" else None


def shape_of(operand: str, computation: Computation) -> str:
    name, *indices = operand.split("#")
    shape = computation[name].shape
    for index in indices:
        shape = elements(shape)[int(index)]
    return shape


def elements(shape: str) -> list[str]:
    """The shapes in a tuple."""
    found, depth, start = [], 0, 1
    for match in re.compile(r"[(){}\[\]]|, |\)$").finditer(shape):
        token = match[0]
        depth += token in "([{"
        depth -= token in ")]}"
        if (token == ", " and depth == 1) or depth == 0:
            found.append(shape[start : match.start()])
            start = match.end()
    return found


def array_bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple together."""
    return sum(_size(dims) * _itemsize(dtype) for dtype, dims in ARRAY.findall(shape))


def dtypes(shape: str) -> set[str]:
    return {dtype for dtype, _ in ARRAY.findall(shape)}


def _size(dims: str) -> int:
    size = 1
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size


def _itemsize(dtype: str) -> int:
    """Bytes a number takes; types of 4 bits and less count as one byte."""
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.match(r"[suf](\d+)", dtype)
    assert bits, dtype
    return max(1, int(bits[1]) // 8)


def _instruction(name: str, text: str) -> Instruction:
    """From `f32[2]{0} add(%a, %b), metadata=...`."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    return Instruction(name, shape, rest[:opening], rest[opening + 1 : closing - 1], rest[closing:])


def _closing(text: str, opening: int) -> int:
    """The position after the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"no closing parenthesis in {text[:80]}")
