"""How many bytes a compiled program moves between memory and chip, from its text, with trip counts.

Every instruction outside fusions reads its operands and writes its result; a fusion that only cuts a slice out of an
operand, or writes one into it, moves the slice. On a TPU arrays in on-chip memory (`S(1)` in their layout) are free.
An estimate: caches and what a kernel reads twice are not known here.
"""

import re
from collections.abc import Iterable

from looplm.compile.hlo import Computation, Instruction, Module, array_bytes, shape_of

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "async-update", "async-done", "copy-done", "opt-barrier",
}  # fmt: skip
ON_CHIP = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\(1\)[^}]*\}")
SLICES = ("dynamic-slice", "slice", "gather")
VIEWS = ("bitcast", "copy", "reshape", "transpose")
"""What a fusion computes only where a slice of it is read."""


def memory_traffic(module: Module) -> float:
    """Bytes a device moves in a step."""
    fused = {
        name
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion"
        for name in (instruction.attribute("calls"),)
    }
    total = 0.0
    for site in module.walk():
        hands_over = site.instruction.opcode == "custom-call" and "called_computations" in site.instruction.attributes
        if site.computation_name not in fused and site.instruction.opcode not in FREE and not hands_over:
            total += site.executions * _moved(site.instruction, site.computation, module)
    return total


def _moved(instruction: Instruction, computation: Computation, module: Module) -> float:
    operands = [shape_of(operand, computation) for operand in instruction.operands]
    match instruction.opcode:
        case "fusion":
            inside = module.computations[instruction.attribute("calls")]
            parameters = {int(i.arguments): i.name for i in inside.values() if i.opcode == "parameter"}
            read = sum(_read(parameters[n], shape, inside, module) for n, shape in enumerate(operands))
            return read + _written(instruction.shape, inside, module)
        case "dynamic-slice" | "slice" | "gather" | "async-start":
            return 2 * _bytes(instruction.shape) if instruction.opcode != "async-start" else 0.0
        case "dynamic-update-slice":
            return 2 * _bytes(operands[1])
        case _:
            return _bytes(instruction.shape) + sum(map(_bytes, operands))


def _read(parameter: str, shape: str, inside: Computation, module: Module) -> int:
    """Bytes that a fusion reads of an operand: of its slices, if it only slices it; nothing where it writes into it."""
    if ON_CHIP.search(shape):
        return 0
    slices = _sliced(parameter, inside, module)
    return array_bytes(shape) if slices is None else slices


def _sliced(name: str, inside: Computation, module: Module) -> int | None:
    """Bytes of the slices of a value inside a fusion; None where something needs all of it."""
    users = [user for user in inside.values() if name in user.operands]
    if not users:
        return None  # the result
    found = [_sliced_by(user, name, inside, module) for user in users]
    return None if None in found else sum(filter(None, found))


def _sliced_by(user: Instruction, name: str, inside: Computation, module: Module) -> int | None:
    if user.opcode in VIEWS:
        return _sliced(user.name, inside, module)
    if user.opcode == "fusion":
        nested = module.computations[user.attribute("calls")]
        if {instruction.opcode for instruction in nested.values()} <= {"parameter", *VIEWS}:
            return _sliced(user.name, inside, module)
        numbers = [str(n) for n, operand in enumerate(user.operands) if operand == name]
        found = [_sliced(i.name, nested, module) for i in nested.values() if _is_parameter(i, numbers)]
        return None if None in found else sum(filter(None, found))
    if user.operands[0] != name or user.opcode not in (*SLICES, "dynamic-update-slice"):
        return None
    return array_bytes(user.shape) if user.opcode in SLICES else 0


def _is_parameter(instruction: Instruction, numbers: Iterable[str]) -> bool:
    return instruction.opcode == "parameter" and instruction.arguments in numbers


def _written(shape: str, inside: Computation, module: Module) -> int:
    """Bytes that a fusion writes: of an array that it writes a slice into, the slice."""
    root = list(inside.values())[-1]
    roots = [inside[name.partition("#")[0]] for name in root.operands] if root.opcode == "tuple" else [root]
    updates = [found for found in (_update(one, inside, module) for one in roots) if found]
    whole = _bytes(shape) - sum(whole for whole, _ in updates)
    return max(0, whole) + sum(update for _, update in updates)


def _update(instruction: Instruction, inside: Computation, module: Module) -> tuple[int, int] | None:
    """Bytes of the array that a slice is written into, as far as it is in memory, and of the slice; None where nothing
    of the kind is done."""
    if instruction.opcode == "dynamic-update-slice":
        return _bytes(instruction.shape), array_bytes(shape_of(instruction.operands[1], inside))
    if instruction.opcode in VIEWS:
        found = _update(inside[instruction.operands[0].partition("#")[0]], inside, module)
        return found and (_bytes(instruction.shape), found[1])
    if instruction.opcode == "fusion":
        nested = module.computations[instruction.attribute("calls")]
        found = _update(list(nested.values())[-1], nested, module)
        return found and (_bytes(instruction.shape), found[1])
    return None


def _bytes(shape: str) -> int:
    """Of the arrays that are in memory."""
    return array_bytes(ON_CHIP.sub("", shape))
