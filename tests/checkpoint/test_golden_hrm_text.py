"""HRM-Text with official weights: logits, states of every call, gradients of cut loops, and generation with a cache
(tests/golden/hrm_text_a/README.md). Other variants, in a folder that LOOPLM_GOLDEN names, are run too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from looplm.api import LoadedLM
from looplm.config.schema import FinalCrossEntropy
from looplm.infer.generate import generate
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import folders


@pytest.fixture(scope="module", params=folders("hrm_text"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


def output_of(lm, io, num_loops, prefix_BS=None, dtype=jnp.float32):
    tokens_BS = jnp.asarray(io["input_ids"], jnp.int32)
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(positions_BS, self_mask(lm.model, jnp.zeros_like(tokens_BS), prefix_BS))
    model = lm.functional.bind(lm.params)
    output = Forward(model, tokens_BS, context, Depth(num_loops), dtype)()
    return model.logits(output.read[0]), output.state


def test_logits_and_states_of_every_loop(lm, io):
    cycles, inner = lm.loop.num_loops, lm.model.core.inner_loops
    for loop in range(1, cycles + 1):
        logits_BSV, state = output_of(lm, io, loop)
        np.testing.assert_allclose(state.high_BSD, io["z_H"][loop - 1], atol=2e-5)
        np.testing.assert_allclose(state.low_BSD, io["z_L"][loop * inner - 1], atol=2e-5)
    np.testing.assert_allclose(logits_BSV, io["logits"], atol=2e-5)


def test_low_states_of_inner_loops_are_those_of_a_core_that_stops_there(lm, io):
    """In the first loop."""
    for inner in range(1, lm.model.core.inner_loops):
        core = lm.model.core.model_copy(update={"inner_loops": inner, "inner_backprop": None})
        model = lm.model.model_copy(update={"core": core})
        shorter = LoadedLM(model, lm.loop, lm.objective, lm.params)
        np.testing.assert_allclose(output_of(shorter, io, 1)[1].low_BSD, io["z_L"][inner - 1], atol=2e-5)


def test_a_prefix_is_seen_from_both_sides(lm, io):
    logits_BSV, _ = output_of(lm, io, lm.loop.num_loops, jnp.asarray(io["token_type_ids"]) == 1)
    np.testing.assert_allclose(logits_BSV, io["logits_prefix"], atol=2e-5)


def named_apart(lm, grads):
    """By the names of the gradients' file, where the projections of gate, queries, keys and values are apart."""
    found = {}
    for name, value in lm.official_tensors(grads).items():
        start, _, last = name.partition(".attn.")
        match last:
            case "gqkv_proj.weight":
                sizes = [lm.model.num_heads, lm.model.num_heads, lm.model.kv_heads, lm.model.kv_heads]
                pieces = zip(
                    ("gate", *"qkv"), jnp.split(value, np.cumsum(sizes)[:-1] * lm.model.head_size), strict=True
                )
                found |= {f"{start}.self_attn.{part}_proj.weight": piece for part, piece in pieces}
            case "o_proj.weight":
                found[f"{start}.self_attn.o_proj.weight"] = value
            case _ if name.endswith("mlp.gate_up_proj.weight"):
                start = name.removesuffix("gate_up_proj.weight")
                gate, up = jnp.split(value, 2)
                found |= {f"{start}gate_proj.weight": gate, f"{start}up_proj.weight": up}
            case _:
                found[name] = value
    return found


def test_loss_and_all_gradients_of_cut_loops(lm, io, folder):
    labels_BS = np.concatenate([io["input_ids"][:, 1:], np.full_like(io["input_ids"][:, :1], -100)], axis=1)
    loss, grads = lm.loss_and_grads(io["input_ids"], labels_BS, objective=FinalCrossEntropy())
    np.testing.assert_allclose(loss, io["loss_labels"], atol=2e-6)
    stored, named = load_file(folder / "grads.safetensors"), named_apart(lm, grads)
    assert not np.any(named.pop("model.z_L_init"))
    assert set(named) == set(stored)
    for name, theirs in stored.items():
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(named[name]) / scale, theirs / scale, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("kv", ["each", pytest.param("last", marks=pytest.mark.slow)])
def test_the_official_tokens_are_written_with_a_cache_of_every_call(lm, io, kv):
    """Greedily, with prompts that are no prefix: the official call was given no `token_type_ids`. With one slot a loop
    sees keys of the last loop, which writes other tokens."""
    prompts_BP, ids_BT = io["gen_prompt"], io["gen_ids"]
    causal = FunctionalLM(lm.model.model_copy(update={"attention_mask": "causal"}))
    written = generate(
        causal, lm.params, list(prompts_BP), num_loops=lm.loop.num_loops, kv=kv, temperature=0.0,
        max_tokens=ids_BT.shape[1] - prompts_BP.shape[1], end_ids=[], num_ids=lm.model.vocab_size,
    )  # fmt: skip
    same = np.array_equal(np.stack([row.tokens for row in written]), ids_BT[:, prompts_BP.shape[1] :])
    assert same == (kv == "each")


def test_a_prompt_that_is_a_prefix_is_gone_on_with_as_its_official_logits_say(lm, io):
    """Greedily, by one token: prompts of several lengths are taken up together."""
    lengths_B = np.sum(io["token_type_ids"], axis=1)
    prompts = [ids_S[:length] for ids_S, length in zip(io["input_ids"], lengths_B, strict=True)]
    written = generate(
        lm.functional, lm.params, prompts, num_loops=lm.loop.num_loops, max_tokens=1, end_ids=[],
        num_ids=lm.model.vocab_size,
    )  # fmt: skip
    rows = np.arange(len(prompts))
    expected_B = np.argmax(io["logits_prefix"][rows, lengths_B - 1], axis=-1)
    assert [row.tokens.tolist() for row in written] == [[token] for token in expected_B]


def test_float64_agrees_to_nine_digits(folder, io):
    with jax.enable_x64(True):
        lm = looplm.load(folder, dtype="float64")
        logits_BSV, _ = output_of(lm, io, lm.loop.num_loops, dtype=jnp.float64)
        np.testing.assert_allclose(logits_BSV, io["logits_f64"], atol=1e-9)
        prefix_BS = jnp.asarray(io["token_type_ids"]) == 1
        logits_BSV, _ = output_of(lm, io, lm.loop.num_loops, prefix_BS, jnp.float64)
        np.testing.assert_allclose(logits_BSV, io["logits_prefix_f64"], atol=1e-9)
