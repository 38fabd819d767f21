"""MoEUT with official weights gives the official numbers: experts in feed-forward and attention (tests/golden/moeut_a).

Others of its sizes, in a folder that LOOPLM_GOLDEN names, are run too.

Both are run in float32 against float32 at the tolerance named there, and in float64 at 1e-9.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from looplm.errors import UserError
from looplm.infer.cache import new_cache, parse_policy
from looplm.infer.items import Engine
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import config_of, folders


@pytest.fixture(scope="module", params=folders("moeut"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def sizes(folder):
    """The official config, by names that the repository gives its keys."""
    return SimpleNamespace(**config_of(folder))


@pytest.fixture(scope="module")
def out(lm, io):
    return jax.jit(lm)(io["input_ids"])


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def chosen(scores, count):
    return np.sort(np.argsort(-scores, axis=-1)[..., :count], axis=-1)


def test_logits_and_states(lm, out, io, sizes):
    np.testing.assert_allclose(out.logits(sizes.n_repeats), io["logits"], atol=2e-5)
    ends = io["layer_outputs"][sizes.group_size - 1 :: sizes.group_size]
    np.testing.assert_allclose(out.hidden_RBSD, lm.functional.bind(lm.params).final_norm(ends), atol=2e-5)


def test_scores_and_choices_of_every_visit(out, io, sizes):
    """Of the routers of the feed-forward, and of those of values and outputs of every head."""
    scores = sigmoid(out.router_logits_RLBSE).reshape(io["ff_scores"].shape)
    np.testing.assert_allclose(scores, io["ff_scores"], atol=1e-5)
    np.testing.assert_array_equal(chosen(scores, sizes.ff_k), io["ff_topk_index"])
    both = sigmoid(out.attention_logits_RLBSE).reshape(*io["ff_scores"].shape[:3], 2, *io["att_v_scores"].shape[-2:])
    for i, name in enumerate(("v", "o")):
        np.testing.assert_allclose(both[..., i, :, :], io[f"att_{name}_scores"], atol=1e-5)
        np.testing.assert_array_equal(chosen(both[..., i, :, :], sizes.att_k), io[f"att_{name}_topk_index"])


def test_every_layer_from_the_state_before_it(lm, io, sizes):
    """Of a model that has this layer alone and gives its state."""
    alone = FunctionalLM(lm.model.model_copy(update={"block_layers": 1, "final_norm": False}))
    tokens_BS = jnp.asarray(io["input_ids"])
    context = Context(
        jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape),
        self_mask(lm.model, jnp.zeros_like(tokens_BS)),
    )
    rest = {name: lm.params[name] for name in ("embedding", "head", "head_bias")}

    @jax.jit
    def run(layer, state_BSD):
        params = rest | {"core": {"block": {"layers": layer}}}
        return Forward(alone.bind(params), tokens_BS, context, Depth(1), jnp.float32, start=state_BSD)().read[0]

    states = [np.asarray(lm.params["embedding"]["table"])[io["input_ids"]], *io["layer_outputs"]]
    layers = lm.params["core"]["block"]["layers"]
    for visit in range(sizes.n_layers):
        layer = jax.tree.map(lambda leaf, i=visit % sizes.group_size: leaf[i : i + 1], layers)
        np.testing.assert_allclose(run(layer, states[visit]), states[visit + 1], atol=5e-5)


def assert_gradients(folder, named, relative):
    expected = load_file(folder / "grads.safetensors")
    assert set(named) == set(expected)
    for name, theirs in expected.items():
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(named[name]) / scale, theirs / scale, atol=relative, err_msg=name)


def loss_and_gradients(lm, io):
    loss, grads = jax.jit(lm.loss_and_grads)(jnp.asarray(io["input_ids"]), jnp.asarray(io["targets"]))
    return loss, lm.official_tensors(grads)


def test_loss_with_both_entropies_and_all_gradients(folder, lm, io):
    loss, named = loss_and_gradients(lm, io)
    assert loss == pytest.approx(io["ce"] + io["reg_loss"].item(), abs=1e-6)
    assert_gradients(folder, named, 1e-4)


def test_float64_agrees_to_nine_digits(folder, io, sizes):
    with jax.enable_x64(True):
        lm = looplm.load(folder, dtype="float64")
        np.testing.assert_allclose(jax.jit(lm)(io["input_ids"]).logits(sizes.n_repeats), io["logits_f64"], atol=1e-9)


def test_a_cache_gives_the_same_logits_token_by_token(lm, io, sizes):
    """The official one does not: it rotates every query as the first."""
    tokens_BS = jnp.asarray(io["input_ids"])
    B, S = tokens_BS.shape
    model, R = lm.functional.bind(lm.params), sizes.n_repeats
    cache = new_cache(lm.model, batch_size=B, length=S, policy=parse_policy("each", R), dtype=jnp.float32)

    @jax.jit
    def step(token_B, position, cache):
        streams_B, positions_B1 = jnp.zeros(B, jnp.uint32), jnp.full((B, 1), position)
        engine = Engine(model, model.halting, R, jnp.float32, S, lm.model.vocab_size, streams_B)
        items, cache = engine.enter(cache, token_B[:, None], positions_B1, positions_B1 >= 0)
        for _ in range(R):
            items, cache = engine.advance(cache, items, together=True)
        logits_B1V, cache = engine.leave(cache, items)
        return logits_B1V[:, 0], cache

    for position in range(S):
        logits_BV, cache = step(tokens_BS[:, position], position, cache)
        np.testing.assert_allclose(logits_BV, io["logits"][:, position], atol=2e-5)


def test_weights_go_back_to_their_official_names(folder, lm):
    stored = load_file(folder / "model.safetensors")
    named = lm.official_tensors(lm.params)
    assert set(named) == set(stored)
    for name, value in stored.items():
        np.testing.assert_array_equal(named[name], value, err_msg=name)


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"att_expert_dropout": 0.05}])
def test_dropout_is_refused(folder, tmp_path, change):
    config = config_of(folder)
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=f"{next(iter(change))}=.*looplm drops nothing"):
        looplm.load(tmp_path)
