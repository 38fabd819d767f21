"""A traced program as a list of operations: calls are written out, loops and branches are programs of their own.

Where the platform decides, what accelerators do is taken."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from looplm.train.flops import bodies

CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "custom_lin",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Value:
    """An array of the program."""

    aval: Any


@dataclass(eq=False, slots=True)
class Operation:
    """An equation of the program."""

    name: str
    parameters: dict[str, Any]
    inputs: list[Value | None]
    """None stands for a number in the program's text."""
    outputs: list[Value]
    inside: "list[Level]"
    """Of a loop: its body. Of a condition: the branches. Of a `shard_map`: what one device does."""
    scopes: str
    consts: int = 0
    """Of a loop: the first so many inputs are the same in every turn."""
    carry: int = 0
    """Of a loop: so many follow, and every turn gives new ones; they are its first results."""

    @property
    def body(self) -> "Level":
        """What a loop does in a turn."""
        return self.inside[-1]

    @property
    def carried_inside(self) -> "list[Value]":
        """What a turn gets from the one before."""
        xs = len(self.inputs) - self.consts - self.carry
        last = len(self.body.inputs) - xs
        return self.body.inputs[last - self.carry : last]


@dataclass(eq=False, slots=True)
class Level:
    """Operations that run one after the other."""

    operations: list[Operation] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value | None] = field(default_factory=list)
    steps: Any = None
    """What `lifetimes` found."""


def flatten(jaxpr: Jaxpr, once: str | None = None) -> Level:
    """Write out a program.

    once: loops in this named scope turn once, and are written out too.
    """
    level = Level(inputs=[Value(variable.aval) for variable in jaxpr.invars])
    known: dict[Any, Value | None] = dict(zip(jaxpr.invars, level.inputs, strict=True))
    known |= {variable: Value(variable.aval) for variable in jaxpr.constvars}
    level.outputs = _write_out(jaxpr, known, level.operations, once, "")
    return level


def _write_out(
    jaxpr: Jaxpr, known: dict[Any, Value | None], into: list[Operation], once: str | None, around: str
) -> list[Value | None]:
    """Append what a program does to `into`; returns its results."""

    def value(atom: Any) -> Value | None:
        return None if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        scopes = f"{around}/{equation.source_info.name_stack}"
        name, inputs = equation.primitive.name, [value(atom) for atom in equation.invars]
        inner = [body.jaxpr if isinstance(body, ClosedJaxpr) else body for body in bodies(equation)]
        for_platform = name == "cond" and equation.params.get("branches_platforms")
        if (name in CALLS and inner) or for_platform or (name == "scan" and once is not None and scopes.endswith(once)):
            body = inner[-1] if for_platform else inner[0]
            inputs = inputs[1:] if for_platform else inputs
            into_body: dict[Any, Value | None] = dict(
                zip(body.invars, _of_body(equation, body, inputs, into), strict=True)
            )
            into_body |= {variable: Value(variable.aval) for variable in body.constvars}
            results = _write_out(body, into_body, into, once, scopes)
            known.update(zip(equation.outvars, _of_loop(equation, body, results, into), strict=True))
            continue
        outputs = [Value(variable.aval) for variable in equation.outvars]
        kept = name in ("scan", "while", "cond", "shard_map")
        levels = [flatten(body, once) for body in inner] if kept else []
        into.append(Operation(name, equation.params, inputs, outputs, levels, scopes, *_loop_parts(equation, inner)))
        known.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _of_body(
    equation: JaxprEqn, body: Jaxpr, inputs: Sequence[Value | None], into: list[Operation]
) -> Iterable[Value | None]:
    """What a body gets: of a loop that turns once, its slices are views."""
    if equation.primitive.name != "scan":
        return inputs
    first = sum(_loop_parts(equation, [body]))
    return [*inputs[:first], *_views(inputs[first:], body.invars[first:], into)]


def _of_loop(
    equation: JaxprEqn, body: Jaxpr, results: Sequence[Value | None], into: list[Operation]
) -> Iterable[Value | None]:
    if equation.primitive.name != "scan":
        return results
    _, first = _loop_parts(equation, [body])
    return [*results[:first], *_views(results[first:], equation.outvars[first:], into)]


def _loop_parts(equation: JaxprEqn, inner: Sequence[Jaxpr]) -> tuple[int, int]:
    """(inputs of a loop that are the same in every turn, those that it carries). By shapes: what a scan cuts into
    slices, or stacks, has one dim more than its body sees, and JAX 0.10 and 0.12 say it in ways of their own."""
    if equation.primitive.name == "while":
        consts = equation.params["cond_nconsts"] + equation.params["body_nconsts"]
        return consts, len(equation.invars) - consts
    if equation.primitive.name != "scan":
        return 0, 0
    (body,) = inner
    num_xs = _num_longer(equation.invars, body.invars)
    num_ys = _num_longer(equation.outvars, body.outvars)
    carry = len(equation.outvars) - num_ys
    return len(equation.invars) - num_xs - carry, carry


def _num_longer(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(len(x.aval.shape) > len(y.aval.shape) for x, y in zip(outside, inside, strict=True))


def _views(values: Sequence[Value | None], like: Sequence[Any], into: list[Operation]) -> list[Value | None]:
    views = [Value(variable.aval) for variable in like]
    into += [Operation("reshape", {}, [value], [view], [], "") for value, view in zip(values, views, strict=True)]
    return list(views)
