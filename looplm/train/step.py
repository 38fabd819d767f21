"""One optimizer step as a pure function: gather once, accumulate over micro-batches, reduce once, update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from looplm.config.schema import Run
from looplm.data.window import PADDING
from looplm.metrics.loop_stats import scored_sums
from looplm.metrics.step import StepOutput
from looplm.model.context import Context
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.model.report import Reporting
from looplm.model.subset import Subset
from looplm.objective import Rows, Sums, build_objective, evaluate
from looplm.ops.attention import prefix_of, self_mask
from looplm.ops.cross_entropy import IGNORED
from looplm.ops.scopes import MICRO_BATCHES, OPTIMIZER
from looplm.optim.guard import GuardState, limits
from looplm.optim.learning import learning_of as chosen
from looplm.optim.router_bias import move_biases
from looplm.optim.schedule import build_schedule
from looplm.sharding.collective import Whole, reduce_gradient, stand_in, zero_gradient
from looplm.sharding.split import split_of
from looplm.train.batch import Batch
from looplm.train.carrying import Carrying, build_carrying
from looplm.train.depth import DepthSchedule
from looplm.train.state import TrainState
from looplm.train.teacher import Teacher

STATE_PURPOSE, HEADS_PURPOSE, DROP_PURPOSE, TEACHER_PURPOSE, CARRY_PURPOSE = 2, 3, 4, 5, 6
"""Keep the streams of random numbers of a step apart."""


def build_forward(
    run: Run, lm: FunctionalLM, depths: DepthSchedule, *, dtype: jax.typing.DTypeLike
) -> Callable[[Params, Batch, jax.Array, jax.Array], Forward]:
    """Returns forward(params, micro_batch, drawn, step): the pass of a micro-batch, ready to run. params: what
    `lm.bind` takes."""
    objective = build_objective(run.objective)
    drops = run.model.adapter is not None and run.model.adapter.drops

    def forward(params: Params, micro_batch: Batch, drawn: jax.Array, step: jax.Array) -> Forward:
        context = Context(
            micro_batch.positions,
            self_mask(
                run.model,
                micro_batch.segments,
                prefix_of(run.model, micro_batch.labels, micro_batch.segments),
                split_of(run, jax.sharding.get_abstract_mesh()),
            ),
            # Nothing is differentiated through the loops when only the gate learns: nothing needs computing twice.
            "none" if objective.trains == {"gate"} else run.loop.remat,
            run.loop.unroll,
            key=step_key(run.seed, STATE_PURPOSE, step),
            drop_words_2=jax.random.bits(step_key(run.seed, DROP_PURPOSE, step), (2,), "uint32") if drops else None,
            sequence_B=micro_batch.sequence,
            ids_B=micro_batch.ids,
            counted_BS=micro_batch.segments != PADDING,
            reporting=Reporting(routing=True),
            with_capacity=True,
            inner_backprop=depths.inner_backprop(step),
        )
        depth = depths.as_depth(drawn if micro_batch.depth is None else micro_batch.depth)
        return Forward(lm.bind(params), micro_batch.tokens, context, depth, dtype, step=step, num_steps=run.num_steps)

    return forward


def build_loss(
    run: Run, lm: FunctionalLM, depths: DepthSchedule, *, dtype: jax.typing.DTypeLike, teacher: Teacher | None = None
) -> Callable[..., tuple[jax.Array, tuple[Sums, Any]]]:
    """Returns sums(stand_ins, whole, micro_batch, carry, drawn, step, *taught) -> (objective, (all sums, the next
    carry)) of a micro-batch.

    stand_ins: of what learns (see `learning_of`); all else of `whole` is a constant. carry: what the step before has
    left of it (see `train.carrying`), None where nothing is. taught: the whole weights of the teacher, if there is one.
    """
    objective, learning, carrying = build_objective(run.objective), learning_of(run, lm), build_carrying(run)
    build_pass = build_forward(run, lm, depths, dtype=dtype)

    def sums(
        stand_ins: Params,
        whole: Params,
        micro_batch: Batch,
        carry: Any,
        drawn: jax.Array,
        step: jax.Array,
        *taught: Params,
    ) -> tuple[jax.Array, tuple[Sums, Any]]:
        if carrying is not None:
            micro_batch = carrying.rows(carry, micro_batch)
        params = learning.put(jax.tree.map(Whole, learning.only(whole), stand_ins), whole)
        forward = replace(build_pass(params, micro_batch, drawn, step), with_statistics=True)
        if teacher is not None:
            (weights,), key = taught, step_key(run.seed, TEACHER_PURPOSE, step)
            split = split_of(run, jax.sharding.get_abstract_mesh())
            forward = replace(forward, teacher=teacher.forward(weights, micro_batch, split, key))
        carry_key = step_key(run.seed, CARRY_PURPOSE, step)
        if carrying is not None:
            forward = carrying.enter(carry, forward, carry_key)
        key = step_key(run.seed, HEADS_PURPOSE, step)
        result, output = evaluate(objective, forward, micro_batch.labels, key)
        if carrying is not None:
            carry = carrying.leave(carry, micro_batch, output, carry_key)
        assert output.statistics is not None, "with_statistics"
        extra = scored_sums(output.statistics, micro_batch.labels != IGNORED)
        return result.objective, (result._replace(extra=result.extra | extra), carry)

    return sums


def build_train_step(
    run: Run,
    lm: FunctionalLM,
    optimizer: optax.GradientTransformationExtraArgs,
    depths: DepthSchedule,
    *,
    dtype: jax.typing.DTypeLike,
    per_layer: bool = False,
    teacher: Teacher | None = None,
) -> Callable[..., tuple[TrainState, StepOutput]]:
    """Returns train_step(state, batch, drawn_depth, *taught) -> (state, output), to be jitted with the state donated.

    Args:
        dtype: type of the matrix products.
        per_layer: gather the matrices of the layers where they are used instead of once.
        teacher: whose weights `taught` are; None: there are none.
    """
    objective, sums = build_objective(run.objective), build_loss(run, lm, depths, dtype=dtype, teacher=teacher)
    learning, carrying = learning_of(run, lm), build_carrying(run)
    schedule = build_schedule(run.optim, run.num_steps)

    def train_step(state: TrainState, batch: Batch, drawn: jax.Array, *taught: Params) -> tuple[TrainState, StepOutput]:
        whole = lm.gather(state.params, dtype, per_layer=per_layer)
        learned = learning.only(state.params)
        stand_ins = jax.tree.map(stand_in, learning.only(whole), learned)
        if teacher is not None:
            taught = tuple(teacher.lm.gather(weights, dtype) for weights in taught)

        def accumulate(gradient: Params, xs: tuple[Batch, Any]) -> tuple[Params, tuple[Sums, Any]]:
            differentiate = jax.value_and_grad(sums, has_aux=True)
            (_, result), more = differentiate(stand_ins, whole, *xs, drawn, state.step, *taught)
            return jax.tree.map(jnp.add, gradient, more), result

        zeros = jax.tree.map(zero_gradient, stand_ins)
        with jax.named_scope(MICRO_BATCHES):
            gradient, (results, carry) = jax.lax.scan(accumulate, zeros, (batch, state.carry))
        rows = row_means(results.rows, carrying, carry)
        total: Sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), results._replace(rows=None))
        # One division, by the count of the global batch: the result does not depend on how it was split.
        scored = jnp.maximum(total.tokens, 1)
        divisor = scored if total.divisor is None else total.divisor
        gradient = jax.tree.map(lambda g, p: reduce_gradient(g, p) / divisor, gradient, learned)

        loss, grad_norm = total.loss / scored, optax.tree.norm(gradient)
        before: GuardState = state.opt_state.guard
        with jax.named_scope(OPTIMIZER):
            updates, opt_state = optimizer.update(
                gradient, state.opt_state, learned, loss=loss, grad_norm=grad_norm, tokens=total.tokens
            )
        params = learning.put(optax.apply_updates(learned, updates), state.params)
        after: GuardState = opt_state.guard
        max_loss, max_grad_norm = limits(before, run.optim.guard)
        if objective.trains is None:
            moved = learning.only(move_biases(lm, params, total.loads_by_row))
            # Not in a step whose update is not made.
            is_made = after.num_good > before.num_good
            moved = jax.tree.map(
                lambda new, old: old if new is old else jax.lax.select(is_made, new, old), moved, learning.only(params)
            )
            params = learning.put(moved, params)
        output = StepOutput(
            total.tokens,
            means={
                "train/loss": loss,
                "train/objective": total.objective / divisor,
                "train/grad_norm": grad_norm,
                **{name: value / scored for name, value in total.extra.items()},
            },
            numbers={
                "optim/learning_rate": schedule(before.num_good),
                "optim/skipped": after.skipped,
                "optim/skipped_in_a_row": after.in_a_row,
                "optim/unlabelled": after.unlabelled,
                "optim/hard": after.hard,
                "optim/new_levels": after.new_levels,
                "optim/max_loss": max_loss,
                "optim/max_grad_norm": max_grad_norm,
                **lm.bind(state.params).parameter_metrics(),
            },
            loops=jax.tree.map(lambda sum_R: sum_R / scored, total.loops),
            routers=total.routers,
            rows=rows,
        )
        return TrainState(state.step + 1, params, opt_state, carry), output

    return train_step


def row_means(rows: Rows | None, carrying: Carrying | None, carry: Any) -> dict[str, jax.Array]:
    """Sum numbers of sequences up: of those that end in this step, where some go on. Returns (sum, count) of each."""
    if rows is None:
        return {}
    counted, numbers = rows
    if carrying is not None:
        counted, numbers = counted & carrying.ended(carry), numbers | carrying.numbers(carry)
    count = jnp.sum(counted, dtype=jnp.float32)
    means = {
        name: jnp.stack([jnp.sum(number, where=counted, dtype=jnp.float32), count]) for name, number in numbers.items()
    }
    return means | {"carry/replaced": jnp.stack([count, jnp.float32(counted.size)])} if carrying is not None else means


def learning_of(run: Run, lm: FunctionalLM) -> Subset:
    """The parameters of a run that learn."""
    return chosen(run.optim, lm, build_objective(run.objective).trains)


def step_key(seed: int, purpose: int, step: jax.Array) -> jax.Array:
    """The random key of one purpose in one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
