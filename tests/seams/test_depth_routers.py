"""Mixture of Recursions (arXiv 2507.10524): routers over depth as halting rules, against the official code."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from looplm.config.schema import Model
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.halting import Never
from looplm.model.layers import parameter
from looplm.model.lm import LoopLM
from looplm.ops.attention import self_mask
from tests.seams.conftest import bound, fixture, relative_error


class Chosen(NamedTuple):
    active_BS: jax.Array
    weight_BS: jax.Array
    auxiliary_B: jax.Array


class ExpertChoice(Never):
    """In every loop its own router takes the best share of the tokens that were in the loop before."""

    def __init__(self, dim, capacities, scale, *, rngs):
        self.capacities, self.scale = capacities, scale
        zeros = nnx.initializers.zeros
        self.kernel = parameter(rngs, zeros, (dim,), ("embed",), wide=True, loops=len(capacities))

    def init(self, h_BSD):
        zeros_BS = jnp.zeros(h_BSD.shape[:2])
        return Chosen(zeros_BS == 0, zeros_BS, zeros_BS[:, 0])

    def admit(self, acc, h_BSD, context):
        counts = jnp.array([max(1, int(share * h_BSD.shape[1])) for share in self.capacities])
        logits_BS = h_BSD @ self.kernel.get_value()
        rank_BS = jnp.argsort(jnp.argsort(jnp.where(acc.active_BS, -logits_BS, jnp.inf), axis=1), axis=1)
        active_BS = rank_BS < counts[context.loop.number_B[0]]
        losses_BS = jax.nn.softplus(logits_BS) - active_BS * logits_BS
        loss_B = jnp.sum(losses_BS, axis=1, where=acc.active_BS) / jnp.sum(acc.active_BS, axis=1)
        return Chosen(active_BS, self.scale * jax.nn.sigmoid(logits_BS), acc.auxiliary_B + loss_B), active_BS

    def update(self, acc, old, new, h_BSD, context):
        return old + jnp.where(acc.active_BS, acc.weight_BS, 0)[..., None] * new, acc


class Assigned(NamedTuple):
    depth_BS: jax.Array
    weight_BS: jax.Array
    first_BSD: jax.Array
    left_BS: jax.Array


class TokenChoice(Never):
    """Every token is given its depth before the first loop, and leaves after it."""

    def __init__(self, dim, num_loops, *, rngs):
        self.kernel = parameter(rngs, nnx.initializers.zeros, (dim, num_loops), ("embed", "one"), wide=True)

    def init(self, h_BSD):
        p_BSR = jax.nn.softmax(h_BSD @ self.kernel.get_value())
        depth_BS = jnp.argmax(p_BSR, axis=-1)
        return Assigned(depth_BS, jnp.max(p_BSR, axis=-1), h_BSD, depth_BS < 0)

    def admit(self, acc, h_BSD, context):
        active_BS = acc.depth_BS >= context.loop.number_B[:, None]
        return acc._replace(left_BS=~active_BS), active_BS

    def update(self, acc, old, new, h_BSD, context):
        return jnp.where(acc.left_BS[..., None], old, new), acc

    def finish(self, acc, h_BSD):
        return acc.first_BSD + acc.weight_BS[..., None] * h_BSD


def built(official, *, expert):
    c, w = official.config, official.weights
    llama = c["llama"]
    D, N, K, F = (
        llama[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    )
    H = D // N
    config = Model(
        vocab_size=llama["vocab_size"], dim=D, num_heads=N, num_kv_heads=K, hidden_dim=F, prelude_layers=1,
        block_layers=2, coda_layers=1, norm_eps=1e-5, tie_embeddings=True,
    )  # fmt: skip

    def stack(names):
        def get(name):
            return [w[f"model.layers.{layer}.{name}.weight"] for layer in names]

        def matrix(name, *shape):
            return {"kernel": np.stack([kernel.T.reshape(*shape) for kernel in get(name)])}

        attention = {"query": {"project": matrix("self_attn.q_proj", D, N, H)}}
        attention |= {"key": {"project": matrix("self_attn.k_proj", D, K, H)}}
        attention |= {"value": matrix("self_attn.v_proj", D, K, H), "output": matrix("self_attn.o_proj", N, H, D)}
        return {
            "layers": {
                "attention": attention,
                "attention_residual": {"norm": {"scale": np.stack(get("input_layernorm"))}},
                "feed_forward_residual": {"norm": {"scale": np.stack(get("post_attention_layernorm"))}},
                "feed_forward": {
                    "gate": matrix("mlp.gate_proj", D, F),
                    "up": matrix("mlp.up_proj", D, F),
                    "down": matrix("mlp.down_proj", F, D),
                },
            }
        }

    model, rngs = LoopLM(config, rngs=nnx.Rngs(0)), nnx.Rngs(0)
    if expert:
        capacities = tuple(float(share) for share in c["cfg"]["mor"]["capacity"].split(","))
        model.halting, names = ExpertChoice(D, capacities, 0.1, rngs=rngs), ["1.block.0", "1.block.1"]
        kernel = np.stack([w[f"model.layers.{i}.mor_router.router.weight"][0] for i in (1, 2, 3)])
    else:
        model.halting, names = TokenChoice(D, 3, rngs=rngs), ["1.block_list.0.0", "1.block_list.0.1"]
        kernel = w["model.layers.1.mor_router.router.weight"].T
    params = {
        "embedding": {"table": w["model.embed_tokens.weight"]},
        "prelude": stack(["0"]),
        "core": {"block": stack(names)},
        "coda": stack(["4" if expert else "2"]),
        "final_norm": {"scale": w["model.norm.weight"]},
        "halting": {"kernel": kernel},
    }
    return model, jax.tree.map(jnp.asarray, params), f"model.layers.{names[0]}.mlp.down_proj.weight"


@pytest.mark.parametrize("name", ["mor_expert_a", "mor_token_a"])
def test_selections_logits_and_gradients(name):
    official, expert = fixture(name), name.startswith("mor_expert")
    io = official.io
    model, params, down = built(official, expert=expert)
    tokens_BS = jnp.asarray(io["input_ids"])
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(positions_BS, self_mask(model.config, jnp.zeros_like(tokens_BS)))

    def loss(params):
        lm = bound(model, params)
        out = Forward(lm, tokens_BS, context, Depth(3), jnp.float32)()
        logits_BSV = lm.logits(out.read[0])
        log_p_BSV = jax.nn.log_softmax(logits_BSV)[:, :-1]
        total = -jnp.sum(jnp.take_along_axis(log_p_BSV, tokens_BS[:, 1:, None], axis=-1)) / tokens_BS.size
        if expert:
            total += 0.001 * jnp.mean(out.halt.auxiliary_B)
        return total, (logits_BSV, out.halt)

    (_, (logits_BSV, halt)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits_BSV, io["logits"], atol=3e-5)
    if expert:
        np.testing.assert_allclose(jnp.mean(halt.auxiliary_B), io["aux_loss"], rtol=1e-5)
        selected = np.where(np.asarray(halt.active_BS))[1].reshape(io["router2/selected"].shape)
        np.testing.assert_array_equal(selected, io["router2/selected"])
    else:
        np.testing.assert_array_equal(halt.depth_BS, io["depth"])
        np.testing.assert_allclose(halt.weight_BS, io["weight"], atol=1e-6)
    stored = load_file(official.folder / "grads.safetensors")
    found = grads["core"]["block"]["layers"]["feed_forward"]["down"]["kernel"][0].T
    # The official gradient of the expert router also holds its z and balance losses, 1e-3 of it.
    assert relative_error(found, stored[down]) < (1e-2 if expert else 1e-4)
