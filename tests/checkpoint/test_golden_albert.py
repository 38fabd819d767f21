"""ALBERT with official weights: states, logits, loss and all gradients (tests/golden/albert_a/README.md), and groups of
several layers against a definition written out here. Other variants, in a folder that LOOPLM_GOLDEN names, are run too.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from looplm.api import LoadedLM
from looplm.checkpoint.adapters import ADAPTERS
from looplm.checkpoint.adapters.base import to_official
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import folders

ALBERT = ADAPTERS["albert"]
PADDING = 0
"""The id of it where a config.json names none; null is no id at all."""
GROUPED = {
    "architectures": ["AlbertForPreTraining"], "vocab_size": 31, "embedding_size": 6, "hidden_size": 12,
    "num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2, "num_attention_heads": 3,
    "intermediate_size": 10, "hidden_act": "gelu", "max_position_embeddings": 9,
}  # fmt: skip


@pytest.fixture(scope="module", params=folders("albert"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


def output_of(lm, params, io, num_loops, dtype=jnp.float32):
    """Of a pass with types, and with keys that nobody sees."""
    tokens_BS = jnp.asarray(io["input_ids"], jnp.int32)
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    mask = self_mask(lm.model, jnp.zeros_like(tokens_BS)).among(jnp.asarray(io["attention_mask"]) == 1)
    context = Context(positions_BS, mask, types_BS=jnp.asarray(io["token_type_ids"], jnp.int32))
    model = lm.functional.bind(params)
    output = Forward(model, tokens_BS, context, Depth(num_loops), dtype)()
    return model.logits(output.read[0]), output.state


def loss_of(logits_BSV, labels_BS):
    scored_BS = labels_BS != -100
    nll_BS = -jnp.take_along_axis(jax.nn.log_softmax(logits_BSV), jnp.maximum(labels_BS, 0)[..., None], axis=2)[..., 0]
    return jnp.sum(nll_BS * scored_BS) / jnp.sum(scored_BS)


def test_states_after_every_loop_and_logits(lm, io):
    """Loops of a group belong to the whole depth, so states in between are compared where there is one group."""
    loops = lm.loop.num_loops
    for loop in range(1, loops + 1) if lm.model.core.groups == 1 else [loops]:
        logits_BSV, state_BSD = jax.jit(lambda params, loop=loop: output_of(lm, params, io, loop))(lm.params)
        np.testing.assert_allclose(state_BSD, io["hidden_states"][loop], atol=1e-4)
    np.testing.assert_allclose(logits_BSV, io["logits"], atol=1e-4)
    plain = jax.jit(lm)(jnp.asarray(io["input_ids"]))
    np.testing.assert_allclose(plain.logits(loops), io["logits_no_mask_no_types"], atol=1e-4)


def test_logits_in_float64_agree_to_nine_digits(folder, io):
    with jax.enable_x64(True):
        lm = looplm.load(folder, dtype="float64")
        logits_BSV, _ = jax.jit(lambda params: output_of(lm, params, io, lm.loop.num_loops, jnp.float64))(lm.params)
        np.testing.assert_allclose(logits_BSV, io["logits_f64"], atol=1e-9)


def test_loss_and_all_gradients(lm, io, folder):
    """That of the padding's embedding is not compared where it is read: torch leaves its input side out."""
    labels_BS = jnp.asarray(io["labels"], jnp.int32)

    def loss(params):
        return loss_of(output_of(lm, params, io, lm.loop.num_loops)[0], labels_BS)

    value, grads = jax.jit(jax.value_and_grad(loss))(lm.params)
    assert float(value) == pytest.approx(float(io["loss"]), rel=1e-5)
    found, expected = lm.official_tensors(grads), load_file(folder / "grads.safetensors")
    assert set(found) == set(expected)
    # That of a bias on keys is 0 but for rounding, so nothing is measured by its own size.
    scale = 1e-5 * max(np.abs(gradient).max() for gradient in expected.values())
    padding = json.loads((folder / "config.json").read_text()).get("pad_token_id", PADDING)
    for name, gradient in expected.items():
        ours = np.array(found[name])
        if name == "albert.embeddings.word_embeddings.weight" and (io["input_ids"] == padding).any():
            ours[padding] = gradient[padding]
        np.testing.assert_allclose(ours, gradient, rtol=2e-4, atol=scale, err_msg=name)


