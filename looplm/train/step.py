"""One optimizer step as a pure function: gather once, accumulate over micro-batches, reduce once, update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from looplm.config.schema import Run
from looplm.metrics.loop_stats import last_loop
from looplm.model.context import Context
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.objective import Sums, build_objective, trained
from looplm.ops.attention import self_mask
from looplm.ops.cross_entropy import IGNORED
from looplm.optim.schedule import build_schedule
from looplm.sharding.collective import zero_gradient
from looplm.train.depth import DepthSchedule
from looplm.train.state import TrainState

Batch = dict[str, jax.Array]
"""tokens, labels, segments, positions: int32 (A, B/A, S), A micro-batches; sequence: the row in the global batch (A,
B/A); depth: (loops without gradient, loops with gradient) of every sequence (A, B/A, 2), where sequences differ."""
Metrics = dict[str, jax.Array]

STATE_PURPOSE, HEADS_PURPOSE = 2, 3
"""Keep the streams of random numbers of a step apart."""


def build_train_step(
    run: Run, lm: FunctionalLM, optimizer: optax.GradientTransformation, depths: DepthSchedule
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Returns train_step(state, batch, drawn_depth) -> (state, metrics), to be jitted with the state donated."""
    objective = build_objective(run.objective)
    schedule = build_schedule(run.optim, run.num_steps)
    dtype = compute_dtype(run.model)

    def sums(params: Params, micro_batch: Batch, drawn: jax.Array, step: jax.Array) -> tuple[jax.Array, Sums]:
        model = lm.bind(trained(objective, params))
        context = Context(
            micro_batch["positions"],
            self_mask(run.model, micro_batch["segments"]),
            # Nothing is differentiated through the loops when only the gate learns: nothing needs computing twice.
            "none" if objective.trains_gate_only else run.loop.remat,
            run.loop.unroll,
            key=step_key(run.seed, STATE_PURPOSE, step),
            sequence_B=micro_batch["sequence"],
        )
        read = objective.read_loops(int(depths.window), step_key(run.seed, HEADS_PURPOSE, step))
        depth = depths.as_depth(micro_batch.get("depth", drawn))
        output = model(micro_batch["tokens"], context, depth, dtype=dtype, read_loops=read, with_statistics=True)
        result = objective(model, output, micro_batch["labels"], read)
        assert output.statistics_R is not None, "with_statistics"
        extra = last_loop(output.statistics_R, micro_batch["labels"] != IGNORED)
        return result.objective, result._replace(extra=result.extra | extra)

    def train_step(state: TrainState, batch: Batch, drawn: jax.Array) -> tuple[TrainState, Metrics]:
        batch_size = batch["tokens"].shape[1]
        whole, reduce = jax.vjp(lambda params: lm.gather(params, batch_size), state.params)

        def accumulate(gradient: Params, micro_batch: Batch) -> tuple[Params, Sums]:
            (_, result), more = jax.value_and_grad(sums, has_aux=True)(whole, micro_batch, drawn, state.step)
            return jax.tree.map(jnp.add, gradient, more), result

        gradient, results = jax.lax.scan(accumulate, jax.tree.map(zero_gradient, whole), batch)
        total: Sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), results)
        # One division, by the count of the global batch: the result does not depend on how it was split.
        (gradient,) = reduce(gradient)
        scored = jnp.maximum(total.tokens, 1)
        gradient = jax.tree.map(lambda g: g / scored, gradient)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = {
            "train/loss": total.loss / scored,
            "train/objective": total.objective / scored,
            "train/tokens": total.tokens,
            "train/grad_norm": optax.tree.norm(gradient),
            "optim/learning_rate": schedule(state.step),
            **{name: value / scored for name, value in total.extra.items()},
            **lm.bind(state.params).contraction(),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def step_key(seed: int, purpose: int, step: jax.Array) -> jax.Array:
    """The random key of one purpose in one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
