"""Places in front of the tokens, a gate of whole sequences, a convolution and a mixture over places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.api import LoadedLM
from looplm.config import schema
from looplm.config.schema import AddInjection, ConvSwiGLU, Front, Ids, SequenceGate, SequenceMLP
from looplm.errors import UserError
from looplm.infer.generate import generate
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.gates import SequenceGate as Gate
from looplm.ops.attention import self_mask

SMALL = dict(
    prelude_layers=0, block_layers=1, coda_layers=0, num_heads=2, num_kv_heads=None, exit_gate=None,
    injection=AddInjection(), norm_placement="pre", norm_at_loop_end=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def built(model_config, random_params):
    def build(**fields):
        lm = FunctionalLM(model_config(**{**SMALL, **fields}))
        return lm, random_params(lm)

    return build


def forward(lm, params, tokens_BS, ids_B=None, segments_BS=None, positions_BS=None, depth=2, **options):
    if positions_BS is None:
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    segments_BS = jnp.zeros_like(tokens_BS) if segments_BS is None else segments_BS
    context = Context(positions_BS, self_mask(lm.config, segments_BS), ids_B=ids_B, counted_BS=segments_BS >= 0)
    run = jax.jit(lambda params: Forward(lm.bind(params), tokens_BS, context, Depth(depth), jnp.float32, **options)())
    return run(params)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_places_in_front_are_tokens_that_the_head_does_not_see(mask, built, tokens_BS):
    """Those of a model that has a token of its own for each of them."""
    front = Front(ids=Ids(num_ids=5, dim=30), learned=2, zeros=1)
    fields = dict(attention_mask=mask, coda_layers=1, embedding_scale=3.0, positions=schema.LearnedPositions(length=20))
    lm, params = built(front=front, **fields)
    D, V, ids_B = lm.config.dim, lm.config.vocab_size, jnp.array([3, 0])
    rows_ID = np.pad(params["front"]["by_id"]["table"], ((0, 0), (0, 2 * D - 30))).reshape(-1, D)
    own_ID = np.concatenate([rows_ID, params["front"]["learned"], np.zeros((1, D))])
    plain, _ = built(vocab_size=V + len(own_ID), head_bias=False, **fields)
    same = {name: leaf for name, leaf in params.items() if name != "front"}
    same["embedding"] = {"table": np.concatenate([params["embedding"]["table"], own_ID])}
    same["head"] = np.concatenate([params["head"], np.zeros_like(own_ID)])
    places_BP = np.array([[2 * i, 2 * i + 1, 10, 11, 12] for i in ids_B]) + V
    found = forward(lm, params, tokens_BS, ids_B, with_statistics=True)
    wanted = forward(plain, same, jnp.concatenate([places_BP, tokens_BS], axis=1))
    np.testing.assert_allclose(found.read[:, :, :], wanted.read[:, :, 5:], atol=1e-5)
    np.testing.assert_allclose(found.state, wanted.state, atol=1e-5)
    assert found.statistics.state_norm_BS.shape == tokens_BS.shape


def test_they_belong_to_the_first_document(built, tokens_BS):
    lm, params = built(front=Front(learned=2), attention_mask="full")
    segments_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]) >= 6, tokens_BS.shape).astype(jnp.int32)
    other = {**params, "front": {"learned": params["front"]["learned"] + 1}}
    one, two = (forward(lm, p, tokens_BS, segments_BS=segments_BS).read[0] for p in (params, other))
    np.testing.assert_array_equal(one[:, 6:], two[:, 6:])
    assert np.all(np.any(one[:, :6] != two[:, :6], axis=-1))


def test_the_table_of_ids_is_a_group_of_its_own_whose_other_rows_get_no_gradient(built, tokens_BS):
    lm, params = built(front=Front(ids=Ids(num_ids=5, dim=24)))
    assert {path for path, one in lm.declarations.items() if one.group == "ids"} == {("front", "by_id", "table")}
    grads = jax.grad(lambda params: jnp.sum(jnp.sin(forward(lm, params, tokens_BS, jnp.array([3, 3])).read)))(params)
    assert np.any(grads["front"]["by_id"]["table"], axis=1).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_a_gate_of_sequences_reads_the_last_state(pool, built, tokens_BS):
    """With its places in front; padding is neither last nor part of the mean."""
    lm, params = built(front=Front(zeros=1), sequence_gate=SequenceGate(outputs=2, pool=pool))
    padded_BS = jnp.where(jnp.arange(tokens_BS.shape[1]) < 8, 0, -1) * jnp.array([[0], [1]])
    output = forward(lm, params, tokens_BS, segments_BS=padded_BS)
    whole_D, padded_D = (
        {"first": h_SD[0], "last": h_SD[end - 1], "mean": h_SD[:end].mean(axis=0)}[pool]
        for h_SD, end in zip(np.asarray(output.state), (12, 9), strict=True)
    )
    gate = params["sequence_gate"]
    wanted_BQ = np.stack([whole_D, padded_D]) @ gate["kernel"] + gate["bias"]
    np.testing.assert_allclose(output.sequence_gate_BQ, wanted_BQ, atol=1e-5)


def test_a_gate_of_sequences_begins_at_its_bias():
    gate = Gate(4, SequenceGate(outputs=2), rngs=nnx.Rngs(0))
    logits_BQ = gate(jnp.ones((3, 5, 4), jnp.bfloat16), None)
    assert logits_BQ.dtype == jnp.float32
    np.testing.assert_array_equal(logits_BQ, np.full((3, 2), -5.0))


def test_a_convolution_stays_in_its_document(built, tokens_BS):
    lm, params = built(feed_forward=ConvSwiGLU(kernel=3))
    segments_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]) >= 4, tokens_BS.shape).astype(jnp.int32)
    positions_BS = jnp.arange(tokens_BS.shape[1]) - 4 * segments_BS
    packed = forward(lm, params, tokens_BS, segments_BS=segments_BS, positions_BS=positions_BS).read[0]
    alone = [forward(lm, params, part_BS).read[0] for part_BS in (tokens_BS[:, :4], tokens_BS[:, 4:])]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=1e-5)


def test_a_mixture_over_places_is_a_swiglu_of_the_other_dim(built, tokens_BS):
    """norm(x + f(x)) with f and the norm over places, then the feed-forward over channels."""
    length = tokens_BS.shape[1] + 1
    kind = SequenceMLP(length=length, hidden_dim=10)
    fields = dict(attention_mask="full", norm="unit", norm_placement="post", norm_eps=1e-3, final_norm=False)
    lm, params = built(attention=kind, front=Front(zeros=1), **fields)
    found_BSD = forward(lm, params, tokens_BS, depth=1).state
    p = jax.tree.map(lambda leaf: np.float64(leaf[0]), params["core"]["block"]["layers"])

    def swiglu(p, x):
        gate, up, down = (p[name]["kernel"] for name in ("gate", "up", "down"))
        return (x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)) @ down

    def unit(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-3)

    e_BSD = np.pad(np.asarray(params["embedding"]["table"])[tokens_BS], ((0, 0), (1, 0), (0, 0)))
    x_BDS = np.swapaxes(2 * np.float64(e_BSD), 1, 2)  # the first state and the injection are the embeddings
    x_BSD = np.swapaxes(unit(x_BDS + swiglu(p["attention"], x_BDS)), 1, 2)
    np.testing.assert_allclose(found_BSD, unit(x_BSD + swiglu(p["feed_forward"], x_BSD)), atol=1e-5)


def test_inner_widths_follow_from_the_length():
    """Those of the published models: 81 + 16 and 900 + 16 places (arXiv 2510.04871)."""
    assert [SequenceMLP(length=n).width for n in (97, 916)] == [512, 2560]


@pytest.mark.parametrize(
    "fields",
    [
        dict(front=Front(zeros=1)),
        dict(feed_forward=ConvSwiGLU()),
        dict(attention=SequenceMLP(length=9), attention_mask="full", norm="unit"),
    ],
    ids=["front", "convolution", "sequence_mlp"],
)
def test_what_a_cache_does_not_hold_is_not_written(fields, built):
    lm, params = built(**fields)
    with pytest.raises(UserError, match=r"keys and values of earlier tokens alone, and model\..* needs more"):
        generate(lm, params, [np.arange(4)], num_loops=1, max_tokens=1, num_ids=5)


def test_ids_that_do_not_fit_are_refused(built, tokens_BS):
    lm, params = built(front=Front(ids=Ids(num_ids=5, dim=24)))
    api = LoadedLM(lm.config, schema.Loop(num_loops=1), schema.FinalCrossEntropy(), params)
    assert api(tokens_BS, ids=jnp.array([0, 4])).logits(1).shape == (*tokens_BS.shape, lm.config.vocab_size)
    for ids, told in ((None, "come without ids"), ([0, 5], "ids hold 5"), ([0], "ids of shape")):
        with pytest.raises(UserError, match=told):
            api(tokens_BS, ids=ids and jnp.array(ids))
    other, params = built()
    api = LoadedLM(other.config, schema.Loop(num_loops=1), schema.FinalCrossEntropy(), params)
    with pytest.raises(UserError, match=r"no table of them \(model\.front\.ids\)"):
        api(tokens_BS, ids=jnp.array([0, 1]))
