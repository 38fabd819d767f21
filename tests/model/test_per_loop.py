"""Parameters that every loop has for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.config.schema import DenseAttention, MoE, VectorConditioning
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM
from looplm.model.layers import LoopParam, parameter, stacked


def sizes(lm):
    return [leaf.size for leaf in jax.tree.leaves(lm.shapes)]


class Scaled(nnx.Module):
    def __init__(self, *, rngs):
        self.own = parameter(rngs, nnx.initializers.normal(1.0), (3,), ("embed",), loops=5)
        self.shared = parameter(rngs, nnx.initializers.normal(1.0), (3,), ("embed",))


def test_a_stack_has_loops_before_layers_and_every_loop_is_drawn_for_itself():
    module = stacked(lambda rngs: Scaled(rngs=rngs), 2, nnx.Rngs(0))
    assert isinstance(module.own, LoopParam)
    assert module.own.get_value().shape == (5, 2, 3)
    assert module.shared.get_value().shape == (2, 3)
    assert len(np.unique(np.asarray(module.own.get_value()))) == 30


@pytest.mark.parametrize(
    ("detached", "trained"), [(2, 3), *(pytest.param(0, n, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_every_loop_adds_its_own_vector(detached, trained, model_config, random_params, run_model, tokens_BS):
    """Against a model without, whose first state and input are the same and whose loops are run one by one."""
    fields = dict(prelude_layers=0, coda_layers=0, final_norm=False, exit_gate=None, norm_placement="pre")
    lm = FunctionalLM(model_config(conditioning=VectorConditioning(loops=4), injection={"kind": "add"}, **fields))
    params = random_params(lm)
    table_RD = params["core"]["conditioning"]["vector"]
    bare = FunctionalLM(model_config(injection={"kind": "add"}, **fields))
    without = params | {"core": {name: tree for name, tree in params["core"].items() if name != "conditioning"}}

    def engine(params):
        depth = Depth(3, jnp.int32(trained), jnp.int32(detached))
        return jnp.sum(jnp.sin(run_model(lm, params, tokens_BS, depth, reads="last").read))

    def definition(table_RD):
        state_BSD = params["embedding"]["table"][tokens_BS]
        for t in range(detached + trained):
            row_D = table_RD[min(t, 3)]
            row_D = jax.lax.stop_gradient(row_D) if t < detached else row_D
            # state + input + vector is what enters the block: hand the vector in with the state.
            state_BSD = run_model(bare, without, tokens_BS, Depth(1), start=state_BSD + row_D, reads="last").read[0]
            state_BSD = jax.lax.stop_gradient(state_BSD) if t < detached else state_BSD
        return jnp.sum(jnp.sin(state_BSD))

    value, gradient = jax.jit(jax.value_and_grad(engine))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(definition))(table_RD)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient["core"]["conditioning"]["vector"], expected_gradient, atol=1e-4)
    assert np.all(np.asarray(gradient["core"]["conditioning"]["vector"])[:detached] == 0)


EXPERTS = MoE(num_experts=5, experts_per_token=2, expert_dim=6, shared_dim=8)
OWN = {
    "scales": (dict(norm_loops=2), dict(norm_placement="sandwich", qk_norm_over="all_heads")),
    "scales and biases": (dict(norm_loops=2), dict(norm="layer")),
    "attention": (dict(attention_loops=2), dict(qk_bias=True, attention=DenseAttention(output_gate=True, bias=True))),
    "routers": (dict(feed_forward=EXPERTS.model_copy(update={"router_loops": 2})), dict(feed_forward=EXPERTS)),
    "all": (
        dict(norm_loops=2, attention_loops=2, feed_forward=EXPERTS.model_copy(update={"router_loops": 2})),
        dict(feed_forward=EXPERTS),
    ),
}
"""Settings by which loops have parts of their own, and the rest of the model."""


@pytest.mark.parametrize(("own", "fields"), OWN.values(), ids=OWN)
def test_parts_of_every_loop_are_those_of_as_many_layers(
    own, fields, model_config, random_params, run_model, tokens_BS
):
    """Two loops of two layers, written down as four layers that share all else; a third loop uses the last."""
    changes = dict(prelude_layers=0, block_layers=2, coda_layers=1, exit_gate=None, norm_at_loop_end=False) | fields
    changes |= {"qk_norm": True, "injection": {"kind": "none"}}
    lm = FunctionalLM(model_config(**changes | own))
    params = random_params(lm)
    is_own = lm.map(lambda _, variable: isinstance(variable, LoopParam), lm.shapes)
    assert not any(jax.tree.leaves(is_own["coda"]))

    def written_out(loops):
        def leaf(value, flag):
            rows = [value[min(loop, 1)] if flag else value for loop in range(loops)]
            return jnp.concatenate(rows)

        layers = jax.tree.map(leaf, params["core"]["block"], is_own["core"]["block"])
        flat = FunctionalLM(model_config(**changes | {"block_layers": 2 * loops}))
        return run_model(flat, params | {"core": params["core"] | {"block": layers}}, tokens_BS, Depth(1)).read[0]

    looped = run_model(lm, params, tokens_BS, Depth(3)).read
    for loops in (2, 3):
        np.testing.assert_allclose(looped[loops - 1], written_out(loops), rtol=1e-4, atol=1e-5)

    shared = FunctionalLM(model_config(**changes))
    added = sum(size for size, flag in zip(sizes(lm), jax.tree.leaves(is_own), strict=True) if flag) // 2
    assert 0 < added == lm.num_params - shared.num_params == lm.num_active_params - shared.num_active_params