def test_weights_go_back_to_their_official_names(lm, folder):
    stored, exported = load_file(folder / "model.safetensors"), jax.jit(lm.official_tensors)(lm.params)
    assert set(exported) == set(stored) - set(ALBERT.copies)
    for name, value in exported.items():
        np.testing.assert_array_equal(value, stored[name], err_msg=name)


def written_out(weights, config, ids_BS, types_BS):
    """Return (logits, pooled logits) by official names, one visit of a layer after the other."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + jax.lax.erf(x / np.sqrt(2)))

    def layer(name, x):
        def heads(part):
            h = linear(f"{name}.attention.{part}", x)
            return h.reshape(*h.shape[:2], config["num_attention_heads"], -1)

        q, k, v = map(heads, ("query", "key", "value"))
        weight = jax.nn.softmax(jnp.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(q.shape[-1]))
        out = linear(f"{name}.attention.dense", jnp.einsum("bnst,btnh->bsnh", weight, v).reshape(x.shape))
        x = norm(f"{name}.attention.LayerNorm", x + out)
        inner = linear(f"{name}.ffn_output", gelu(linear(f"{name}.ffn", x)))
        return norm(f"{name}.full_layer_layer_norm", x + inner)

    tables = "albert.embeddings"
    words_VE = weights[f"{tables}.word_embeddings.weight"]
    x = words_VE[ids_BS] + weights[f"{tables}.token_type_embeddings.weight"][types_BS]
    x = norm(f"{tables}.LayerNorm", x + weights[f"{tables}.position_embeddings.weight"][: ids_BS.shape[1]])
    x = linear("albert.encoder.embedding_hidden_mapping_in", x)
    for visit in range(config["num_hidden_layers"]):
        group = int(visit / (config["num_hidden_layers"] / config["num_hidden_groups"]))
        for i in range(config["inner_group_num"]):
            x = layer(f"albert.encoder.albert_layer_groups.{group}.albert_layers.{i}", x)
    narrow = norm("predictions.LayerNorm", gelu(linear("predictions.dense", x)))
    pooled = jnp.tanh(linear("albert.pooler", x[:, 0]))
    return narrow @ words_VE.T + weights["predictions.bias"], linear("sop_classifier.classifier", pooled)


def test_groups_of_layers_and_the_sequence_head_are_what_they_are_written_out():
    with jax.enable_x64(True):
        stored = ALBERT.config.understand(GROUPED | {"model_type": "albert"})
        model = ALBERT.model(stored).model_copy(update={"dtype": "float64"})
        lm = LoadedLM(model, ALBERT.loop(stored), ALBERT.objective, {}, adapter=ALBERT)
        rng = np.random.default_rng(3)
        params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape)), lm.functional.shapes)
        io = {"input_ids": rng.integers(31, size=(2, 7)), "token_type_ids": rng.integers(2, size=(2, 7))}
        io["attention_mask"] = np.ones((2, 7), int)
        labels_BS = jnp.asarray(rng.integers(31, size=(2, 7)))

        def ours(params):
            logits_BSV, state_BSD = output_of(lm, params, io, lm.loop.num_loops, jnp.float64)
            return loss_of(logits_BSV, labels_BS) + jnp.sum(
                jnp.sin(lm.functional.bind(params).sequence_head(state_BSD))
            )

        def plain(weights):
            logits_BSV, classes_BC = written_out(weights, GROUPED, io["input_ids"], io["token_type_ids"])
            return loss_of(logits_BSV, labels_BS) + jnp.sum(jnp.sin(classes_BC))

        value, grads = jax.jit(jax.value_and_grad(ours))(params)
        expected, gradients = jax.jit(jax.value_and_grad(plain))(to_official(ALBERT.tensors(model), params))
        assert float(value) == pytest.approx(float(expected), abs=1e-9)
        found = to_official(ALBERT.tensors(model), grads)
        assert set(found) == set(gradients)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(found[name], gradient, atol=1e-9, err_msg=name)
