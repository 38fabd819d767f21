"""Chunked cross-entropy against the one that holds all logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Mesh
from looplm.ops.cross_entropy import IGNORED, Head, linear_cross_entropy, linear_distillation
from looplm.ops.cross_entropy.divergence import divergence
from looplm.sharding.collective import lay_out
from looplm.sharding.mesh import build_mesh

B, S, D, V = 2, 13, 8, 50


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_BSD, head_VD = jax.random.normal(keys[0], (B, S, D)), jax.random.normal(keys[1], (V, D))
    labels_BS = jax.random.randint(keys[2], (B, S), 0, V).at[0, 3].set(IGNORED).at[1, 12].set(IGNORED)
    return hidden_BSD, head_VD, labels_BS


def naive(hidden_BSD, head_VD, labels_BS):
    """log softmax by its definition, one token at a time."""
    nll_BS = np.zeros((B, S))
    for b, s in np.ndindex(B, S):
        if labels_BS[b, s] >= 0:
            logits_V = np.float64(head_VD) @ np.float64(hidden_BSD[b, s])
            nll_BS[b, s] = np.log(np.sum(np.exp(logits_V))) - logits_V[labels_BS[b, s]]
    return nll_BS


@pytest.mark.parametrize("chunk_logits", [1, B * V, 5 * B * V, 10**9])
def test_scores_equal_the_definition_for_any_chunk(inputs, chunk_logits):
    scores = jax.jit(partial(linear_cross_entropy, chunk_logits=chunk_logits))(*inputs)
    np.testing.assert_allclose(scores.nll_BS, naive(*inputs), rtol=1e-5, atol=1e-6)
    hidden_BSD, head_VD, labels_BS = inputs
    np.testing.assert_array_equal(scores.correct_BS, jnp.argmax(hidden_BSD @ head_VD.T, -1) == labels_BS)


def test_gradients_do_not_depend_on_the_chunk(inputs):
    hidden_BSD, head_VD, labels_BS = inputs

    def gradient(chunk_logits):
        def loss(hidden_BSD, head_VD):
            return jnp.sum(linear_cross_entropy(hidden_BSD, head_VD, labels_BS, chunk_logits=chunk_logits).nll_BS)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden_BSD, head_VD)

    for whole, chunked in zip(gradient(10**9), gradient(3 * B * V), strict=True):
        np.testing.assert_allclose(chunked, whole, atol=1e-5)
    np.testing.assert_array_equal(gradient(10**9)[0][0, 3], 0.0)


def test_memory_is_that_of_a_chunk():
    long, vocab = 4096, 8192

    def temporary_bytes(chunk_logits):
        def loss(hidden_BSD, head_VD):
            labels_BS = jnp.zeros((1, long), jnp.int32)
            return jnp.sum(linear_cross_entropy(hidden_BSD, head_VD, labels_BS, chunk_logits=chunk_logits).nll_BS)

        shapes = jax.ShapeDtypeStruct((1, long, 8), jnp.float32), jax.ShapeDtypeStruct((vocab, 8), jnp.float32)
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(2**20) < 0.1 * 4 * long * vocab < temporary_bytes(2**30)


@pytest.mark.parametrize("context", [1, 2])
def test_a_mesh_changes_nothing(inputs, context):
    """Whether the sequence is split or not: an axis of size 1 is a layout too."""
    hidden_BSD, head_VD, labels_BS = jax.tree.map(lambda x: x[:, :12] if x.shape[:2] == (B, S) else x, inputs)
    expected = jax.jit(partial(linear_cross_entropy, chunk_logits=10**9))(hidden_BSD, head_VD, labels_BS)
    with jax.set_mesh(build_mesh(Mesh(fsdp=2, context=context), jax.devices()[: 2 * context])):
        rows = [lay_out(x, "batch", "sequence", *["embed"] * (x.ndim - 2)) for x in (hidden_BSD, labels_BS)]
        scores = jax.jit(partial(linear_cross_entropy, chunk_logits=4 * V))(rows[0], head_VD, rows[1])
    for value, whole in zip(scores, expected, strict=True):
        np.testing.assert_allclose(value, whole, rtol=1e-5)


@pytest.mark.parametrize("save_logits", [True, False])
@pytest.mark.parametrize("context", [1, 2])
def test_the_gradient_by_hand_equals_that_of_the_definition(inputs, context, save_logits):
    """With a bias, a cap and the normaliser's square, whole and over devices."""
    hidden_BSD, head_VD, labels_BS = jax.tree.map(lambda x: x[:, :12] if x.shape[:2] == (B, S) else x, inputs)
    bias_V, weight_BS = jax.random.normal(jax.random.key(4), (V,)), jax.random.uniform(jax.random.key(5), (B, 12))

    def by_definition(hidden_BSD, head_VD, bias_V):
        logits_BSV = 3 * jnp.tanh((hidden_BSD @ head_VD.T + bias_V) / 3)
        log_p_BSV, scored_BS = jax.nn.log_softmax(logits_BSV), labels_BS != IGNORED
        nll_BS = -jnp.take_along_axis(log_p_BSV, jnp.maximum(labels_BS, 0)[:, :, None], -1)[:, :, 0]
        z_BS = jax.nn.logsumexp(logits_BSV, -1) ** 2
        return jnp.sum(weight_BS * (nll_BS + 0.1 * z_BS), where=scored_BS)

    def by_hand(hidden_BSD, head_VD, bias_V, labels_BS, weight_BS):
        scores = linear_cross_entropy(
            hidden_BSD, head_VD, labels_BS, bias_V=bias_V, logit_softcap=3.0, save_logits=save_logits
        )
        return jnp.sum(weight_BS * (scores.nll_BS + 0.1 * scores.z_BS))

    expected = jax.jit(jax.grad(by_definition, argnums=(0, 1, 2)))(hidden_BSD, head_VD, bias_V)
    with jax.set_mesh(build_mesh(Mesh(fsdp=2, context=context), jax.devices()[: 2 * context])):
        rows = [lay_out(x, "batch", "sequence", *["embed"] * (x.ndim - 2)) for x in (hidden_BSD, labels_BS, weight_BS)]
        gradients = jax.jit(jax.grad(by_hand, argnums=(0, 1, 2)))(rows[0], head_VD, bias_V, *rows[1:])
    for gradient, whole in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("save_logits", "products"), [(True, 3), (False, 4)])
