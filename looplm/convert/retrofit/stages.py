"""What a model makes of tokens, stage by stage, on one device in float32."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.checkpoint.adapters.places import of_layer
from looplm.config.schema import Model
from looplm.convert.retrofit.cut import Origin
from looplm.convert.retrofit.source import Source
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.model.report import Reporting
from looplm.ops.attention import self_mask


class Stages(NamedTuple):
    """Of a pass, all float32."""

    layers_BLSD: jax.Array
    """What enters every layer of the block in the first loop; of the first layer, what the injection makes of the
    prelude's output."""
    state_BSD: jax.Array
    """What leaves the block."""
    logits_BSV: jax.Array


def plain_stack(source: Source, kept: tuple[Origin, ...]) -> tuple[Model, Params]:
    """The original with these layers alone, all in the block: its model, and its weights as numpy arrays."""
    model = source.model.model_copy(update={"prelude_layers": 0, "block_layers": len(kept), "coda_layers": 0})

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if (found := of_layer(name)) is None:
            return source.read(name, None)
        return np.stack([mean_layer(source, found[1], origin) for origin in kept])

    return model, jax.tree_util.tree_map_with_path(leaf, FunctionalLM(model).shapes)


def mean_layer(source: Source, name: str, origin: Origin) -> np.ndarray:
    """A leaf of a layer that is the mean of layers of the original."""
    if len(origin) == 1:
        return source.layer(name, origin[0])
    total = np.zeros((), np.float64)
    for number in origin:
        total = total + source.layer(name, number)
    return (total / len(origin)).astype(np.float32)


def run_stages(model: Model, params: Params, ids_BS: np.ndarray, loops: int = 1) -> Stages:
    """Runs so many loops, with products that are float32 on a GPU and a TPU too."""
    lm = FunctionalLM(model.model_copy(update={"dtype": "float32"}))
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(partial(_stages, lm, loops))(params, ids_BS))


def _stages(lm: FunctionalLM, loops: int, params: Params, ids_BS: jax.Array) -> Stages:
    model = lm.bind(jax.tree.map(jnp.asarray, params))
    positions_BS = jnp.broadcast_to(jnp.arange(ids_BS.shape[1]), ids_BS.shape)
    context = Context(
        positions_BS,
        self_mask(lm.config, jnp.zeros_like(ids_BS)),
        key=jax.random.key(0),
        sequence_B=jnp.arange(ids_BS.shape[0]),
        reporting=Reporting(memory=True),
    )
    forward = Forward(model, ids_BS, context, Depth(loops), jnp.float32)
    output = forward("last", model.logits)
    layers_BLSD = output.reports["block"].memory_BSD
    assert layers_BLSD is not None, "asked for"
    return Stages(layers_BLSD[0], output.state, output.read[0])
