"""Official models with experts, run with one loop, give the official numbers (tests/golden/*/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from looplm.checkpoint.adapters import find
from looplm.errors import UserError
from tests.checkpoint.folders import GOLDEN, config_of, folders


@pytest.fixture(scope="module", params=folders("mixtral", "olmoe", "qwen3moe"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_logits_and_router_logits(lm, io):
    out = jax.jit(lm)(io["input_ids"])
    np.testing.assert_allclose(out.logits(1), io["logits"], atol=4e-5)
    np.testing.assert_allclose(out.router_logits_RLBSE[0], io["router_logits"], atol=1e-5)
    np.testing.assert_allclose(out.hidden_RBSD[0], io["hidden_states"][-1], atol=4e-5)


def test_loss_with_the_balance_loss_and_the_norms_of_all_gradients(lm, io):
    tokens_BS = jnp.asarray(io["input_ids"])
    labels_BS = jnp.concatenate([tokens_BS[:, 1:], jnp.full_like(tokens_BS[:, :1], -100)], axis=1)
    loss, grads = jax.jit(lm.loss_and_grads)(tokens_BS, labels_BS)
    assert loss == pytest.approx(io["loss_total"], rel=1e-5)
    named = jax.jit(lm.official_tensors)(grads)
    norms = {f"gradnorm/{name}": float(np.linalg.norm(value)) for name, value in named.items()}
    expected = {name: float(value) for name, value in io.items() if name.startswith("gradnorm/")}
    assert norms == pytest.approx(expected, rel=1e-4)


def test_export_gives_the_imported_tensors(lm, folder):
    stored = load_file(folder / "model.safetensors")
    exported = jax.jit(lm.official_tensors)(lm.params)
    assert set(exported) == set(stored) - ({"lm_head.weight"} if lm.model.tie_embeddings else set())
    for name, value in exported.items():
        np.testing.assert_array_equal(value, stored[name], err_msg=name)


def model_of(config):
    adapter = find(config)
    return adapter.model(adapter.config.understand(config))


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"mlp_only_layers": [], "decoder_sparse_step": 2, "num_hidden_layers": 6}, (0, 2, 4)),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 2, "num_hidden_layers": 5}, (0, 1, 2, 4)),
        ({"mlp_only_layers": None, "decoder_sparse_step": 1}, ()),
    ],
)
def test_which_layers_of_qwen3_are_dense(changes, dense):
    config = config_of(GOLDEN / "qwen3moe_a") | changes
    assert model_of(config).feed_forward.dense_layers == dense


def test_what_decides_over_windows_and_weights():
    windows = {
        "mixtral_a": ({"sliding_window": 7}, 7),
        "qwen3moe_a": ({"sliding_window": 7, "use_sliding_window": True}, 7),
    }
    for name, (changes, window) in windows.items():
        config = config_of(GOLDEN / name) | changes
        assert model_of(config).attention_window == window
    for name in ("olmoe_a", "qwen3moe_a"):
        for renormalise in (True, False):
            config = config_of(GOLDEN / name) | {"norm_topk_prob": renormalise}
            assert model_of(config).feed_forward.renormalise is renormalise


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("olmoe_a", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("mixtral_a", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("qwen3moe_a", {"mlp_only_layers": [0, 1, 2]}, "leave none of 3 layers with experts"),
    ],
)
def test_what_is_not_known_is_refused(name, changes, message):
    config = config_of(GOLDEN / name) | changes
    with pytest.raises(UserError, match=message):
        model_of(config)
