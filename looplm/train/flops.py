"""How many FLOPs a training step costs: its matrix products, counted in the traced program.

A multiplication and an addition count each; norms, softmax, rotary positions and other elementwise work do not. XLA's
own count is no use: it counts the body of a scan once (5-35 % of a looped model). Here a scan counts as often as it
turns, a function of one device (`shard_map`) once for each, and the marks of `ops/scopes.py` are heeded. So a part that
nobody here knows is counted like any other. What no result of the program needs is left out first, as XLA does: the
gradient of a frozen matrix, a gate that no objective reads.

- Hardware FLOPs are all that is done, also what a backward pass computes again, the optimizer, and what is masked.
- Model FLOPs are what has to be done, the numerator of MFU: nothing of that. Of attention they count the keys that a
  query sees on average in one document that fills the sequence; packed documents see less, a prefix more.

Both are affine in the number of loops, so one count serves every depth. Where sequences have a depth of their own, all
run to the deepest; what is counted is the mean.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from looplm.ops.rounds import LATER_ROUNDS
from looplm.ops.scopes import BACKWARD, DETACHED, DONE, NEEDED, NEEDED_BACK, OPTIMIZER, RECOMPUTED, TEACHER, WINDOW


class Product(NamedTuple):
    """A matrix product of a traced program."""

    flops: float
    """All times together that the program's text says."""
    scopes: str
    """The named scopes that it is in, from the outermost."""

    def factor(self, mark: str) -> float:
        """Multiply the numbers of all marks of a kind around it."""
        return math.prod(float(number) for number in re.findall(rf"\b{mark}_([\d.e+-]+)", self.scopes))

    @property
    def hardware(self) -> float:
        """What is done."""
        return 0.0 if LATER_ROUNDS in self.scopes else self.flops * self.factor(DONE)

    @property
    def model(self) -> float:
        """What has to be done."""
        if RECOMPUTED in self.scopes or OPTIMIZER in self.scopes:
            return 0.0
        back = self.factor(NEEDED_BACK) if BACKWARD in self.scopes else 1.0
        return self.hardware * self.factor(NEEDED) * back


class Flops(NamedTuple):
    """FLOPs of all devices together."""

    model: float
    hardware: float

    @classmethod
    def of(cls, found: list[Product]) -> "Flops":
        """Add up products."""
        return cls(sum(product.model for product in found), sum(product.hardware for product in found))


class StepFlops(NamedTuple):
    """FLOPs of a training step, by how they grow with its depth."""

    once: Flops
    """At any depth."""
    detached: Flops
    """In a loop before the gradient's window."""
    window: Flops
    """In all loops of the window."""

    def at(self, detached_loops: float, share_of_window: float = 1.0) -> Flops:
        """Return what a step costs at one depth, or at the mean of several."""
        return Flops(*(a + detached_loops * b + share_of_window * c for a, b, c in zip(*self, strict=True)))


def step_flops(program: ClosedJaxpr) -> StepFlops:
    """Count the FLOPs of a traced step."""
    read, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    found = products(read)
    # Loops of a teacher are not the student's.
    own = [product for product in found if TEACHER not in product.scopes]
    detached = [product for product in own if DETACHED in product.scopes]
    window = [product for product in own if WINDOW in product.scopes and DETACHED not in product.scopes]
    once = [product for product in own if WINDOW not in product.scopes and DETACHED not in product.scopes]
    once += [product for product in found if TEACHER in product.scopes]
    return StepFlops(Flops.of(once), Flops.of(detached), Flops.of(window))


def products(jaxpr: Jaxpr, times: float = 1.0, around: str = "") -> list[Product]:
    """Find the matrix products of a program.

    Of the branches of a condition the one that costs most is taken; where the platform decides, that of accelerators. A
    loop whose turns depend on data counts once, unless it is marked.
    """
    found = []
    for equation in jaxpr.eqns:
        scopes = f"{around}/{equation.source_info.name_stack}"
        if (flops := flops_of(equation)) is not None:
            found.append(Product(times * flops, scopes))
            continue
        inside = [products(body, times * turns(equation), scopes) for body in bodies(equation)]
        if equation.primitive.name == "cond":
            by_platform = equation.params.get("branches_platforms")
            inside = inside[-1:] if by_platform else [max(inside, key=lambda branch: Flops.of(branch).hardware)]
        found += [product for body in inside for product in body]
    return found


def flops_of(equation: JaxprEqn) -> float | None:
    """Return the FLOPs of one equation; None where it is no product, or holds programs that are looked into."""
    parameters = equation.params
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            return 2 * results[0].size * math.prod(operands[0].shape[dim] for dim in contracted)
        case "ragged_dot_general":
            return 2 * operands[0].size * results[0].shape[-1]
        case "conv_general_dilated":
            out_channels = operands[1].shape[parameters["dimension_numbers"].rhs_spec[0]]
            return 2 * results[0].size * operands[1].size / out_channels
        case "pallas_call" if parameters["cost_estimate"] is not None:
            return parameters["cost_estimate"].flops
        case "dot_product_attention_fwd_wrapper" | "dot_product_attention_bwd_wrapper" as name:  # cuDNN's
            num_products = 2 if "fwd" in name else 5
            return 2 * num_products * operands[0].size * operands[1].shape[1]
        case _:
            return None


def turns(equation: JaxprEqn) -> int:
    """Return how often what is inside an equation is done."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "shard_map":
            return equation.params["mesh"].size
        case "pallas_call":
            return math.prod(size for size in equation.params["grid_mapping"].grid if isinstance(size, int))
        case _:
            return 1


def bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Return the programs inside an equation: of jit, scan, while, cond, checkpoint, custom_vjp and whatever comes."""
    values: Any
    for values in equation.params.values():
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield value.jaxpr if isinstance(value, ClosedJaxpr) else value
