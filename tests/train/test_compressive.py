"""A compressed memory (arXiv 1911.05507) against its definition: token by token, the two losses apart, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.check import check
from looplm.config.schema import CompressiveMemory, FinalCrossEntropy, Model, RelativePositions
from looplm.errors import UserError
from looplm.eval.memory import check_memory
from looplm.infer.cache import check_writes
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.remembered import Remembered
from looplm.objective import build_objective, evaluate
from looplm.ops.attention import self_mask
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import Batch
from looplm.train.program import Program
from tests.model.plain import feed_forward, norm, sinusoids, softmax

S, M, C, RATE, R, L, D, H, V = 6, 7, 5, 3, 2, 2, 8, 4, 20
WEIGHT = 0.7
DOCUMENTS = np.array([[0] * 30, [0] * 2 + [1] * 10 + [2] * 14 + [3] * 4])
"""Of every token of two rows of five sequences: one ends within a sequence, one with a sequence, one within a place."""
TOKENS = np.random.default_rng(0).integers(0, V, (2, DOCUMENTS.shape[1] + 1))
COMPRESSIVE = {"kind": "compressive", "length": 17, "compressed_length": 6, "rate": 4}
RUN = {"data.order": "streams", "model.memory": COMPRESSIVE}


def sequences():
    return [slice(first, first + S) for first in range(0, DOCUMENTS.shape[1], S)]


def config_of(compression, loops):
    memory = CompressiveMemory(
        length=M, compressed_length=C, rate=RATE, compression=compression, loops=loops, loss_weight=WEIGHT
    )
    return Model(vocab_size=V, dim=D, num_heads=D // H, hidden_dim=12, block_layers=L, positions=RelativePositions(),
                 memory=memory, dtype="float64")  # fmt: skip


def ours(config, params):
    """(the objective, summed over tokens; (the share of the reconstruction, what is kept at the end))."""
    rules, objective = Remembered(config.memory, loops=loops_of(config), layers=L), build_objective(FinalCrossEntropy())
    model = FunctionalLM(config).bind(params)

    def step(carry, rows):
        context = Context(rows.positions, self_mask(config, rows.segments))
        forward = rules.enter(carry, Forward(model, rows.tokens, context, Depth(R), jnp.float64), None)
        sums, output = evaluate(objective, forward, rows.labels, jax.random.key(0))
        return rules.leave(carry, rows, output, None), (sums.objective, sums.extra["train/auxiliary"])

    steps = [rows_of(part) for part in sequences()]
    carry = rules.empty(steps[0], jax.ShapeDtypeStruct((2, S, D), jnp.float64))
    carry, (total_T, auxiliary_T) = jax.lax.scan(step, carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps))
    return jnp.sum(total_T), (jnp.sum(auxiliary_T), carry)


def rows_of(part):
    documents = DOCUMENTS[:, part]
    goes_on = documents[:, :1] == (DOCUMENTS[:, part.start - 1, None] if part.start else -1)
    positions = np.arange(S) + S * goes_on
    arrays = TOKENS[:, part], TOKENS[:, 1:][:, part], 1 + documents - documents[:, :1], positions, np.arange(2)
    return Batch(*map(jnp.asarray, arrays))


def loops_of(config):
    return R if config.memory.loops == "all" else 1


def read(p, x_SD, others_TD, seen_ST, with_places):
    """What every head reads, (S, heads, H)."""
    q, k, v = (jnp.einsum("SD,DNH->SNH", x, kernel) for x, kernel in (
        (x_SD, p["query"]["project"]["kernel"]), (others_TD, p["key"]["project"]["kernel"]),
        (others_TD, p["value"]["kernel"])))  # fmt: skip
    own, length, keys = p["relative"], len(x_SD), len(others_TD)
    scores = jnp.einsum("SNH,TNH->NST", q + own["content"] * with_places, k)
    if with_places:
        behind = keys - length + np.arange(length)[:, None] - np.arange(keys)
        r_TNH = jnp.einsum("TD,DNH->TNH", sinusoids(keys, D), own["kernel"])
        far = jnp.einsum("SNH,TNH->NST", q + own["position"], r_TNH)
        scores += jnp.stack([far[:, s, np.maximum(behind[s], 0)] for s in range(length)], axis=1)
        seen_ST = seen_ST & (behind >= 0)
    weights = softmax(jnp.where(seen_ST, scores / H**0.5, -1e30))
    return jnp.einsum("NST,TNH->SNH", weights, v)


def layer_of(params, layer):
    return jax.tree.map(lambda leaf: leaf[layer], params["core"]["block"]["layers"])


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=1, has_aux=True)
def language(config, params, memory_RLMD, remembered_M, tokens_S, labels_S, documents_S):
    """The loss of one row's sequence with a memory that is given; also returns what entered, (R, L, S, D)."""
    x, entered = params["embedding"]["table"][tokens_S], []
    seen_ST = documents_S[:, None] == jnp.concatenate([remembered_M, documents_S])
    for loop in range(R):
        for layer in range(L):
            p, memory_MD = layer_of(params, layer), memory_RLMD[min(loop, len(memory_RLMD) - 1), layer]
            entered.append(x)
            h = norm(config, p["attention_residual"]["norm"], jnp.concatenate([memory_MD, x]))
            heads = read(p["attention"], h[-S:], h, seen_ST, with_places=True)
            x = x + jnp.einsum("SNH,NHD->SD", heads, p["attention"]["output"]["kernel"])
            h = norm(config, p["feed_forward_residual"]["norm"], x)
            x = x + feed_forward(config.feed_forward, p["feed_forward"], h, h, loop)
    logits_SV = norm(config, params["final_norm"], x) @ params["head"].T
    nll_S = jax.nn.logsumexp(logits_SV, axis=1) - logits_SV[np.arange(S), labels_S]
    return jnp.sum(nll_S), jnp.stack(entered).reshape(R, L, S, D)


