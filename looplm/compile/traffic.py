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
            read = sum(_read(parameters[n], shape, inside) for n, shape in enumerate(operands))
            root = list(inside.values())[-1]
            return read + _written(root, instruction.shape, inside)
        case "dynamic-slice" | "slice" | "gather" | "async-start":
            return 2 * _bytes(instruction.shape) if instruction.opcode != "async-start" else 0.0
        case "dynamic-update-slice":
            return 2 * _bytes(operands[1])
        case _:
            return _bytes(instruction.shape) + sum(map(_bytes, operands))


def _read(parameter: str, shape: str, inside: Computation) -> int:
    """Bytes that a fusion reads of an operand: of its slices, if it only slices it; nothing where it writes into it."""
    users = [i for i in inside.values() if parameter in i.operands]
    if ON_CHIP.search(shape):
        return 0
    if users and all(_slices(user, parameter) for user in users):
        return sum(array_bytes(user.shape) for user in users if user.opcode in SLICES)
    return array_bytes(shape)


def _slices(user: Instruction, parameter: str) -> bool:
    return user.opcode in (*SLICES, "dynamic-update-slice") and user.operands[0] == parameter


def _written(root: Instruction, shape: str, inside: Computation) -> int:
    roots: Iterable[Instruction] = (
        [inside[name.partition("#")[0]] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    updates = [i for i in roots if i.opcode == "dynamic-update-slice"]
    whole = _bytes(shape) - sum(_bytes(i.shape) for i in updates)
    return max(0, whole) + sum(array_bytes(shape_of(i.operands[1], inside)) for i in updates)


def _bytes(shape: str) -> int:
    """Of the arrays that are in memory."""
    return array_bytes(ON_CHIP.sub("", shape))
