"""Mixture of Recursions against the official code (tests/golden/mor_*_a/README.md): logits of the routers, selections,
scores, losses, and all gradients.

Other variants, in a folder that LOOPLM_GOLDEN names, are run too.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from looplm.config.schema import ExpertChoice, Model, Rope, TokenChoice
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import config_of, folders


def model_of(config):
    llama, cfg = config["llama"], config["cfg"]
    mor, loops = cfg["mor"], cfg["recursive"]["num_recursion"]
    own = mor[mor["type"]]
    router = {
        "hidden": mor["router_type"] != "linear",
        "temperature": mor["temp"],
        "gating": "weighted" if own.get("gating", "weighted") == "weighted" else "none",
        "sees_left": cfg["kv_sharing"]["enable"],
        "z_loss_weight": mor["z_coeff"] if mor["z_loss"] else 0.0,
        "alpha": own["alpha"],
    }
    if mor["type"] == "expert":
        capacities = tuple(float(share) for share in mor["capacity"].split(","))
        auxiliary = own["coeff"] if own["sampling"] == "aux_loss" else 0.0
        halting = ExpertChoice(
            capacities=capacities, score=own["router_func"] or "none", auxiliary_weight=auxiliary, **router
        )
    else:
        balance = own["coeff"] if own["balancing"] == "loss" else 0.0
        halting = TokenChoice(loops=loops, score=own["router_func"], balance_weight=balance, **router)
    return Model(
        vocab_size=llama["vocab_size"], dim=llama["hidden_size"], num_heads=llama["num_attention_heads"],
        num_kv_heads=llama["num_key_value_heads"], hidden_dim=llama["intermediate_size"], prelude_layers=1,
        block_layers=(llama["num_hidden_layers"] - 2) // loops, coda_layers=1, norm_eps=llama["rms_norm_eps"],
        rope=Rope(theta=llama["rope_theta"]), tie_embeddings=llama["tie_word_embeddings"], halting=halting,
        dtype="float32",
    ), loops  # fmt: skip


def layer_names(model, loops):
    """Where the official tensors of our stacks are: of every loop the names of its layers."""
    last = loops + 1 if isinstance(model.halting, ExpertChoice) else 2
    block = [
        [f"{t + 1}.block.{j}" if last > 2 or isinstance(model.halting, ExpertChoice) else f"1.block_list.{t}.{j}"
         for j in range(model.block_layers)]
        for t in range(loops)
    ]  # fmt: skip
    return {"prelude": ["0"], "coda": [str(last)]}, block


def as_params(get, model, loops):
    """Our parameters from a function of an official name; gradients of what is shared are summed over loops there."""
    D, N, K, H, F = model.dim, model.num_heads, model.kv_heads, model.head_size, model.hidden_dim
    stacks, block = layer_names(model, loops)

    def stack(layers):
        """layers: for every layer the official names that share its weights."""

        def matrix(name, *shape):
            return {"kernel": np.stack([get(name, names).T.reshape(*shape) for names in layers])}

        def norm(name):
            return {"norm": {"scale": np.stack([get(name, names) for names in layers])}}

        attention = {
            "query": {"project": matrix("self_attn.q_proj", D, N, H)},
            "key": {"project": matrix("self_attn.k_proj", D, K, H)},
            "value": matrix("self_attn.v_proj", D, K, H),
            "output": matrix("self_attn.o_proj", N, H, D),
        }
        feed_forward = {
            "gate": matrix("mlp.gate_proj", D, F), "up": matrix("mlp.up_proj", D, F),
            "down": matrix("mlp.down_proj", F, D),
        }  # fmt: skip
        return {"layers": {
            "attention": attention, "attention_residual": norm("input_layernorm"), "feed_forward": feed_forward,
            "feed_forward_residual": norm("post_attention_layernorm"),
        }}  # fmt: skip

    def whole(name):
        return get(name, None)

    def routers(name):
        if isinstance(model.halting, ExpertChoice):
            return np.stack([whole(f"model.layers.{t + 1}.mor_router.{name}.weight").T for t in range(loops)])
        return whole(f"model.layers.1.mor_router.{name}.weight").T

    hidden = model.halting.hidden
    router = {"units": {"kernel": routers("router.2" if hidden else "router")}}
    if hidden:
        router["widen"] = {"kernel": routers("router.0")}
    params = {
        "embedding": {"table": whole("model.embed_tokens.weight")},
        **{place: stack([[name] for name in names]) for place, names in stacks.items()},
        "core": {"block": stack([list(names) for names in zip(*block, strict=True)])},
        "final_norm": {"scale": whole("model.norm.weight")},
        "halting": {"router": router},
    }
    return params if model.tie_embeddings else params | {"head": whole("lm_head.weight")}


@pytest.fixture(scope="module", params=folders("mor_expert", "mor_token"), ids=lambda folder: folder.name)
def passed(request):
    folder = request.param
    io, (model, loops) = dict(np.load(folder / "io.npz")), model_of(config_of(folder))
    weights, grads = load_file(folder / "model.safetensors"), load_file(folder / "grads.safetensors")

    def value(name, layers):
        return weights[name if layers is None else f"model.layers.{layers[0]}.{name}.weight"]

    def gradient(name, layers):
        """A tensor that the official code shares is listed once; one that it does not share, once a loop."""
        if layers is None:
            return grads[name]
        listed = [grads[full] for layer in layers if (full := f"model.layers.{layer}.{name}.weight") in grads]
        return np.sum(listed, axis=0)

    lm, tokens_BS = FunctionalLM(model), jnp.asarray(io["input_ids"])
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(positions_BS, self_mask(model, jnp.zeros_like(positions_BS)), with_capacity=True)

    def loss(params):
        bound = lm.bind(params)
        output = Forward(bound, tokens_BS, context, Depth(loops), jnp.float32)()
        logits_BSV = bound.logits(output.read[0])
        log_p_BSV = jax.nn.log_softmax(logits_BSV)[:, :-1]
        nll = -jnp.sum(jnp.take_along_axis(log_p_BSV, tokens_BS[:, 1:, None], axis=-1)) / tokens_BS.size
        told = bound.halting.told(output.halt, None, None)
        return nll + jnp.mean(told.cost_B), (logits_BSV, output.halt, told)

    params = jax.tree.map(jnp.asarray, as_params(value, model, loops))
    (total, (logits_BSV, halt, told)), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return SimpleNamespace(
        io=io, model=model, total=total, logits=logits_BSV, halt=halt, told=told, grads=found,
        theirs=as_params(gradient, model, loops), loops=loops,
    )  # fmt: skip


def test_logits_and_losses(passed):
    io, numbers = passed.io, {name: np.mean(number_B) for name, number_B in passed.told.numbers.items()}
    np.testing.assert_allclose(passed.logits, io["logits"], atol=3e-5)
    np.testing.assert_allclose(passed.total, io["total_loss"], rtol=1e-5)
    auxiliary = "halt/auxiliary" if "halt/auxiliary" in numbers else "halt/balance"
    for name, official in ((auxiliary, "aux_loss"), ("halt/z", "router_z_loss")):
        if official in io:
            np.testing.assert_allclose(numbers[name], io[official], rtol=2e-5)


def test_selections_and_scores(passed):
    io, halt = passed.io, passed.halt
    if isinstance(passed.model.halting, TokenChoice):
        np.testing.assert_array_equal(halt.depth_BS, io["depth"])
        chosen_BS = np.take_along_axis(np.asarray(halt.score_BSR), np.asarray(halt.depth_BS)[..., None], -1)[..., 0]
        np.testing.assert_allclose(chosen_BS, io["weight"].reshape(chosen_BS.shape), atol=1e-6)
        return
    in_loops_BS = np.zeros(io["input_ids"].shape, int)
    for t in range(passed.loops):
        np.put_along_axis(in_loops_BS, io[f"router{t}/selected"], t + 1, axis=1)
    np.testing.assert_array_equal(halt.loops_BS, in_loops_BS)
    last = f"router{passed.loops - 1}"
    ours = np.take_along_axis(np.asarray(halt.score_BS), io[f"{last}/selected"], axis=1)
    np.testing.assert_allclose(ours, io[f"{last}/weight"].reshape(ours.shape), atol=1e-6)


def test_all_gradients(passed):
    def close(path, ours, theirs):
        error = np.max(np.abs(ours - theirs)) / max(np.max(np.abs(theirs)), 1e-12)
        assert error < 1e-4, jax.tree_util.keystr(path)

    jax.tree.map_with_path(close, passed.grads, passed.theirs)