def compressed(config, p, old_SD):
    blocks = old_SD.reshape(-1, RATE, D)
    if config.memory.compression == "convolution":
        kernel, bias = p["convolution"]["linear"]["kernel"], p["convolution"]["bias"]
        return sum(blocks[:, k] @ kernel[k] for k in range(RATE)) + bias
    return blocks.mean(axis=1) if config.memory.compression == "mean" else blocks.max(axis=1)


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=1, has_aux=True)
def reconstruction(config, learned, params, old_RLSD, entered_RLSD, documents_S, documents_n):
    """The other loss, of what compresses alone; also returns the new places, (R, L, n, D)."""
    total, places = 0.0, []
    seen_Sn = documents_S[:, None] == documents_n
    for loop in range(R):
        for layer in range(L):
            p, old_SD = layer_of(params, layer), old_RLSD[min(loop, len(old_RLSD) - 1), layer]
            new_nD = compressed(config, jax.tree.map(lambda leaf, layer=layer: leaf[layer], learned), old_SD)
            places.append(new_nD)
            own, old, new = (
                norm(config, p["attention_residual"]["norm"], x) for x in (entered_RLSD[loop, layer], old_SD, new_nD)
            )
            missed = read(p["attention"], own, new, seen_Sn, False)
            missed -= read(p["attention"], own, old, jnp.repeat(seen_Sn, RATE, axis=1), False)
            total += jnp.sum(jnp.where(seen_Sn.any(axis=1), jnp.mean(missed**2, axis=(1, 2)), 0)) / R
    return WEIGHT * total, jnp.stack(places).reshape(R, L, -1, D)


