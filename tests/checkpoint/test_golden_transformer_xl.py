"""Transformer-XL with official weights gives the official numbers over consecutive segments (tests/golden/txl_a):
states, memories, logits, losses and all gradients; what the rules of training keep is the official memory.

Other variants, in a folder that LOOPLM_GOLDEN names, are run too.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.remembered import Remembered
from looplm.ops.attention import self_mask
from looplm.train.batch import Batch
from tests.checkpoint.folders import config_of, folders


@pytest.fixture(scope="module", params=folders("txl"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


def segments_of(lm, io, params, dtype=jnp.float32):
    """(sum of the mean losses, what every segment gave), with the memory that training keeps from one to the next."""
    model, total, seen = lm.functional.bind(params), 0.0, []
    rules = Remembered(lm.model.memory, loops=1, layers=lm.model.block_layers)
    carry = None
    for data, target in zip(io["data"], io["target"], strict=True):
        tokens_BS = jnp.asarray(data.T)
        (B, S), begun = tokens_BS.shape, carry is not None
        ones_BS = jnp.ones_like(tokens_BS)
        positions_BS = jnp.broadcast_to(jnp.arange(S) + S * begun, (B, S))
        rows = Batch(tokens_BS, jnp.asarray(target.T), ones_BS, positions_BS, jnp.arange(B))
        if not begun:
            state = jax.ShapeDtypeStruct((B, S, lm.model.dim), dtype)
            carry = rules.empty(rows, state)
        forward = Forward(model, tokens_BS, Context(positions_BS, self_mask(lm.model, ones_BS)), Depth(1), dtype)
        out = rules.enter(carry, forward, jax.random.key(0))()
        carry = rules.leave(carry, rows, out, jax.random.key(0))
        logits_BSV = model.logits(out.read[0])
        log_p_BSV = jax.nn.log_softmax(logits_BSV)
        loss_BS = -jnp.take_along_axis(log_p_BSV, rows.labels[..., None], axis=-1)[..., 0]
        total += jnp.mean(loss_BS)
        seen.append({"hidden": out.read[0], "logits": logits_BSV, "loss": loss_BS, "carry": carry})
    return total, seen


@pytest.fixture(scope="module")
def ran(lm, io):
    run = jax.value_and_grad(lambda params: segments_of(lm, io, params), has_aux=True)
    return jax.jit(run)(lm.params)


def test_states_memories_and_losses(lm, io, ran):
    (total, seen), _ = ran
    np.testing.assert_allclose(total, io["total_loss"], rtol=1e-6)
    for number, found in enumerate(seen, start=1):
        for name in ("hidden", "logits", "loss"):
            official = np.moveaxis(io[f"seg{number}/{name}"], 1, 0)
            np.testing.assert_allclose(found[name], official, atol=2e-5, err_msg=f"{name} of segment {number}")
        mems_LBMD = io[f"seg{number}/mems"][:-1].transpose(0, 2, 1, 3)
        length = mems_LBMD.shape[2]
        states_LBMD = np.moveaxis(found["carry"].states_BRLMD[:, 0], 0, 1)
        np.testing.assert_allclose(states_LBMD[:, :, states_LBMD.shape[2] - length :], mems_LBMD, atol=2e-5)
        open_M = np.arange(states_LBMD.shape[2]) >= states_LBMD.shape[2] - length
        assert (np.asarray(found["carry"].open_BM) == open_M).all()


def test_all_gradients(folder, lm, ran):
    _, gradient = ran
    found, official = lm.official_tensors(gradient), load_file(folder / "grads.safetensors")
    assert set(official) <= set(found)
    assert set(found) - set(official) <= {"crit.out_layers.0.weight"}
    for name, expected in official.items():
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found[name] / largest, expected / largest, atol=1e-5, err_msg=name)


def test_in_float64(lm, io):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), lm.params)
        _, seen = jax.jit(lambda params: segments_of(lm, io, params, jnp.float64))(params)
    for number, found in enumerate(seen, start=1):
        official = np.moveaxis(io[f"seg{number}/logits_f64"], 1, 0)
        np.testing.assert_allclose(found["logits"], official, atol=1e-9)


def test_a_folder_that_asks_for_another_model_is_refused(folder, tmp_path):

    for key, value in (("ext_len", 2), ("attn_type", 2), ("div_val", 4), ("cutoffs", [20])):
        (tmp_path / "config.json").write_text(json.dumps(config_of(folder) | {key: value}))
        with pytest.raises(UserError, match=key):
            looplm.load(tmp_path)
