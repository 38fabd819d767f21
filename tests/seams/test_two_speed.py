"""HRM and TRM: four training segments with a carry, replaced rows and halting, against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from looplm.config.schema import Model
from looplm.model.context import Context
from looplm.model.core import Inputs
from looplm.model.depth import Depth
from looplm.model.lm import LoopLM
from looplm.model.loop import run_loops
from looplm.model.output import Carry
from looplm.ops.attention import self_mask
from tests.seams.conftest import bound, fixture, relative_error
from tests.seams.two_speed import States, TwoSpeed

BATCH = ("inputs", "labels", "puzzle_identifiers")


def built(official):
    """(the model with the sketch as its core, its parameters, those beside it)."""
    c, w = official.config, official.weights
    D, N = c["hidden_size"], c["num_heads"]
    H, F = D // N, w["inner.L_level.layers.0.mlp.down_proj.weight"].shape[1]
    two_nets = any(name.startswith("inner.H_level") for name in w)
    config = Model(
        vocab_size=c["vocab_size"], dim=D, num_heads=N, hidden_dim=F, block_layers=c["L_layers"], attention_mask="full",
        norm="unit", norm_eps=c["rms_norm_eps"], norm_placement="post", final_norm=False, embedding_scale=D**0.5,
    )  # fmt: skip
    rngs = nnx.Rngs(0)
    model = LoopLM(config, rngs=rngs)
    inner_backprop = 1 if two_nets else c["L_cycles"]
    model.core = TwoSpeed(config, c["L_cycles"], inner_backprop, c["H_layers"] if two_nets else None, rngs=rngs)

    def stack(level, count):
        def get(name):
            return np.stack([w[f"inner.{level}.layers.{i}.{name}.weight"].T for i in range(count)])

        qkv = get("self_attn.qkv_proj").reshape(count, D, 3, N, H)
        gate_up = get("mlp.gate_up_proj").reshape(count, D, 2, F)
        attention = {"query": {"project": {"kernel": qkv[:, :, 0]}}, "key": {"project": {"kernel": qkv[:, :, 1]}}}
        attention |= {"value": {"kernel": qkv[:, :, 2]}}
        attention |= {"output": {"kernel": get("self_attn.o_proj").reshape(count, N, H, D)}}
        feed_forward = {"gate": gate_up[:, :, 0], "up": gate_up[:, :, 1], "down": get("mlp.down_proj")}
        feed_forward = {name: {"kernel": kernel} for name, kernel in feed_forward.items()}
        return {"layers": {"attention": attention, "feed_forward": feed_forward}}

    core = {"low": stack("L_level", c["L_layers"]), "first": np.stack([w["inner.H_init"], w["inner.L_init"]])}
    if two_nets:
        core["high"] = stack("H_level", c["H_layers"])
    params = {"embedding": {"table": w["inner.embed_tokens.embedding_weight"]}, "head": w["inner.lm_head.weight"]}
    beside = {"puzzle": w["inner.puzzle_emb.weights"], "q": w["inner.q_head.weight"], "q_bias": w["inner.q_head.bias"]}
    return model, jax.tree.map(jnp.asarray, params | {"core": core}), jax.tree.map(jnp.asarray, beside)


def segment(model, beside, rows, state, fresh_B, cycles, places):
    """(logits, halting logits, state) after the high cycles of a segment; those but the last have no gradient."""
    config, (B, S), D = model.config, rows["inputs"].shape, model.config.dim
    puzzle_BE = beside["puzzle"][rows["puzzle_identifiers"]]
    puzzle_BPD = jnp.pad(puzzle_BE, ((0, 0), (0, places * D - puzzle_BE.shape[1]))).reshape(B, places, D)
    embedded_BSD = jnp.concatenate([puzzle_BPD, model.embedding(rows["inputs"], jnp.float32)], axis=1)
    entered_BSD = config.embedding_scale * embedded_BSD
    positions_BS = jnp.broadcast_to(jnp.arange(places + S), (B, places + S))
    context = Context(positions_BS, self_mask(config, jnp.zeros_like(positions_BS)))
    inputs = Inputs(entered_BSD, entered_BSD, rows["inputs"])
    first = model.core.init_state(inputs, context)
    state = jax.tree.map(lambda new, old: jnp.where(fresh_B[:, None, None], new, old), first, state)
    body = model.body(context, model.halting)
    depth = Depth(1, num_detached=cycles - 1)
    state = run_loops(body.step, body.parameters, Carry(state, ()), inputs, depth, per_loop=body.per_loop).carry.state
    h_BSD = model.core.read(state)
    return model.logits(h_BSD[:, places:]), h_BSD[:, 0] @ beside["q"].T + beside["q_bias"], state


def stablemax_loss(logits_BSV, labels_BS):
    scores = jnp.where(logits_BSV >= 0, jnp.log1p(jnp.maximum(logits_BSV, 0)), -jnp.log1p(-jnp.minimum(logits_BSV, 0)))
    log_p_BSV = scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return -jnp.take_along_axis(log_p_BSV, jnp.maximum(labels_BS, 0)[..., None], axis=-1)[..., 0]


def binary_loss(logits, targets):
    return jnp.sum(jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits))))


@pytest.mark.parametrize("name", ["hrm_a", "trm_a"])
def test_four_segments_of_training(name):
    official = fixture(name)
    c, io = official.config, official.io
    model, params, beside = built(official)
    continues = model.core.high is not None
    places = c.get("puzzle_emb_len", 1)

    def loss(params, beside, batch, carry):
        lm = bound(model, params)
        halted_B = carry["halted"]
        rows = {
            key: jnp.where(halted_B.reshape(-1, *[1] * (value.ndim - 1)), value, carry["rows"][key])
            for key, value in batch.items()
        }
        steps_B = jnp.where(halted_B, 0, carry["steps"]) + 1
        logits_BSV, q_BQ, state = segment(lm, beside, rows, carry["state"], halted_B, c["H_cycles"], places)
        valid_BS = rows["labels"] != -100
        losses_BS = jnp.where(valid_BS, stablemax_loss(logits_BSV, rows["labels"]), 0)
        right_BS = valid_BS & (jnp.argmax(logits_BSV, axis=-1) == rows["labels"])
        exact_B = jnp.sum(right_BS, axis=1) == jnp.sum(valid_BS, axis=1)
        total = jnp.sum(jnp.sum(losses_BS, axis=1) / jnp.maximum(jnp.sum(valid_BS, axis=1), 1))
        total += 0.5 * binary_loss(q_BQ[:, 0], exact_B)
        last_B, kept = steps_B >= c["halt_max_steps"], jax.lax.stop_gradient(state)
        if continues:  # the target is what the model says once more, from the carry
            frozen = bound(model, jax.lax.stop_gradient(params)), jax.lax.stop_gradient(beside)
            _, next_BQ, _ = segment(*frozen, rows, kept, jnp.zeros_like(last_B), c["H_cycles"], places)
            target_B = jax.nn.sigmoid(jnp.where(last_B, next_BQ[:, 0], jnp.max(next_BQ, axis=1)))
            total += 0.5 * binary_loss(q_BQ[:, 1], jax.lax.stop_gradient(target_B))
        halted_B = last_B | (q_BQ[:, 0] > (q_BQ[:, 1] if continues else 0))
        return total, (logits_BSV, q_BQ, dict(rows=rows, steps=steps_B, halted=halted_B, state=kept))

    given = {key: jnp.asarray(io[f"step1/carry_in/data_{key}"]) for key in BATCH}
    state = States(*(jnp.asarray(io[f"step1/carry_in/{key}"]) for key in ("z_H", "z_L")))
    carry = dict(
        rows=given, state=state, **{key: jnp.asarray(io[f"step1/carry_in/{key}"]) for key in ("steps", "halted")}
    )
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for step in range(1, 5):
        batch = {key: jnp.asarray(io[f"batch{step}/{key}"]) for key in BATCH}
        (value, (logits, q_BQ, carry)), (grads, beside_grads) = run(params, beside, batch, carry)
        np.testing.assert_allclose(logits, io[f"step{step}/logits"], atol=2e-5)
        np.testing.assert_allclose(q_BQ[:, 0], io[f"step{step}/q_halt_logits"], atol=2e-5)
        np.testing.assert_allclose(value, io[f"step{step}/loss"], rtol=1e-5)
        for ours, theirs in zip(carry["state"], ("z_H", "z_L"), strict=True):
            np.testing.assert_allclose(ours, io[f"step{step}/carry_out/{theirs}"], atol=2e-5)
        for key in ("steps", "halted"):
            np.testing.assert_array_equal(carry[key], io[f"step{step}/carry_out/{key}"])
        for key in BATCH:
            np.testing.assert_array_equal(carry["rows"][key], io[f"step{step}/carry_out/data_{key}"])
        if step < 3:
            stored, low = load_file(official.folder / f"grads_step{step}.safetensors"), grads["core"]["low"]["layers"]
            for found, theirs in (
                (grads["head"], "inner.lm_head.weight"),
                (grads["embedding"]["table"], "inner.embed_tokens.embedding_weight"),
                (beside_grads["q"], "inner.q_head.weight"),
                (low["feed_forward"]["down"]["kernel"][0].T, "inner.L_level.layers.0.mlp.down_proj.weight"),
            ):
                assert relative_error(found, stored[theirs]) < 1e-4
