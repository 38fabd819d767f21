"""Small slips of a programmer, found in a file by its syntax tree: what `tools/mutate.py` puts in, one at a time.

Left alone: what is said and not computed (docstrings, messages, annotations), invariants (`assert`), and f-strings,
whose places Python 3.11 does not know.
"""

import ast
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}  # fmt: skip
BOUNDS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Comparisons whose other bound is their negation."""
WRAPPERS = {
    "stop_gradient", "at_least_fp32", "reshard", "fold_in", "optimization_barrier", "abs", "sorted", "copy", "sign",
}  # fmt: skip
"""Calls that give about what their first argument is."""
METHODS = {"astype", "copy", "absolute", "strip"}
"""The same, of an object's own."""
OTHERS = dict(
    min="max", max="min", minimum="maximum", maximum="minimum", argmin="argmax", argmax="argmin", any="all", all="any",
    sum="mean", mean="sum", sqrt="square", rsqrt="sqrt", floor="ceil", ceil="floor", zeros="ones", ones="zeros",
    zeros_like="ones_like", ones_like="zeros_like", float32="bfloat16", exp="log", log="exp",
)  # fmt: skip
"""Names that are mistaken for each other."""
OPTIONAL = {"where", "dtype", "preferred_element_type", "keepdims", "axis", "key", "initial", "mode", "side"}
"""Keywords that are forgotten."""
CHOICES = {"where", "select"}
"""Calls whose second and third argument are alternatives."""
SYMMETRIC = {"min", "max", "minimum", "maximum", "logaddexp", "isinstance"}
"""Calls whose arguments have no order, or whose order nobody mistakes."""
BARE = (ast.Name, ast.Attribute, ast.Constant, ast.Call, ast.Slice, ast.Pass)
"""What stands without parentheses everywhere."""


class Slip(NamedTuple):
    """A piece of a source, and what stands there instead."""

    kind: str
    line: int
    """Where it begins, from 1."""
    lines: tuple[int, int]
    """First and last line of its statement, of an `if` or a loop only of the head: who runs it runs the slip."""
    start: int
    stop: int
    old: str
    new: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.stop :]

    def __str__(self) -> str:
        return f"{' '.join(self.old.split())}  ->  {self.new}"


def slips(source: str) -> list[Slip]:
    """All that can be made in a source, in its order."""
    starts = [0]
    for text in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(text.encode()))
    # Nodes count bytes.
    raw = source.encode()

    def place(line: int, byte: int) -> int:
        return len(raw[: starts[line - 1] + byte].decode())

    found = []
    for node, role, lines in _nodes(ast.parse(source), (1, 1)):
        start, stop = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        for kind, changed in _changes(node, role):
            new = ast.unparse(ast.fix_missing_locations(changed))
            new = new if isinstance(changed, BARE) else f"({new})"
            found.append(Slip(kind, node.lineno, lines, start, stop, source[start:stop], new))
    return sorted(found, key=lambda slip: (slip.start, slip.stop, slip.kind))


def drawn(candidates: Sequence[tuple[Any, Slip]], seed: int, count: int | None) -> list[tuple[Any, Slip]]:
    """So many of them, in a random order, the kinds in turn: few have a dropped stop_gradient, all have constants."""
    by_kind = defaultdict(list)
    for candidate in candidates:
        by_kind[candidate[1].kind].append(candidate)
    generator = random.Random(seed)
    for kind in sorted(by_kind):
        generator.shuffle(by_kind[kind])
    rounds = range(max(map(len, by_kind.values()), default=0))
    return [by_kind[kind][turn] for turn in rounds for kind in sorted(by_kind) if turn < len(by_kind[kind])][:count]


def _nodes(node: ast.AST, lines: tuple[int, int]) -> Iterator[tuple[Any, str, tuple[int, int]]]:
    """Everything that computes below a node: what it is to the node above, and the lines of its statement."""
    for role, value in ast.iter_fields(node):
        if role in ("annotation", "returns", "decorator_list", "pattern"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Assert | ast.Raise):
                continue
            within = lines
            if isinstance(child, ast.stmt):
                within = child.lineno, child.lineno if hasattr(child, "body") else child.end_lineno or child.lineno
            elif isinstance(node, ast.stmt) and hasattr(node, "body") and isinstance(child, ast.expr):
                within = child.lineno, child.end_lineno or child.lineno
            if isinstance(child, ast.stmt | ast.expr):
                yield child, role, within
            yield from _nodes(child, within)


def _changes(node: ast.AST, role: str) -> Iterator[tuple[str, ast.AST]]:
    """What a node may have been by mistake, by the kind of mistake."""
    if role in ("test", "ifs", "guard") and not _is_negated(node):
        yield "condition", ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.BinOp(left=left, op=ast.BitOr()):
            yield "merge dropped", left
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield "operator", _with(node, op=OPERATORS[type(op)]())
        case ast.Compare(ops=[op]) if type(op) in BOUNDS:
            yield "bound", _with(node, ops=[BOUNDS[type(op)]()])
        case ast.BoolOp(op=op):
            yield "and, or", _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "sign", operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield "constant", ast.Constant(value + 1 if isinstance(value, int) else value * 2 or 1.0)
        case ast.Name(id=name, ctx=ast.Load()) if name in OTHERS:
            yield "name", _with(node, id=OTHERS[name])
        case ast.Attribute(attr=name, value=of) if name in OTHERS and (role == "func" or _is_numpy(of)):
            yield "name", _with(node, attr=OTHERS[name])
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "statement dropped", ast.Pass()
        case ast.Call() | ast.Slice():
            yield from _calls(node) if isinstance(node, ast.Call) else _slices(node)


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in WRAPPERS and node.args:
        yield "call dropped", node.args[0]
    if name in METHODS and isinstance(node.func, ast.Attribute):
        yield "call dropped", node.func.value
    for keyword in node.keywords:
        if keyword.arg in OPTIONAL:
            yield "keyword dropped", _with(node, keywords=[other for other in node.keywords if other is not keyword])
    if name in CHOICES and len(node.args) == 3:
        condition, first, second = node.args
        yield "arguments swapped", _with(node, args=[condition, second, first])
    elif (
        name not in SYMMETRIC
        and len(node.args) > 1
        and all(isinstance(argument, ast.Name | ast.Attribute) for argument in node.args[:2])
    ):
        first, second, *others = node.args
        if ast.dump(first) != ast.dump(second):
            yield "arguments swapped", _with(node, args=[second, first, *others])
    if name == "range" and not isinstance(node.args[-1], ast.Constant):
        position = 0 if len(node.args) == 1 else 1
        arguments = [*node.args]
        arguments[position] = ast.BinOp(arguments[position], ast.Sub(), ast.Constant(1))
        yield "off by one", _with(node, args=arguments)


def _slices(node: ast.Slice) -> Iterator[tuple[str, ast.AST]]:
    """Of `a[lower:upper]` the first or the last is left out."""
    if node.lower is not None and not isinstance(node.lower, ast.Constant):
        yield "off by one", _with(node, lower=ast.BinOp(node.lower, ast.Add(), ast.Constant(1)))
    if node.upper is not None and not isinstance(node.upper, ast.Constant):
        yield "off by one", _with(node, upper=ast.BinOp(node.upper, ast.Sub(), ast.Constant(1)))


def _is_negated(test: ast.AST) -> bool:
    """Whether another slip negates it already."""
    return isinstance(test, ast.UnaryOp) or (isinstance(test, ast.Compare) and isinstance(test.ops[0], NEGATED))


def _is_numpy(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("np", "jnp")


def _with(node: ast.AST, **fields: Any) -> Any:
    changed = copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
