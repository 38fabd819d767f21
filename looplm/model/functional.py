"""A LoopLM as pure functions of a plain nested dictionary of arrays.

Flax NNX declares the model; jit, scan, the optimizer and the checkpoint see dictionaries (calling a jitted function
with 600 arrays costs 0.8 ms with a dict and 76 ms with `nnx.jit`).
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from looplm.config.schema import ACTHalting, Model, SingleCore, TrajectoryConditioning
from looplm.errors import UserError
from looplm.model.apart import Apart
from looplm.model.layers import LoopParam
from looplm.model.lm import LoopLM
from looplm.sharding.collective import Whole, gather
from looplm.sharding.rules import parameter_spec

Params = dict[str, Any]
"""Nested dictionaries of arrays, keyed by attribute names of the modules."""


class FunctionalLM:
    """What is static of a LoopLM: its graph, and shape, logical axes and declaration of every parameter."""

    def __init__(self, config: Model):
        self.config = config
        self._graph, abstract = nnx.split(nnx.eval_shape(lambda: LoopLM(config, rngs=nnx.Rngs(0))))
        self.declarations: dict[tuple[str, ...], nnx.Param] = dict(nnx.to_flat_state(abstract))
        """Of every parameter, by the names on its path."""

    def init(self, key: jax.Array) -> Params:
        """Draw all parameters, float32. Jit it with out_shardings to create them where they belong."""
        return nnx.to_pure_dict(nnx.state(LoopLM(self.config, rngs=nnx.Rngs(key))))

    def bind(self, params: Params) -> LoopLM:
        """Return the model with these parameters, to be called inside a traced function."""
        values = _flatten(params)
        variables = {path: variable.replace(values[path]) for path, variable in self.declarations.items()}
        return nnx.merge(self._graph, nnx.from_flat_state(variables))

    def apart(self, params: Params) -> Params:
        """Take stacks of layers apart; see `Apart`."""

        def one(value: jax.Array, variable: nnx.Param) -> jax.Array | Apart:
            is_stacked = value.ndim > len(variable.axes) and not isinstance(variable, LoopParam)
            return Apart.of(value) if is_stacked else value

        return self.map(one, params)

    def gather(self, params: Params, dtype: jax.typing.DTypeLike, *, per_layer: bool = False) -> Params:
        """Make sharded parameters whole for a forward pass, in the type in which they are used. With `per_layer` the
        matrices of the layers stay as they are. See `sharding.collective`."""

        def ready(value: jax.Array, variable: nnx.Param) -> jax.Array:
            if per_layer and variable.gathers_itself:
                return value
            return gather(value if variable.wide else value.astype(dtype), variable.axes)

        return self.map(ready, params)

    @cached_property
    def shapes(self) -> dict[str, Any]:
        """A `jax.ShapeDtypeStruct` for every parameter."""
        return _unflatten(
            {
                path: jax.ShapeDtypeStruct(v.get_value().shape, v.get_value().dtype)
                for path, v in self.declarations.items()
            }
        )

    def abstract(self, mesh: jax.sharding.Mesh) -> dict[str, Any]:
        """Return the shapes with their shardings over `mesh`, to restore a checkpoint onto."""

        def laid_out(leaf: jax.ShapeDtypeStruct, variable: nnx.Param) -> jax.ShapeDtypeStruct:
            spec = parameter_spec(variable.axes, leaf.shape, mesh)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        return self.map(laid_out, self.shapes)

    @cached_property
    def num_params(self) -> int:
        """How many parameters there are."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))

    @cached_property
    def num_active_params(self) -> int:
        """How many parameters a token meets: of the experts only those that it uses."""
        sizes = self.map(lambda leaf, variable: leaf.size * variable.used[0] // variable.used[1], self.shapes)
        return sum(jax.tree.leaves(sizes))

    @property
    def one_pass(self) -> bool:
        """Whether one pass reads every depth."""
        return not self.tied_to_depth

    @property
    def tied_to_depth(self) -> str:
        """The setting by which loop d of a longer pass gives something else than a pass of d loops; empty: none."""
        config = self.config
        groups = config.core.groups if isinstance(config.core, SingleCore) else 1
        tied = {
            f"model.core.groups={groups}": groups > 1,
            "model.conditioning=trajectory": isinstance(config.conditioning, TrajectoryConditioning),
            "model.residual_step=inverse_loops": config.residual_step == "inverse_loops",
            "model.halting=act": isinstance(config.halting, ACTHalting),  # what is read is a mean of states
        }
        return next((setting for setting, is_so in tied.items() if is_so), "")

    @cached_property
    def has_loop_parameters(self) -> bool:
        """Whether loops have parameters of their own, so that all tokens of a pass are at the same loop."""
        return any(isinstance(variable, LoopParam) for variable in self.declarations.values())

    @cached_property
    def num_params_of_layers(self) -> int:
        """How many parameters are in matrices that may be gathered layer by layer."""
        sizes = self.map(lambda leaf, variable: leaf.size if variable.gathers_itself else 0, self.shapes)
        return sum(jax.tree.leaves(sizes))

    @cached_property
    def num_params_of_experts(self) -> int:
        """How many parameters are split over the mesh axis `expert`."""
        sizes = self.map(lambda leaf, variable: leaf.size if "experts" in variable.axes else 0, self.shapes)
        return sum(jax.tree.leaves(sizes))

    def map(self, function: Callable[[Any, nnx.Param], Any], tree: dict[str, Any]) -> dict[str, Any]:
        """Apply function(leaf, declaration) to a tree like the parameters."""
        values = _flatten(tree)
        return _unflatten({path: function(values[path], variable) for path, variable in self.declarations.items()})


def compute_dtype(config: Model, platform: str | None = None) -> jnp.dtype:
    """Return the type of matrix products on a platform ("cpu", "gpu", "tpu"); None means the present one.

    Raises UserError for float64 where JAX would compute in float32 instead.
    """
    if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError(
            "model.dtype=float64 needs the 64-bit mode of JAX, which is off and only Python can switch on "
            "(jax_enable_x64); use float32"
        )
    if config.dtype != "auto":
        return jnp.dtype(config.dtype)
    return jnp.dtype(jnp.float32 if (platform or jax.default_backend()) == "cpu" else jnp.bfloat16)


def _flatten(tree: dict[str, Any]) -> dict[tuple, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, PartitionSpec | Whole | Apart))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def _unflatten(flat: dict[tuple, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*parents, last), leaf in flat.items():
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree
