"""Two states, places in front, a convolution and a gate of sequences on a mesh: the gradients of one device, and
nothing is sent inside of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from looplm.compile.collectives import collectives
from looplm.compile.hlo import Module
from looplm.config import schema
from looplm.config.schema import Mesh, Model
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from looplm.sharding.collective import reduce_gradient
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import activation_spec

B, S = 8, 7
COMMON = dict(
    vocab_size=16, dim=16, num_heads=2, hidden_dim=16, block_layers=1, attention_mask="full", norm="unit",
    norm_placement="post", norm_eps=1e-2, final_norm=False, injection=schema.AddInjection(),
    sequence_gate=schema.SequenceGate(outputs=2, pool="mean"),
)  # fmt: skip
MODELS = {
    "two states": Model(
        core=schema.TwoSpeedCore(inner_loops=2, inner_backprop=(1, 2), high_layers=1, damping=0.9, noise=0.01,
                                 low_init=schema.NormalState(std=1.0)),
        state_init=schema.VectorState(learned=True), attention=schema.DenseAttention(output_gate=True),
        front=schema.Front(ids=schema.Ids(num_ids=8, dim=24), learned=1, zeros=1), **COMMON,
    ),
    "over places": Model(
        attention=schema.SequenceMLP(length=S + 1, hidden_dim=16), feed_forward=schema.ConvSwiGLU(),
        state_init=schema.VectorState(), front=schema.Front(ids=schema.Ids(num_ids=8, dim=8)),
        positions=schema.LearnedPositions(length=S + 1, scale=0.5), **COMMON,
    ),
}  # fmt: skip


def random_values(lm):
    """Noise in every tensor, so that nothing is hidden by a gate or a table that is zero."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.2, leaf.shape), leaf.dtype), lm.shapes)


def gradients(lm, params, ids):
    """Of a loss that looks at hidden states and the gate."""

    def loss(whole):
        positions_BS = jnp.zeros_like(ids["tokens"]) + jnp.arange(S)
        context = Context(
            positions_BS, self_mask(lm.config, jnp.zeros_like(ids["tokens"])), "loop", key=jax.random.key(1),
            sequence_B=ids["sequence"], ids_B=ids["ids"],
        )  # fmt: skip
        depth = Depth(2, jnp.int32(2), jnp.int32(1))
        output = Forward(lm.bind(whole), ids["tokens"], context, depth, jnp.float32)()
        return jnp.sum(jnp.sin(output.read)) + jnp.sum(jnp.sin(output.sequence_gate_BQ))

    found = jax.grad(loss)(lm.gather(params, jnp.float32))
    return jax.tree.map(reduce_gradient, found, params)


@pytest.mark.parametrize("name", [pytest.param("two states", marks=pytest.mark.slow), "over places"])
def test_gradients_on_a_mesh_are_those_of_one_device(name):
    lm = FunctionalLM(MODELS[name])
    params = random_values(lm)
    draw = np.random.default_rng(0)
    ids = {"tokens": draw.integers(0, 16, (B, S)), "sequence": np.arange(B), "ids": draw.integers(0, 8, B)}
    ids = {name: jnp.asarray(value, jnp.int32) for name, value in ids.items()}
    alone = jax.jit(lambda params, ids: gradients(lm, params, ids))(params, ids)
    mesh = build_mesh(Mesh(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda leaf, at: jax.device_put(leaf, at.sharding), params, lm.abstract(mesh))
        spread = {
            name: jax.device_put(value, NamedSharding(mesh, activation_spec(*("batch", "sequence")[: value.ndim])))
            for name, value in ids.items()
        }
        compiled = jax.jit(lambda params, ids: gradients(lm, params, ids)).lower(placed, spread).compile()
        found = compiled(placed, spread)
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    sent = collectives(Module(compiled.as_text()), mesh.shape)
    assert {one.kind for one in sent} >= {"all-gather", "all-reduce"}
    assert [one for one in sent if one.loop_depth] == []
