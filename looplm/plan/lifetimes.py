"""Which operations of a traced program make an array, what each of them reads, and what is read there for the last
time: the same on every mesh."""

from collections import Counter
from dataclasses import dataclass

from looplm.plan.flat import Level, Operation, Value
from looplm.plan.forwarded import VIEWS, forwarded
from looplm.plan.layout import cuts_batch, moves

CHEAP = {
    "empty", "empty2", "broadcast_in_dim", "iota", "convert_element_type", "pad", "neg", "select_n", "eq", "ne", "lt",
    "le", "gt", "ge", "and", "or", "xor", "not", "concatenate",
}  # fmt: skip
"""Elementwise, and computed again for every reader."""
FUSED = CHEAP | {
    "add", "sub", "mul", "div", "rem", "sign", "abs", "max", "min", "exp", "exp2", "log", "log1p", "expm1", "tanh",
    "logistic", "sin", "cos", "erf", "erfc", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "square", "floor", "ceil",
    "round", "is_finite", "add_any", "clamp", "shift_left", "shift_right_logical", "shift_right_arithmetic",
    "nextafter", "atan2",
}  # fmt: skip
"""Elementwise."""
SLICES = {"slice", "dynamic_slice", "gather", "split"}
"""Read no more than they give."""
UPDATES = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2, "scatter_add": 2, "scatter_mul": 2}
"""Write into their first operand, in its place; and which operand they write."""
ADDS = ("add", "add_any")


@dataclass(slots=True)
class Step:
    """An operation that makes arrays."""

    operation: Operation
    reads: frozenset[Value]
    """The arrays that it reads, through what is fused into it."""
    makes: list[Value]
    dies: list[Value]
    """What nobody reads later."""
    in_place: bool
    """Whether its result may take the place of what dies."""
    carried: frozenset[Value]
    """What a loop begins with: it takes their places."""
    made_inside: list[Value]
    """What of its results has a place inside already."""


def lifetimes(level: Level) -> list[Step]:
    """Return the steps of a level; worked out once."""
    if level.steps is None:
        level.steps = _lifetimes(level)
    return level.steps


def _lifetimes(level: Level) -> list[Step]:
    needed, steps = _needed(level), []
    arrays: dict[Value, frozenset[Value]] = {value: frozenset((value,)) for value in level.inputs}
    for operation in _sums_first(level.operations, level.outputs):
        reads = frozenset(array for value in operation.inputs if value for array in arrays.get(value, ()))
        handed_on, fused = forwarded(operation), operation.name in FUSED or operation.name == "gather"
        makes = [
            value
            for value in operation.outputs
            if value not in handed_on and not _is_view(operation) and (not fused or value in needed)
        ]
        for value in operation.outputs:
            of_another = arrays.get(handed_on[value], frozenset()) if value in handed_on else reads
            arrays[value] = frozenset((value,)) if value in makes else of_another
        if makes or operation.inside:
            in_place = operation.name in FUSED or operation.name in UPDATES
            begins, made_inside = _loop(operation)
            carried = frozenset(array for value in begins if value for array in arrays.get(value, ()))
            inside = [value for value in made_inside if value in makes]
            steps.append(Step(operation, reads, makes, [], in_place, carried, inside))
    kept = {array for value in level.outputs if value for array in arrays.get(value, ())}
    for step in reversed(steps):
        step.dies = [value for value in step.reads | set(step.makes) if value not in kept]
        kept.update(step.dies)
    return steps


def _is_view(operation: Operation) -> bool:
    return operation.name in VIEWS and (operation.name != "reshard" or not moves(operation))


def _loop(operation: Operation) -> tuple[list[Value | None], list[Value]]:
    """(what a loop carries at its beginning, results that have a place inside)."""
    if operation.name in ("scan", "while"):
        return operation.inputs[operation.consts :][: operation.carry], operation.outputs[: operation.carry]
    return [], operation.outputs if operation.inside else []


def _sums_first(operations: list[Operation], outputs: list[Value | None]) -> list[Operation]:
    """Put sums of two arrays that nobody else reads where both are there: a gradient is added to that of the other
    micro-batches before the next one is computed."""
    uses = Counter(value for operation in operations for value in operation.inputs)
    uses.update(outputs)
    made = {value: float(i) for i, operation in enumerate(operations) for value in operation.outputs}
    places = []
    for i, operation in enumerate(operations):
        place = float(i)
        if operation.name in ADDS and all(value is not None and uses[value] == 1 for value in operation.inputs):
            place = max(made.get(value, -1.0) for value in operation.inputs if value) + 0.5
            made[operation.outputs[0]] = place
        places.append(place)
    return [operations[i] for i in sorted(range(len(places)), key=places.__getitem__)]


def _needed(level: Level) -> set[Value]:
    """Elementwise results that are held all the same: what products, kernels and loops read, the results of the level,
    and sums of several arrays that are read more than once."""
    needed = {value for value in level.outputs if value is not None}
    uses: Counter[Value] = Counter()
    for operation in reversed(level.operations):
        inputs = {value for value in operation.inputs if value is not None}
        out = operation.outputs[0] if operation.outputs else None
        if _is_view(operation):
            for value in inputs:
                uses[value] += uses[out] if out else 0
            needed.update(inputs if out in needed else ())
            continue
        uses.update(inputs)
        if operation.name in FUSED and out is not None:
            whole = sum(value.aval.size == out.aval.size for value in inputs)
            if uses[out] > 1 and whole > 1 and operation.name not in CHEAP:
                needed.add(out)
        elif not (operation.name.startswith(("reduce_", "arg")) or operation.name in SLICES or cuts_batch(operation)):
            needed.update(inputs)
    return needed
