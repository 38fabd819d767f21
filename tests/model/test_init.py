"""First values that a law of numbers does not show."""

import math

import jax
import numpy as np
import pytest

from looplm.config.schema import DiagonalInjection, Model, OrthogonalInit, ReadOut, ValueEmbedding
from looplm.model.functional import FunctionalLM

D, V = 16, 48


@pytest.fixture(scope="module")
def params():
    config = Model(
        vocab_size=V, dim=D, num_heads=4, num_kv_heads=2, hidden_dim=40, block_layers=2, tie_embeddings=True,
        injection=DiagonalInjection(), read_out=ReadOut(), init=OrthogonalInit(),
        value_embedding=ValueEmbedding(gate_channels=9),
    )  # fmt: skip
    return jax.tree.map(np.asarray, FunctionalLM(config).init(jax.random.key(0)))


@pytest.mark.parametrize(
    "path",
    ["embedding.table", "read_out.kernel", "core.block.layers.attention.query.project.kernel",
     "core.block.layers.attention.value.kernel", "core.block.layers.feed_forward.up.kernel"],
)  # fmt: skip
def test_orthogonal_matrices_have_one_singular_value_and_the_published_size(path, params):
    leaf = params
    for name in path.split("."):
        leaf = leaf[name]
    for matrix in leaf.reshape(2, D, -1) if "layers" in path else [leaf]:
        singular = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(singular, math.sqrt(2 / (5 * D)) * math.sqrt(max(matrix.shape)), rtol=1e-5)


def test_layers_start_as_the_identity(params):
    layers = params["core"]["block"]["layers"]
    assert not np.any(layers["attention"]["output"]["kernel"])
    assert not np.any(layers["feed_forward"]["down"]["kernel"])


def test_value_embeddings_start_as_the_official_ones(params):
    """Tables normal with std 1, gates uniform within 1 / sqrt(channels): what torch does unasked."""
    (gate,) = params["core"]["block"]["value_gates"]["linear"]["kernel"]
    assert 0.8 / 3 < np.abs(gate).max() < 1 / 3
    assert params["value_embedding"]["block"].std() == pytest.approx(1, abs=0.05)