def defined(config, params):
    """(sum of the language losses, of the reconstructions, gradients of both, states at the end, documents at it)."""
    learned = params["core"]["block"]["layers"].get("compression", {})
    totals, gradients, ends = [0.0, 0.0], [], []
    for row in range(2):
        memory = jnp.zeros((loops_of(config), L, C + M, D))
        remembered = np.full(C + M, -1)
        for part in sequences():
            documents = DOCUMENTS[row, part]
            arguments = TOKENS[row, part], TOKENS[row, 1:][part], documents
            (nll, entered), of_all = language(config, params, memory, remembered, *arguments)
            blocks = remembered[C : C + S].reshape(-1, RATE)
            made = np.where((blocks == blocks[:, :1]).all(axis=1), blocks[:, 0], -1)
            old = memory[:, :, C : C + S]
            (missed, places), of_learned = reconstruction(config, learned, params, old, entered, documents, made)
            parts = memory[:, :, :C], places[-len(memory) :], memory[:, :, C:], entered[-len(memory) :]
            memory = jnp.concatenate([
                jnp.concatenate(parts[:2], axis=2)[:, :, -C:], jnp.concatenate(parts[2:], axis=2)[:, :, -M:]
            ], axis=2)  # fmt: skip
            older = np.concatenate([remembered[:C], made])[-C:]
            remembered = np.concatenate([older, np.concatenate([remembered[C:], documents])[-M:]])
            totals = [totals[0] + nll, totals[1] + missed]
            gradients.append((of_all, of_learned))
        ends.append((memory, remembered == documents[-1]))
    return *totals, *jax.tree.map(lambda *leaves: sum(leaves), *gradients), *zip(*ends, strict=True)


@pytest.mark.parametrize(
    ("compression", "loops"),
    [
        ("convolution", "all"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("max", "last"), ("mean", "all"))),
    ],
)
def test_losses_memories_and_all_gradients(compression, loops):
    config = config_of(compression, loops)
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(FunctionalLM(config).init, jax.random.key(0))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / 2), shapes)
        (total, (auxiliary, carry)), gradient = jax.jit(
            jax.value_and_grad(lambda params: ours(config, params), has_aux=True)
        )(params)
        nll, missed, of_all, of_learned, states, is_open = defined(config, params)
    assert missed > 1e-3
    np.testing.assert_allclose(auxiliary, missed, rtol=1e-9)
    np.testing.assert_allclose(total, nll + missed, rtol=1e-9)
    np.testing.assert_allclose(carry.states_BRLMD, np.stack(states), atol=1e-9)
    np.testing.assert_array_equal(carry.open_BM, np.stack(is_open))
    assert 0 < np.sum(np.stack(is_open)[1]) < C + M
    expected = of_all
    if of_learned:
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_all["core"]["block"]["layers"]["compression"]))
        assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(of_learned))
        expected["core"]["block"]["layers"]["compression"] = of_learned
    jax.tree.map(lambda found, other: np.testing.assert_allclose(found, other, atol=1e-9), gradient, expected)


def test_without_a_compressed_memory_it_is_one_of_segments(tiny_run):
    """The same program to the letter."""
    none, segments = (
        Program(tiny_run(**RUN | {"model.memory": memory}), build_mesh(tiny_run().mesh)).lower().as_text()
        for memory in (COMPRESSIVE | {"compressed_length": 0}, {"length": COMPRESSIVE["length"]})
    )
    assert none == segments


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"length": 15}, "holds fewer than data.sequence_length=16; use a length of at least 16"),
        ({"rate": 5}, "rate=5 tokens, of which data.sequence_length=16 is no multiple"),
        ({"length": 0}, "model.memory.length=0 holds fewer"),
    ],
)
def test_refused(tiny_run, changes, told):
    with pytest.raises(UserError, match=told):
        check(tiny_run(**RUN | {"model.memory": COMPRESSIVE | changes}))


def test_no_text_is_written_with_it_and_no_other_length_measured(tiny_run):
    with pytest.raises(UserError, match="leave it out"):
        check_memory(tiny_run(**RUN), [8])
    with pytest.raises(UserError, match=r"model\.memory=compressive needs more of them"):
        check_writes(tiny_run(**RUN).model)
    check_writes(tiny_run(**RUN | {"model.memory": COMPRESSIVE | {"compressed_length": 0}}).model)
