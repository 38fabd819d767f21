"""Transformer-XL (arXiv 1901.02860): three segments with memory and relative positions, against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from looplm.config.schema import Model, RelativePositions
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.layers import parameter, stacked
from looplm.model.lm import LoopLM
from looplm.model.report import Reporting
from looplm.ops.attention import Mask
from tests.seams.conftest import bound, fixture, relative_error


class WithBiases(nnx.Module):
    """relu(x W_up + b) W_down + b."""

    def __init__(self, config, *, rngs):
        D, F, zeros = config.dim, config.hidden_dim, nnx.initializers.zeros
        self.up, self.down = (
            parameter(rngs, zeros, shape, axes)
            for shape, axes in (((D, F), ("embed", "hidden")), ((F, D), ("hidden", "embed")))
        )
        self.up_bias, self.down_bias = (parameter(rngs, zeros, (n,), ("one",)) for n in (F, D))

    def __call__(self, x_BSD):
        hidden = jax.nn.relu(x_BSD @ self.up.get_value() + self.up_bias.get_value())
        return hidden @ self.down.get_value() + self.down_bias.get_value()


def built(official):
    c, w = official.config, official.weights
    D, N, H, F, L = (c[key] for key in ("d_model", "n_head", "d_head", "d_inner", "n_layer"))
    config = Model(
        vocab_size=c["n_token"], dim=D, num_heads=N, head_dim=H, hidden_dim=F, block_layers=L, norm="layer",
        norm_eps=1e-5, norm_placement="post", final_norm=False, positions=RelativePositions(), tie_embeddings=True,
        head_bias=True, embedding_scale=D**0.5,
    )  # fmt: skip
    model = LoopLM(config, rngs=nnx.Rngs(0))
    model.core.block.layers.feed_forward = stacked(lambda rngs: WithBiases(config, rngs=rngs), L, nnx.Rngs(0))

    def get(name):
        return np.stack([w[f"layers.{i}.{name}"] for i in range(L)])

    def matrix(name):
        return get(f"{name}.weight").transpose(0, 2, 1)

    def norm(name):
        return {"norm": {"scale": get(f"{name}.layer_norm.weight"), "bias": get(f"{name}.layer_norm.bias")}}

    qkv = matrix("dec_attn.qkv_net").reshape(L, D, 3, N, H)
    layers = {
        "attention": {
            "query": {"project": {"kernel": qkv[:, :, 0]}},
            "key": {"project": {"kernel": qkv[:, :, 1]}},
            "value": {"kernel": qkv[:, :, 2]},
            "output": {"kernel": matrix("dec_attn.o_net").reshape(L, N, H, D)},
            "relative": {
                "kernel": matrix("dec_attn.r_net").reshape(L, D, N, H),
                "content": np.stack([w["r_w_bias"]] * L),
                "position": np.stack([w["r_r_bias"]] * L),
            },
        },
        "attention_residual": norm("dec_attn"),
        "feed_forward_residual": norm("pos_ff"),
        "feed_forward": {
            "up": matrix("pos_ff.CoreNet.0"),
            "up_bias": get("pos_ff.CoreNet.0.bias"),
            "down": matrix("pos_ff.CoreNet.3"),
            "down_bias": get("pos_ff.CoreNet.3.bias"),
        },
    }
    params = {
        "embedding": {"table": w["word_emb.emb_layers.0.weight"]},
        "head_bias": w["crit.out_layers.0.bias"],
        "core": {"block": {"layers": layers}},
    }
    return model, jax.tree.map(jnp.asarray, params)


def test_three_segments():
    official = fixture("txl_a")
    io, length = official.io, official.config["mem_len"]
    model, params = built(official)

    def run(params):
        lm, memory_RLBMD, total, seen = bound(model, params), None, 0.0, []
        for data, target in zip(io["data"], io["target"], strict=True):
            tokens_BS, labels_BS = jnp.asarray(data.T), jnp.asarray(target.T)
            S = tokens_BS.shape[1]
            places = 0 if memory_RLBMD is None else memory_RLBMD.shape[3]
            context = Context(
                jnp.zeros_like(tokens_BS), Mask("causal", None, places + S), reporting=Reporting(memory=True)
            )
            out = Forward(lm, tokens_BS, context, Depth(1), jnp.float32, per_loop=memory_RLBMD)()
            new = jnp.moveaxis(out.reports["block"].memory_BSD, 2, 1)
            joined = new if memory_RLBMD is None else jnp.concatenate([memory_RLBMD, new], axis=3)
            memory_RLBMD = jax.lax.stop_gradient(joined)[:, :, :, -length:]
            log_p_BSV = jax.nn.log_softmax(lm.logits(out.read[0]))
            total -= jnp.mean(jnp.take_along_axis(log_p_BSV, labels_BS[..., None], axis=-1))
            seen.append((out.read[0], memory_RLBMD[0]))
        return total, seen

    (total, seen), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    np.testing.assert_allclose(total, io["total_loss"], rtol=1e-6)
    for i, (hidden_BSD, memory_LBMD) in enumerate(seen, start=1):
        np.testing.assert_allclose(hidden_BSD.transpose(1, 0, 2), io[f"seg{i}/hidden"], atol=2e-5)
        np.testing.assert_allclose(memory_LBMD.transpose(0, 2, 1, 3), io[f"seg{i}/mems"][:-1], atol=2e-5)
    stored, layers = load_file(official.folder / "grads.safetensors"), grads["core"]["block"]["layers"]
    relative = layers["attention"]["relative"]
    D = relative["kernel"].shape[1]
    for found, theirs in (
        (grads["embedding"]["table"], "word_emb.emb_layers.0.weight"),
        (relative["kernel"][0].reshape(D, -1).T, "layers.0.dec_attn.r_net.weight"),
        (relative["content"].sum(axis=0), "r_w_bias"),
        (layers["feed_forward"]["down"][1].T, "layers.1.pos_ff.CoreNet.3.weight"),
    ):
        assert relative_error(found, stored[theirs]) < 1e-4
