"""Everything that a training step changes."""

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


def create_state(
    lm: FunctionalLM, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, seed: int
) -> TrainState:
    """Draws the parameters where they belong: no device ever holds more than its part."""
    shardings = abstract_state(lm, optimizer, mesh)

    def create(key: jax.Array) -> TrainState:
        params = jax.tree.map(jax.sharding.reshard, lm.init(key), lm.specs)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    with jax.set_mesh(mesh):
        return jax.jit(create, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shardings))(jax.random.key(seed))


def abstract_state(lm: FunctionalLM, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing."""
    with jax.set_mesh(mesh):
        params = lm.map(
            lambda shape, _: shape,
            jax.tree.map(
                lambda shape, spec: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec)),
                lm.shapes,
                lm.specs,
            ),
        )
        opt_state = jax.eval_shape(optimizer.init, params)
    concrete = lambda leaf: jax.ShapeDtypeStruct(  # noqa: E731
        leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, getattr(leaf.sharding, "spec", PartitionSpec()))
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return TrainState(step, params, jax.tree.map(concrete, opt_state))
