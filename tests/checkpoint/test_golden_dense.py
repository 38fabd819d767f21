"""Official dense models give the official numbers: with one loop, or a Nanbeige's (tests/golden/*/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from looplm.checkpoint.adapters import find
from looplm.infer.generate import generate
from tests.checkpoint.folders import GOLDEN, config_of, folders

FAMILIES = ("llama", "qwen3", "olmo2", "nanbeige")


@pytest.fixture(scope="module", params=folders(*FAMILIES), ids=lambda folder: folder.name)
def folder(request):
    return request.param


def test_logits_after_every_loop(lm, io):
    out = jax.jit(lm)(io["input_ids"])
    loops = lm.loop.num_loops
    np.testing.assert_allclose(out.logits(loops), io["logits"], atol=4e-5)
    np.testing.assert_allclose(out.hidden_RBSD[loops - 1], io["hidden_states"][-1], atol=4e-5)


def test_logits_in_float64_agree_to_nine_digits(folder, io):
    with jax.enable_x64(True):
        lm = looplm.load(folder, dtype="float64")
        found = jax.jit(lambda tokens_BS: lm(tokens_BS).logits(lm.loop.num_loops))(io["input_ids"])
        np.testing.assert_allclose(found, io["logits_f64"], atol=1e-9)


def test_loss_and_the_norms_of_all_gradients(lm, io):
    tokens_BS = jnp.asarray(io["input_ids"])
    labels_BS = jnp.concatenate([tokens_BS[:, 1:], jnp.full_like(tokens_BS[:, :1], -100)], axis=1)
    loss, grads = jax.jit(lm.loss_and_grads)(tokens_BS, labels_BS)
    assert loss == pytest.approx(io["loss_labels"], rel=1e-5)
    named = jax.jit(lm.official_tensors)(grads)
    norms = {f"gradnorm/{name}": float(np.linalg.norm(value)) for name, value in named.items()}
    expected = {name: float(value) for name, value in io.items() if name.startswith("gradnorm/")}
    assert norms == pytest.approx(expected, rel=2e-4)


def test_the_official_tokens_are_written(lm, io):
    prompts_BP, ids_BM = io["gen_prompt"], io["gen_ids"]
    rows = generate(
        lm.functional, lm.params, list(prompts_BP), num_loops=lm.loop.num_loops, exit=None,
        max_tokens=ids_BM.shape[1] - prompts_BP.shape[1], temperature=0.0, seed=0, end_ids=[],
        num_ids=lm.model.vocab_size,
    )  # fmt: skip
    np.testing.assert_array_equal(np.stack([row.tokens for row in rows]), ids_BM[:, prompts_BP.shape[1] :])


def test_weights_go_back_to_their_official_names(lm, folder):
    stored = {name: value for file in folder.glob("model*.safetensors") for name, value in load_file(file).items()}
    exported = jax.jit(lm.official_tensors)(lm.params)
    assert set(exported) == set(stored) - ({"lm_head.weight"} if lm.model.tie_embeddings else set())
    for name, value in exported.items():
        np.testing.assert_array_equal(value, np.float32(stored[name]), err_msg=name)


@pytest.mark.parametrize("name", ["llama_a", "qwen3_a", "olmo2_a"])
def test_both_layouts_of_a_config_say_the_same(name):
    first, second = (understood(config_of(GOLDEN / name, file_name)) for file_name in ("config.json", "config_v5.json"))
    assert first == second


def understood(config):
    adapter = find(config)
    return adapter.model(adapter.config.understand(config))


def test_a_nanbeige_without_the_norm_between_loops_has_it_before_the_head():
    config = config_of(GOLDEN / "nanbeige_a")
    model = understood(config | {"skip_loop_final_norm": True})
    assert (model.norm_at_loop_end, model.final_norm) == (False, True)
