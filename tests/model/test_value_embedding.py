"""Which layers have a value embedding, and what it costs to read the tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Mesh, Model, ValueEmbedding
from looplm.errors import UserError
from looplm.model.block import in_groups
from looplm.model.functional import FunctionalLM
from looplm.model.loop import Depth
from looplm.sharding.mesh import build_mesh, check_fit


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("unroll", [False, True])
def test_every_so_many_layers_counted_from_the_last_get_an_extra(size: int, num_layers: int, unroll: bool) -> None:
    chosen = [layer for layer in range(num_layers) if (num_layers - 1 - layer) % size == 0]

    def apply(x: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        layer, extra = xs
        x = 2 * x + layer + (0 if extra is None else extra)
        return x, x

    layers, extras = jnp.arange(num_layers) + 1.0, 100.0 * (jnp.arange(len(chosen)) + 1)
    x, kept = in_groups(apply, jnp.float32(1), layers, extras, size, unroll=unroll)
    expected, states = 1.0, []
    for layer in range(num_layers):
        extra = 100.0 * (chosen.index(layer) + 1) if layer in chosen else 0
        expected = 2 * expected + layer + 1 + extra
        states.append(expected)
    assert float(x) == expected
    np.testing.assert_array_equal(kept, states)


def test_tables_are_read_once_however_many_loops_run(model_config, run_model, tokens_BS) -> None:
    """Their gradients are scattered once."""
    lm = FunctionalLM(model_config(value_embedding=ValueEmbedding(gate_channels=8)))

    def scatters(num_loops: int) -> int:
        def loss(params):
            output = run_model(lm, params, tokens_BS, Depth(num_loops), unroll=True, read_loops="last")
            return jnp.sum(output.hidden_RBSD)

        return str(jax.make_jaxpr(jax.grad(loss))(lm.shapes)).count("scatter-add")

    assert scatters(1) == scatters(4) > 0


def test_a_mesh_that_does_not_divide_the_tables_is_refused() -> None:
    model = Model(
        vocab_size=30, dim=16, num_heads=4, hidden_dim=16, block_layers=2,
        value_embedding=ValueEmbedding(gate_channels=8),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"mesh\.fsdp=8 does not divide model\.vocab_size=30"):
        check_fit(build_mesh(Mesh(fsdp=8)), model, micro_batch=8, sequence_length=8)
