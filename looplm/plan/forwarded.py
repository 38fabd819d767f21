"""Results that are an operand handed on, which a compiler does not make.

A branch returns what it was given, beside one that returns zeros; a loop returns the same matrix in every turn, and
would stack it.
"""

from looplm.plan.flat import Level, Operation, Value

VIEWS = {
    "reshape", "squeeze", "expand_dims", "transpose", "copy", "copy_p", "optimization_barrier", "name", "pcast",
    "pvary", "stop_gradient", "bitcast_convert_type", "rev", "sharding_constraint", "layout_constraint", "reshard",
}  # fmt: skip
"""Make no array of their own; of `reshard` see `layout`."""
FILLS = {"broadcast_in_dim", "convert_element_type", "empty", "empty2"}


def forwarded(operation: Operation) -> dict[Value, Value]:
    """Return the operand behind every result that is one handed on."""
    match operation.name:
        case "cond":
            inputs, levels, first = operation.inputs[1:], operation.inside, 0
        case "scan":
            inputs, levels, first = operation.inputs[: operation.consts], operation.inside, operation.carry
        case _:
            return {}
    found = {}
    for number in range(first, len(operation.outputs)):
        origins = {origin for level in levels if not _is_filled(level, number) for origin in (_origin(level, number),)}
        if len(origins) == 1 and (place := origins.pop()) is not None and place < len(inputs):
            operand = inputs[place]
            if operand is not None:
                found[operation.outputs[number]] = operand
    return found


def _origin(level: Level, number: int) -> int | None:
    """The place among a level's inputs of what it returns there; None where it is made inside."""
    value = level.outputs[number]
    makers = {out: operation for operation in level.operations for out in operation.outputs}
    while value is not None and value in makers:
        maker = makers[value]
        if maker.name in VIEWS:
            value = maker.inputs[0]
        elif maker.inside:
            value = forwarded(maker).get(value)
        else:
            return None
    return level.inputs.index(value) if value in level.inputs else None


def _is_filled(level: Level, number: int) -> bool:
    """Whether a level returns one number everywhere there, or what nobody reads."""
    value = level.outputs[number]
    makers = {out: operation for operation in level.operations for out in operation.outputs}
    while value is not None and value in makers and makers[value].name in FILLS | VIEWS:
        value = next(iter(makers[value].inputs), None)
    return value is None