def test_logits_that_are_saved_are_not_made_again(inputs, save_logits, products):
    def loss(hidden_BSD, head_VD):
        return jnp.sum(linear_cross_entropy(hidden_BSD, head_VD, inputs[2], save_logits=save_logits).nll_BS)

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs[:2]).as_text()
    assert program.count("stablehlo.dot_general") == products


def divergence_by_definition(logits_BSV, target_BSV, temperature):
    log_q_BSV, log_p_BSV = (jax.nn.log_softmax(x / temperature) for x in (target_BSV, logits_BSV))
    return temperature**2 * jnp.sum(jnp.exp(log_q_BSV) * (log_q_BSV - log_p_BSV), axis=-1)


@pytest.mark.parametrize("chunk_logits", [8 * B * V, 10**9])
@pytest.mark.parametrize("context", [1, 2])
def test_a_divergence_and_its_gradient_are_those_of_the_definition(inputs, context, chunk_logits):
    """Of a target of another width, with biases and a cap, beside the cross-entropy; whole and over devices. The
    target's parameters have no gradient."""
    hidden_BSD, head_VD, labels_BS = jax.tree.map(lambda x: x[:, :12] if x.shape[:2] == (B, S) else x, inputs)
    keys = jax.random.split(jax.random.key(6), 4)
    target_BSE, target_head_VE = jax.random.normal(keys[0], (B, 12, 5)), jax.random.normal(keys[1], (V, 5))
    bias_V, weight_BS = jax.random.normal(keys[2], (V,)), jax.random.uniform(keys[3], (B, 12))
    scored_BS = labels_BS != IGNORED

    def by_definition(hidden_BSD, head_VD, bias_V):
        logits_BSV = 3 * jnp.tanh((hidden_BSD @ head_VD.T + bias_V) / 3)
        kl_BS = divergence_by_definition(logits_BSV, target_BSE @ target_head_VE.T - bias_V, 2.0)
        log_p_BSV = jax.nn.log_softmax(logits_BSV)
        nll_BS = -jnp.take_along_axis(log_p_BSV, jnp.maximum(labels_BS, 0)[:, :, None], -1)[:, :, 0]
        return jnp.sum(weight_BS * (0.3 * nll_BS + kl_BS), where=scored_BS)

    def by_hand(hidden_BSD, head_VD, bias_V, target_BSE, target_head_VE, labels_BS, weight_BS):
        target = Head(target_head_VE, -jax.lax.stop_gradient(bias_V))
        scores = linear_distillation(
            hidden_BSD, Head(head_VD, bias_V, 3.0), labels_BS, target_BSE, target, temperature=2.0,
            chunk_logits=chunk_logits,
        )  # fmt: skip
        return jnp.sum(weight_BS * (0.3 * scores.nll_BS + scores.divergence_BS))

    expected = jax.value_and_grad(by_definition, argnums=(0, 1))(hidden_BSD, head_VD, bias_V)
    with jax.set_mesh(build_mesh(Mesh(fsdp=2, context=context), jax.devices()[: 2 * context])):
        rows = [
            lay_out(x, "batch", "sequence", *["embed"] * (x.ndim - 2))
            for x in (hidden_BSD, target_BSE, labels_BS, weight_BS)
        ]
        value, gradients = jax.jit(jax.value_and_grad(by_hand, argnums=(0, 1, 3, 4)))(
            rows[0], head_VD, bias_V, rows[1], target_head_VE, *rows[2:]
        )
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for gradient, whole in zip(gradients, expected[1], strict=False):
        np.testing.assert_allclose(gradient, whole, rtol=1e-4, atol=1e-5)
    assert not any(np.any(gradient) for gradient in gradients[2:])


def test_a_target_may_exclude_tokens():
    """-inf has no share, and no gradient that is not a number."""
    logits_BSV, target_BSV = jnp.zeros((1, 1, 4)), jnp.array([[[0.0, 0.0, -jnp.inf, -jnp.inf]]])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(divergence(x, target_BSV, 1.0)))(logits_BSV)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], [-0.25, -0.25, 0.25, 0.25], rtol=1e-6)
    assert float(divergence(target_BSV, target_BSV, 2.0)[0, 0]) == 0.0


def test_a_divergence_has_the_memory_of_a_chunk_of_both_logits():
    long, vocab = 2048, 8192

    def temporary_bytes(chunk_logits):
        def loss(hidden_BSD, head_VD, target_BSD, target_VD):
            labels_BS, head, target = jnp.zeros((1, long), jnp.int32), Head(head_VD), Head(target_VD)
            scores = linear_distillation(
                hidden_BSD, head, labels_BS, target_BSD, target, temperature=2.0, chunk_logits=chunk_logits
            )
            return jnp.sum(scores.nll_BS + scores.divergence_BS)

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, long, 8), (vocab, 8)) * 2]
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert 4 * temporary_bytes(2**19) < 4 * long * vocab < temporary_bytes(2**30)
