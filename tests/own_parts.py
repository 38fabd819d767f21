"""A core, a halting rule and an objective as a user would write them, outside of looplm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from looplm.config.schema import Model, OwnCore, OwnHalting, OwnObjective
from looplm.model.cache import KVCache
from looplm.model.context import Context
from looplm.model.core import Core, Inputs, Single
from looplm.model.exits import Exits
from looplm.model.forward import Forward
from looplm.model.halting import Halting
from looplm.model.output import Output
from looplm.model.report import Report
from looplm.objective.base import Objective, Sums, scoring
from looplm.ops.cross_entropy import IGNORED


class MeanCore(OwnCore):
    """The loops of the shipped core, read as the mean of all states so far."""

    def build(self, model: Model, *, rngs: nnx.Rngs) -> Core:
        return Mean(Single(model, rngs=rngs))


class Summed(NamedTuple):
    x_BSD: jax.Array
    sum_BSD: jax.Array
    count_BS: jax.Array


class Mean(nnx.Module):
    def __init__(self, inner: Single):
        self.inner = inner

    def init_state(self, inputs: Inputs, context: Context) -> Summed:
        x_BSD = self.inner.init_state(inputs, context)
        return Summed(x_BSD, jnp.zeros_like(x_BSD), jnp.zeros_like(x_BSD[..., 0]))

    def step(
        self, state: Summed, inputs: Inputs, context: Context, cache: KVCache | None
    ) -> tuple[Summed, KVCache | None, Report]:
        x_BSD, cache, report = self.inner.step(state.x_BSD, inputs, context, cache)
        return Summed(x_BSD, state.sum_BSD + x_BSD, state.count_BS + 1), cache, report

    def read(self, state: Summed) -> jax.Array:
        return state.sum_BSD / jnp.maximum(state.count_BS, 1)[..., None]

    def parameter_metrics(self) -> dict[str, jax.Array]:
        return {}


class LeaveAfter(OwnHalting):
    """All tokens leave after so many loops."""

    loops: int

    def build(self, model: Model, *, rngs: nnx.Rngs) -> Halting:
        return Exits(After(self.loops))


class After(nnx.Module):
    def __init__(self, loops: int):
        self.loops = loops

    def init(self, h_BSD: jax.Array) -> tuple[()]:
        return ()

    def judge(self, memory: tuple[()], h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple[()]]:
        assert context.loop is not None
        enough_B1 = (context.loop.number_B + 1 >= self.loops)[:, None]
        return enough_B1 | jnp.zeros_like(h_BSD[..., 0], bool), memory


class MeanCrossEntropy(OwnObjective):
    """Cross-entropy of every loop, all alike."""

    scale: float = 1.0

    def build(self) -> Objective:
        return MeanOverLoops(self.scale)


class MeanOverLoops:
    trains = None

    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, forward: Forward, labels_BS: jax.Array, key: jax.Array) -> tuple[Sums, Output]:
        output = forward("all", scoring(forward.model, labels_BS))
        nll_RBS = output.read.nll_BS
        objective = self.scale * jnp.sum(jnp.mean(nll_RBS, axis=0))
        return Sums(objective, jnp.sum(nll_RBS[-1]), jnp.sum(labels_BS != IGNORED), {}), output
