"""Which layers have a value embedding, and what it costs to read the tables."""

import jax
import jax.numpy as jnp
import pytest

from looplm.config.schema import Mesh, Model, ValueEmbedding
from looplm.errors import UserError
from looplm.model.depth import Depth
from looplm.model.functional import FunctionalLM
from looplm.model.value_embedding import embedded_layers
from looplm.sharding.mesh import build_mesh, check_fit


@pytest.mark.parametrize(
    ("every", "num_layers", "expected"), [(1, 3, (0, 1, 2)), (2, 5, (0, 2, 4)), (3, 7, (0, 3, 6)), (5, 2, (1,))]
)
def test_every_so_many_layers_counted_from_the_last_have_one(every: int, num_layers: int, expected: tuple) -> None:
    config = Model(
        vocab_size=8, dim=8, num_heads=1, hidden_dim=8, block_layers=1, value_embedding=ValueEmbedding(every=every)
    )
    assert embedded_layers(config, num_layers) == expected


def test_tables_are_read_once_however_many_loops_run(model_config, run_model, tokens_BS) -> None:
    """Their gradients are scattered once."""
    lm = FunctionalLM(model_config(value_embedding=ValueEmbedding(gate_channels=8)))

    def scatters(num_loops: int) -> int:
        def loss(params):
            output = run_model(lm, params, tokens_BS, Depth(num_loops), unroll=True, reads="last")
            return jnp.sum(output.read)

        return str(jax.make_jaxpr(jax.grad(loss))(lm.shapes)).count("scatter-add")

    assert scatters(1) == scatters(4) > 0


def test_a_mesh_that_does_not_divide_the_tables_is_refused() -> None:
    model = Model(
        vocab_size=30, dim=16, num_heads=4, hidden_dim=16, block_layers=2,
        value_embedding=ValueEmbedding(gate_channels=8),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"mesh\.fsdp=8 does not divide model\.vocab_size=30"):
        check_fit(build_mesh(Mesh(fsdp=8)), model, micro_batch=8, sequence_length=8)
