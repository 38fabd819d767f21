"""HRM, TRM and URM with official weights: segments of training and of evaluation as the authors' code has them
(tests/golden/*/README.md), and all gradients of a segment's loss, written out here as the READMEs say it.

Other variants, in a folder that LOOPLM_GOLDEN names, are run too.
"""

import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import looplm
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import GOLDEN, config_of, folders
from tests.checkpoint.reasoners import STEPS, assert_all_gradients, carried, loaded, rows_in_work

NO_LABEL = -100
LOGITS = {"trm": 1e-4}
"""Tolerance on logits where the README names another than 2e-5: deeper segments round more."""


@pytest.fixture(scope="module", params=folders("hrm", "trm", "urm"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


def tolerance(folder):
    return LOGITS.get(folder.name.partition("_")[0], 2e-5)


def segment(lm, params, rows, state, fresh_B):
    """One segment. Returns (logits, logits of halting, state)."""
    model, loop = lm.functional.bind(params), lm.loop
    tokens_BS = rows["inputs"]
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    mask = self_mask(lm.model, jnp.zeros_like(positions_BS))
    context = Context(positions_BS, mask, ids_B=rows["puzzle_identifiers"])
    depth = Depth(loop.backprop_loops, num_detached=loop.num_loops - loop.backprop_loops)
    dtype = jnp.dtype(lm.model.dtype)
    output = Forward(model, tokens_BS, context, depth, dtype, start=state, fresh_B=fresh_B)()
    return model.logits(output.read[0]), output.sequence_gate_BQ, output.state


@cache
def compiled(folder, dtype="float32"):
    lm, _ = loaded(folder, dtype)
    return jax.jit(lambda *given: segment(lm, lm.params, *given))


def test_every_segment_of_training_from_its_recorded_carry(folder):
    _, io = loaded(folder)
    for step in STEPS:
        rows, fresh_B = rows_in_work(io, step)
        logits_BSV, q_BQ, state = compiled(folder)(rows, carried(io, f"step{step}/carry_in"), fresh_B)
        np.testing.assert_allclose(logits_BSV, io[f"step{step}/logits"], atol=tolerance(folder))
        for q_B, name in zip(q_BQ.T, ("q_halt_logits", "q_continue_logits"), strict=True):
            np.testing.assert_allclose(q_B, io[f"step{step}/{name}"], atol=tolerance(folder))
        for found, theirs in zip(*map(jax.tree.leaves, (state, carried(io, f"step{step}/carry_out"))), strict=True):
            np.testing.assert_allclose(found, theirs, atol=2e-5)


def test_segments_of_evaluation_that_never_halt(folder):
    """In float64: from segment to segment the rounding of float32 grows, theirs alone is allowed for."""
    with jax.enable_x64(True):
        _, io = loaded(folder, "float64")
        rows = {name: jnp.asarray(io[f"batch1/{name}"]) for name in ("inputs", "labels", "puzzle_identifiers")}
        state, fresh_B = carried(io, "step1/carry_in"), jnp.ones(rows["inputs"].shape[0], bool)
        for step in range(1, 1 + sum(name.endswith("/halted") and name.startswith("eval") for name in io)):
            logits_BSV, q_BQ, state = compiled(folder, "float64")(rows, state, fresh_B)
            np.testing.assert_allclose(logits_BSV, io[f"eval{step}/logits"], atol=tolerance(folder))
            np.testing.assert_allclose(q_BQ[:, 0], io[f"eval{step}/q_halt_logits"], atol=tolerance(folder))
            fresh_B = jnp.zeros_like(fresh_B)


def stablemax_nll(logits_BSV, labels_BS):
    wide_BSV = logits_BSV.astype(jnp.float64)
    s_BSV = jnp.where(wide_BSV >= 0, wide_BSV + 1, 1 / (1 - jnp.minimum(wide_BSV, 0)))
    p_BSV = s_BSV / jnp.sum(s_BSV, axis=-1, keepdims=True)
    chosen_BS1 = jnp.take_along_axis(p_BSV, jnp.maximum(labels_BS, 0)[..., None], axis=-1)
    return -jnp.log(chosen_BS1[..., 0])


def binary(logits_B, targets_B):
    """Summed."""
    return jnp.sum(jnp.logaddexp(0, logits_B) - logits_B * targets_B)


def training_loss(folder, step, dtype):
    """The loss of a segment as a function of (parameters, state): the README's."""
    lm, io = loaded(folder, dtype)
    (rows, fresh_B), most = rows_in_work(io, step), int(io["step4/carry_out/steps"].max())
    most = config_of(folder).get("halt_max_steps", config_of(folder).get("loops", most))
    steps_B = jnp.where(fresh_B, 0, io[f"step{step}/carry_in/steps"]) + 1

    def loss(params, state):
        logits_BSV, q_BQ, after = segment(lm, params, rows, state, fresh_B)
        labelled_BS = rows["labels"] != NO_LABEL
        nll_BS = jnp.where(labelled_BS, stablemax_nll(logits_BSV, rows["labels"]), 0)
        total = jnp.sum(jnp.sum(nll_BS, axis=1) / jnp.maximum(jnp.sum(labelled_BS, axis=1), 1))
        right_BS = jnp.argmax(logits_BSV, axis=-1) == rows["labels"]
        total += 0.5 * binary(q_BQ[:, 0], jnp.all(right_BS | ~labelled_BS, axis=1) * 1.0)
        if f"step{step}/target_q_continue" in io:  # that of the next segment
            _, next_BQ, _ = segment(lm, *jax.lax.stop_gradient((params, rows, after)), jnp.zeros_like(fresh_B))
            target_B = jax.nn.sigmoid(jnp.where(steps_B >= most, next_BQ[:, 0], jnp.max(next_BQ, axis=1)))
            total += 0.5 * binary(q_BQ[:, 1], jax.lax.stop_gradient(target_B))
        return total, (logits_BSV, after)

    return lm, loss


@pytest.mark.parametrize("step", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_loss_and_all_gradients(folder, step):
    with jax.enable_x64(True):  # the official loss is float64
        lm, loss = training_loss(folder, step, "float32")
        state = carried(loaded(folder)[1], f"step{step}/carry_in")
        (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(lm.params, state)
    np.testing.assert_allclose(value, loaded(folder)[1][f"step{step}/loss"], rtol=1e-5)
    assert_all_gradients(folder, step, lm, grads, 1e-4)


@pytest.mark.slow
def test_float64_agrees_to_nine_digits_over_all_segments(folder):
    """From segment to segment, since the recorded carries are float32; gradients are stored in float32."""
    with jax.enable_x64(True):
        _, io = loaded(folder, "float64")
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), carried(io, "step1/carry_in"))
        for step in STEPS:
            lm, loss = training_loss(folder, step, "float64")
            (value, (logits_BSV, after)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(lm.params, state)
            np.testing.assert_allclose(logits_BSV, io[f"step{step}/logits_f64"], atol=1e-9)
            np.testing.assert_allclose(value, io[f"step{step}/loss_f64"], atol=1e-9)
            if step < 3:
                assert_all_gradients(folder, step, lm, grads, 1e-5)
            state = after


def test_released_weights_have_a_prefix(tmp_path):
    """That of a compiled module in a wrapper."""
    folder = tmp_path / "trm"
    shutil.copytree(GOLDEN / "trm_a", folder)
    stored = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.model.{name}": value for name, value in stored.items()}, folder / "model.safetensors")
    leaves = (jax.tree.leaves(looplm.load(at).params) for at in (folder, GOLDEN / "trm_a"))
    for ours, theirs in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs)
