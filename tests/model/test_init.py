"""First values that a law of numbers does not show."""

import math

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.stats import truncnorm

from looplm.config.load import load_config
from looplm.config.schema import (
    DepthScaledInit,
    DiagonalInjection,
    Model,
    NormalState,
    OrthogonalInit,
    ReadOut,
    ValueEmbedding,
    VectorState,
)
from looplm.model.context import Context
from looplm.model.functional import FunctionalLM
from looplm.model.init import truncated_normal
from looplm.model.state_init import first_vector, initial_state

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


@pytest.mark.parametrize("cut", [2.0, 3.0, 0.5])
def test_what_is_left_of_a_cut_law_is_as_wide_as_the_theory_says(cut):
    left = truncnorm.std(-cut, cut)
    for corrected, std in ((True, 0.7), (False, 0.7 * left)):
        drawn = np.asarray(truncated_normal(0.7, cut, corrected=corrected)(jax.random.key(0), (200_000,)))
        np.testing.assert_allclose(drawn.std(), std, rtol=5e-3)
        largest = cut * std / left
        assert 0.99 * largest < np.abs(drawn).max() <= largest * (1 + 1e-6)


def test_first_states_are_cut_where_their_authors_cut():
    vector = first_vector(VectorState(), 100_000, rngs=nnx.Rngs(0))[...]
    np.testing.assert_allclose(np.std(vector), 1, rtol=1e-2)
    # The largest value of trunc_normal_init_ in the authors' code: 2 / 0.8796.
    assert 2.27 < np.abs(vector).max() < 2.2738
    context = Context(np.arange(50)[None], None, key=jax.random.key(0), sequence_B=np.arange(1))
    like_BSD = np.zeros((1, 50, 2000), np.float32)
    for state, largest in (
        (load_config("configs/eqr.py").model.state_init, 2.2738), (NormalState(std=1.0), 3.0),
    ):  # fmt: skip
        drawn = initial_state(state, input_BSD=like_BSD, embedded_BSD=like_BSD, context=context)
        assert 0.98 * largest < np.abs(drawn).max() < largest


def test_layers_start_as_the_identity(params):
    layers = params["core"]["block"]["layers"]
    assert not np.any(layers["attention"]["output"]["kernel"])
    assert not np.any(layers["feed_forward"]["down"]["kernel"])


def test_value_embeddings_start_as_the_official_ones(params):
    """Tables normal with std 1, gates uniform within 1 / sqrt(channels): what torch does unasked."""
    (gate,) = params["core"]["block"]["value_gates"]["linear"]["kernel"]
    assert 0.8 / 3 < np.abs(gate).max() < 1 / 3
    assert params["value_embedding"]["block"].std() == pytest.approx(1, abs=0.05)


def test_depth_scaled_matrices_start_as_the_official_ones():
    """Huginn: sqrt(2 / 5D), what writes the residual stream over sqrt(2 x effective depth) of it, cut at three."""
    D, depth = 64, 18
    config = Model(
        vocab_size=V, dim=D, num_heads=4, hidden_dim=160, prelude_layers=1, block_layers=2,
        init=DepthScaledInit(effective_depth=depth),
    )  # fmt: skip
    params, std = jax.tree.map(np.asarray, FunctionalLM(config).init(jax.random.key(0))), math.sqrt(2 / (5 * D))
    for layers in (params["prelude"]["layers"], params["core"]["block"]["layers"]):
        attention, feed_forward = layers["attention"], layers["feed_forward"]
        outputs = [attention["output"]["kernel"], feed_forward["down"]["kernel"]]
        inputs = [attention[name]["project"]["kernel"] for name in ("query", "key")]
        inputs += [attention["value"]["kernel"], feed_forward["gate"]["kernel"], feed_forward["up"]["kernel"]]
        sizes = [*((leaf, std) for leaf in inputs), *((leaf, std / math.sqrt(2 * depth)) for leaf in outputs)]
        for leaf, wanted in sizes:
            cut = 0.98658  # what three deviations leave of the standard deviation
            assert leaf.std() == pytest.approx(cut * wanted, rel=6 / math.sqrt(2 * leaf.size)), leaf.shape
            assert 2.5 * wanted < np.abs(leaf).max() <= 3 * wanted * (1 + 1e-6)
    assert params["embedding"]["table"].std() == pytest.approx(0.98658 * std, rel=6 / math.sqrt(2 * D * V))


def test_moeut_starts_as_officially():
    """Standard deviations as RobertCsordas/moeut:moeut/moeut.py (reset_parameters) and torch's Linear have them."""
    run = load_config("moeut:tiny")
    model, moe = run.model, run.model.feed_forward
    D, N, H = model.dim, model.num_heads, model.head_dim
    params = jax.tree.map(np.asarray, FunctionalLM(model).init(jax.random.key(0)))
    scale = math.sqrt(2 / (run.loop.num_loops * model.block_layers))
    layers = params["core"]["block"]["layers"]
    attention, experts = layers["attention"], layers["feed_forward"]["experts"]
    of_inputs = scale / math.sqrt(D)
    expected = [
        (params["embedding"]["table"], 1 / math.sqrt(D)),
        (params["head"], 1 / math.sqrt(3 * D)),
        (params["head_bias"], 1 / math.sqrt(3 * D)),
        (attention["query"]["project"]["kernel"], of_inputs),
        (attention["key"]["project"]["kernel"], of_inputs),
        (attention["value"]["experts"]["kernel"], of_inputs),
        (attention["output"]["experts"]["kernel"], scale / math.sqrt(N * H)),
        (attention["value_router"]["kernel"], of_inputs),
        (attention["output_router"]["kernel"], of_inputs),
        (layers["feed_forward"]["router"]["kernel"], of_inputs),
        (experts["up"], of_inputs),
        (experts["down"], scale / math.sqrt(moe.num_experts * moe.expert_dim)),
    ]
    for leaf, std in expected:
        assert leaf.std() == pytest.approx(std, rel=6 / math.sqrt(2 * leaf.size)), leaf.shape  # six deviations of it
    assert np.abs(params["head"]).max() <= 1 / math.sqrt(D)
    lengths_LE = np.linalg.norm(layers["feed_forward"]["router"]["kernel"], axis=1)
    np.testing.assert_allclose(lengths_LE / lengths_LE.mean(axis=1, keepdims=True), 1, rtol=1e-5)
    assert np.linalg.norm(attention["value_router"]["kernel"], axis=1).std() > 0.01 * scale
    norms = [params["final_norm"], *(layers[f"{name}_residual"]["norm"] for name in ("attention", "feed_forward"))]
    assert all(np.all(norm["scale"] == 1) and not np.any(norm["bias"]) for norm in norms)
    assert sum(leaf.size for leaf, _ in expected) + sum(leaf.size for leaf in jax.tree.leaves(norms)) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
