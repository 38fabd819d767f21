"""A training step, traced once for all meshes that split a sequence and the experts alike."""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from jax.interpreters.partial_eval import dce_jaxpr

from looplm.compile.compiled import mean_detached_loops
from looplm.config.load import override
from looplm.config.schema import Run
from looplm.ops.scopes import MICRO_BATCHES, OPTIMIZER
from looplm.plan.chips import Chips
from looplm.plan.flat import Level, flatten
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import Flops, products, step_flops
from looplm.train.program import Program

MICRO_BATCHES_TRACED = 2


class Form(NamedTuple):
    """What a traced program depends on beside the run."""

    expert: int
    context: int
    tensor: int
    remat: str
    gather: str
    keys: str


class Traced:
    """A step on the smallest mesh of its form, with one sequence a device.

    Raises UserError where the model does not fit that mesh.
    """

    def __init__(self, run: Run, chips: Chips, form: Form) -> None:
        self.mesh = {"replica": 1, "data": 2, "fsdp": 2} | form._asdict()
        self.mesh = {axis: size for axis, size in self.mesh.items() if isinstance(size, int)}
        sequences = 4 * form.expert * MICRO_BATCHES_TRACED
        self.tokens = sequences * run.data.sequence_length
        settings = {f"mesh.{axis}": size for axis, size in self.mesh.items()} | {
            "loop.remat": form.remat,
            "sharding.gather": form.gather,
            "sharding.keys": form.keys,
            "data.batch_tokens": self.tokens,
            "data.accumulation_steps": MICRO_BATCHES_TRACED,
        }
        run = override(run, settings)
        count = 4 * form.expert * form.context * form.tensor
        self.program = Program(run, build_mesh(run.mesh, chips.some(count)))
        self.detached_loops = mean_detached_loops(self.program)
        closed = self.program.trace().jaxpr
        self._jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
        self._flops = step_flops(closed).at(self.detached_loops)
        self._of_optimizer = sum(product.hardware for product in products(self._jaxpr) if OPTIMIZER in product.scopes)

    @property
    def flops_per_token(self) -> Flops:
        """Of training, without the optimizer's; at the mean depth."""
        hardware = self._flops.hardware - self._of_optimizer
        return Flops(self._flops.model / self.tokens, hardware / self.tokens)

    def optimizer_flops(self, fsdp: int) -> float:
        """Return those of a device and step: whole matrices are spread over `fsdp`."""
        return self._of_optimizer / self.program.mesh.size * self.mesh["fsdp"] / fsdp

    def level(self, micro_batches: int) -> Level:
        """Return what a step does. The loop over micro-batches is none where there is one."""
        return self._one if micro_batches == 1 else self._several

    @cached_property
    def _one(self) -> Level:
        return flatten(self._jaxpr, once=MICRO_BATCHES)

    @cached_property
    def _several(self) -> Level:
        return flatten(self._jaxpr)


class Traces:
    """Traces of one run, each made when it is asked for."""

    def __init__(self, run: Run, chips: Chips) -> None:
        self.run, self.chips = run, chips
        self._made: dict[tuple, Traced] = {}

    def of(self, form: Form, settings: Mapping[str, object] | None = None) -> Traced:
        """Return the trace of a form. settings: of the run, that differ."""
        key = (form, *(settings or {}).items())
        if key not in self._made:
            self._made[key] = Traced(override(self.run, settings or {}), self.chips, form)
        return self._made[key]
