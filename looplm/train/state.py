"""Everything that a training step changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from looplm.model.functional import FunctionalLM, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    step: jax.Array
    """Optimizer steps done, int32; also the index of the batch that comes next."""
    params: Params
    """float32."""
    opt_state: Any
    carry: Any = None
    """What is kept of a batch from step to step (`train.carrying`), leaves (A, B/A, ...) for A micro-batches of B/A
    sequences; None where nothing is."""


def create_state(
    lm: FunctionalLM,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    seed: int,
    carry: Callable[[], Any] = lambda: None,
) -> TrainState:
    """Draws the parameters where they belong: no device ever holds more than its part. carry: makes the first one."""
    abstract = abstract_state(lm, optimizer, mesh, carry)

    def create(key: jax.Array) -> TrainState:
        params = jax.tree.map(
            lambda leaf, laid: jax.sharding.reshard(leaf, laid.sharding.spec), lm.init(key), abstract.params
        )
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), carry())

    with jax.set_mesh(mesh):
        return jax.jit(create, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(jax.random.key(seed))


def state_of(
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    params: Params,
    carry: Callable[[], Any] = lambda: None,
) -> TrainState:
    """A state with no step behind it around weights that are on the mesh; takes them. carry: makes the first one."""
    with jax.set_mesh(mesh):
        opt_state, first_carry = jax.jit(optimizer.init)(params), jax.jit(carry)()
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, first_carry)


def abstract_state(
    lm: FunctionalLM,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    carry: Callable[[], Any] = lambda: None,
) -> TrainState:
    """jax.ShapeDtypeStructs with shardings in place of arrays; allocates nothing. carry: makes the first one."""

    def on_mesh(leaf: Any, spec: PartitionSpec) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = lm.abstract(mesh)
    with jax.set_mesh(mesh):
        # In explicit mode the moments come out sharded like their parameters; counters come out without a sharding.
        made = jax.eval_shape(lambda params: (optimizer.init(params), carry()), params)
    opt_state, first_carry = jax.tree.map(
        lambda leaf: on_mesh(leaf, leaf.sharding.spec if leaf.sharding else PartitionSpec()), made
    )
    step: Any = on_mesh(jax.ShapeDtypeStruct((), jnp.int32), PartitionSpec())
    return TrainState(step, params, opt_state, first_carry)
