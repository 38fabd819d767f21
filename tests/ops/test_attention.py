"""Attention and its masks against loops over queries and heads, and every backend against the definition in float64."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Mesh, Model
from looplm.ops.attention import (
    Asked,
    Mask,
    attention,
    blockwise,
    cached_mask,
    choose,
    dense,
    prepare,
    reference,
    self_mask,
    splash,
    triton,
)  # fmt: skip
from looplm.ops.attention.choice import WORTH_BLOCKS
from looplm.sharding.collective import lay_out
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops

CAUSAL = Model(vocab_size=2, dim=8, num_heads=2, hidden_dim=8, block_layers=1)


def allowed(kind, window, s, t, prefix):
    """The rule for one pair of tokens of a document."""
    past = t <= s or kind == "full" or (kind == "prefix" and prefix[t])
    return past and (window is None or abs(s - t) < window)


@pytest.mark.parametrize("kind", ["causal", "prefix", "full"])
@pytest.mark.parametrize("window", [None, 3])
def test_masks_follow_their_rule_within_documents(kind, window):
    config = CAUSAL.model_copy(update={"attention_mask": kind, "attention_window": window})
    segments_BS, prefix_BS = np.array([[1, 1, 1, 1, 2, 2, 2, 0]]), np.array([[1, 1, 0, 0, 1, 0, 0, 0]], bool)
    mask_BST = self_mask(config, jnp.asarray(segments_BS), jnp.asarray(prefix_BS)).dense(8)
    for s, t in np.ndindex(8, 8):
        expected = segments_BS[0, s] == segments_BS[0, t] and allowed(kind, window, s, t, prefix_BS[0])
        assert bool(mask_BST[0, s, t]) == expected, (s, t)


@pytest.mark.parametrize("backend", [dense, blockwise, reference])
def test_grouped_attention_equals_its_definition(backend):
    B, S, N, K, H = 2, 7, 4, 2, 6
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (B, S, n, H)) for key, n in zip(keys, (N, K, K), strict=True))
    segments_BS = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0]])
    actual = jax.jit(backend.attention)(q, k, v, self_mask(CAUSAL, segments_BS))
    q, k, v, segments_BS = map(np.asarray, (q, k, v, segments_BS))
    for b, s, n in np.ndindex(B, S, N):
        seen = [t for t in range(s + 1) if segments_BS[b, t] == segments_BS[b, s]]
        scores = np.array([np.dot(q[b, s, n], k[b, t, n // 2]) for t in seen]) / np.sqrt(H)
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(actual[b, s, n], weights @ np.array([v[b, t, n // 2] for t in seen]), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_a_query_with_a_cache_sees_what_it_would_see_in_the_whole_sequence(window):
    config = CAUSAL.model_copy(update={"attention_window": window})
    whole_ST = self_mask(config, jnp.zeros((1, 8), jnp.int32)).dense(8)[0]
    positions_BS = jnp.array([[0, 1], [4, 5], [6, 7], [2, 3]])
    np.testing.assert_array_equal(cached_mask(config, positions_BS, 8).dense(2), whole_ST[positions_BS])


def test_a_cached_query_sees_slots_up_to_its_position():
    mask_BST = cached_mask(CAUSAL, jnp.array([[0, 1], [4, 5]]), 6).dense(2)
    np.testing.assert_array_equal(mask_BST.sum(axis=-1), [[1, 2], [5, 6]])
    assert bool(mask_BST[1, 0, 4])
    assert not bool(mask_BST[1, 0, 5])


@dataclass(frozen=True)
class Case:
    """Sizes, and what a mask may say. `documents`: of how many tokens each is; what is left of a row is padding."""

    queries: int
    keys: int
    heads: tuple[int, int] = (4, 2)
    kind: Any = "causal"
    window: int | None = None
    documents: tuple[int, ...] = ()
    biased: bool = False
    later: tuple[int, ...] = ()
    """Place of the first query of every row."""
    absent: bool = False

    def mask(self) -> Mask:
        draw, B = np.random.default_rng(1), 2
        ends = np.cumsum(self.documents)
        segments_S = np.searchsorted(ends, np.arange(self.queries), side="right") + 1
        if self.documents:
            segments_S = np.where(np.arange(self.queries) < ends[-1], segments_S, 0)
        remembers = bool(self.documents) and self.keys > self.queries
        return Mask(
            self.kind, self.window, self.keys,
            place_BS=jnp.asarray(np.arange(self.queries) + np.array(self.later)[:, None]) if self.later else None,
            segments_BS=jnp.asarray([segments_S, segments_S[::-1]]) if self.documents else None,
            key_segments_BT=jnp.asarray(self.key_segments(segments_S)) if remembers else None,
            prefix_BT=jnp.asarray(draw.random((B, self.keys)) < 0.2) if self.kind == "prefix" else None,
            present_BT=jnp.asarray(draw.random((B, self.keys)) < 0.7) if self.absent else None,
        )  # fmt: skip

    def key_segments(self, segments_S: np.ndarray) -> np.ndarray:
        """Keys before the queries: half of them of the document that the row begins with, as of a memory."""
        before = self.keys - self.queries
        rows = [np.pad(row, (before, 0), mode="edge") for row in (segments_S, segments_S[::-1])]
        return np.where(np.arange(self.keys) < before // 2, -1, rows)

    def inputs(self) -> list[jax.Array]:
        draw, (N, K) = np.random.default_rng(0), self.heads
        shapes = [(2, self.queries, N, 8), (2, self.keys, K, 8), (2, self.keys, K, 8)]
        return [draw.normal(size=shape) for shape in shapes + [(2, N, self.queries, self.keys)] * self.biased]


CASES = {
    "one token": Case(1, 1),
    "odd": Case(127, 127),
    "one key head": Case(300, 300, heads=(4, 1)),
    "no groups": Case(300, 300, heads=(3, 3)),
    "window": Case(300, 300, window=40),
    "window of one": Case(150, 150, window=1),
    "both sides": Case(300, 300, kind="full"),
    "window on both sides": Case(300, 300, kind="full", window=140),
    "prefix": Case(260, 260, kind="prefix"),
    "packed, with padding": Case(300, 300, documents=(5, 130, 1, 100)),
    "documents of one token": Case(200, 200, documents=(1,) * 200),
    "packed, window": Case(300, 300, documents=(140, 130), window=20),
    "bias": Case(200, 200, biased=True),
    "bias, packed": Case(270, 270, biased=True, documents=(100, 100)),
    "more keys than queries": Case(140, 400),
    "a memory": Case(140, 400, documents=(60, 50)),
    "a cache": Case(140, 400, later=(3, 200)),
    "a cache, window": Case(140, 400, later=(3, 200), window=30),
    "tokens that left": Case(200, 200, absent=True),
    "long": Case(1000, 1000, documents=(600, 300)),
}


NEAR_OTHERS = (
    "no groups", "window of one", "bias, packed", "a cache, window", "packed, window", "long", "window on both sides",
)  # fmt: skip
"""Pairs of what the other cases have one by one; not in the default suite."""


def names(cases):
    return [pytest.param(name, marks=pytest.mark.slow if name in NEAR_OTHERS else []) for name in cases]


def values_and_gradients(function, mask, inputs):
    """The output and every input's gradient, with a cotangent that differs everywhere; none for what sees nothing."""

    @jax.jit
    def run(mask, *inputs):
        def weighted(*inputs):
            out_BSNH = function(*inputs[:3], mask, *inputs[3:])
            return jnp.where(sees_BS11, out_BSNH, 0)

        sees_BS11 = jnp.any(mask.dense(inputs[0].shape[1]), axis=-1)[:, :, None, None]
        out, pull_back = jax.vjp(weighted, *inputs)
        return out, *pull_back(jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype))

    return [np.float64(x) for x in run(mask, *inputs)]


@pytest.fixture(scope="module")
def by_definition():
    """Gives values and gradients of a case in float64, computed once."""

    @cache
    def of(name):
        with jax.enable_x64(True):
            inputs = [jnp.float64(x) for x in CASES[name].inputs()]
            return values_and_gradients(reference.attention, CASES[name].mask(), inputs)

    return of


@pytest.mark.parametrize("name", names(CASES))
@pytest.mark.parametrize("backend", [dense, blockwise])
def test_backends_give_the_values_and_gradients_of_the_definition(backend, name, by_definition):
    case = CASES[name]
    found = values_and_gradients(backend.attention, case.mask(), [jnp.float32(x) for x in case.inputs()])
    for array, expected in zip(found, by_definition(name), strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-6 * max(1, np.abs(expected).max()))


IN_THE_KERNEL = [
    "one key head", "window", "both sides", "window on both sides", "packed, with padding", "documents of one token",
    "more keys than queries", "a memory",
]  # fmt: skip


@pytest.mark.parametrize("name", names(IN_THE_KERNEL))
def test_the_kernel_for_tpus_gives_the_values_and_gradients_of_the_definition(name, by_definition):
    """Interpreted: every operation by itself, on the CPU."""
    case = CASES[name]
    mask, inputs = case.mask(), [jnp.float32(x) for x in case.inputs()]
    assert splash.cannot(mask, Asked(case.queries, jnp.float32, 8)) is None
    found = values_and_gradients(partial(splash.attention, interpret=True), mask, inputs)
    for array, expected in zip(found, by_definition(name), strict=True):
        np.testing.assert_allclose(array, expected, atol=4e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["prefix", "bias", "a cache", "tokens that left", "one token"])
def test_what_the_kernel_for_tpus_cannot_do_is_known(name):
    case = CASES[name]
    assert splash.cannot(case.mask(), Asked(case.queries, jnp.float32, 8, case.biased))


def test_float64_and_bfloat16_by_blocks(by_definition):
    case, expected = CASES["packed, with padding"], by_definition("packed, with padding")
    with jax.enable_x64(True):
        exact = values_and_gradients(blockwise.attention, case.mask(), [jnp.float64(x) for x in case.inputs()])
    short = values_and_gradients(blockwise.attention, case.mask(), [jnp.bfloat16(x) for x in case.inputs()])
    for array, rough, wanted in zip(exact, short, expected, strict=True):
        np.testing.assert_allclose(array, wanted, atol=1e-14 * max(1, np.abs(wanted).max()))
        np.testing.assert_allclose(rough, wanted, atol=0.03 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", [dense, blockwise])
def test_a_document_changes_no_bit_of_another(backend):
    case = Case(300, 300, documents=(100, 60, 140))
    q, k, v = (jnp.float32(x) for x in case.inputs())
    others_S1 = ((jnp.arange(300) >= 100) & (jnp.arange(300) < 160))[:, None, None]
    mask = Mask("causal", None, 300, segments_BS=case.mask().segments_BS[:1].repeat(2, axis=0))
    found, changed = (
        values_and_gradients(backend.attention, mask, [jnp.where(others_S1, factor * x, x) for x in (q, k, v)])
        for factor in (1.0, -3.0)
    )
    for array, other in zip(found, changed, strict=True):
        stays = ~np.asarray(others_S1)[:, 0, 0]
        np.testing.assert_array_equal(array[:, stays], other[:, stays])
        assert np.any(array != other)


@pytest.mark.parametrize(
    ("mask", "blocks"),
    [
        (Mask("causal", None, 384), 6),
        (Mask("full", None, 384), 9),
        (Mask("causal", 2, 384), 5),
        (Mask("causal", 1, 384), 3),
        (Mask("causal", None, 512), 9),
    ],
)
def test_blocks_that_no_query_sees_are_not_computed(mask, blocks):
    """384 queries in three blocks, and as many of their keys as the mask says."""
    assert len(blockwise.plan(mask, 384, mask.num_keys).pairs) == blocks


def step_of(backend, mask):
    """Value and gradient: what a step reads of both passes."""
    return jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(backend.attention(*inputs, mask)), argnums=(0, 1, 2)))


def test_no_array_holds_all_scores():
    """The largest array of a program for 2,048 tokens, forward and backward, is one of the inputs' size."""
    shapes = [jax.ShapeDtypeStruct((1, 2048, heads, 8), jnp.float32) for heads in (2, 1, 1)]

    step = step_of(blockwise, Mask("causal", None, 2048))
    temporaries = step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 2048 * 2048


def test_flops_are_those_of_what_is_seen():
    S = 300
    shapes = [jax.ShapeDtypeStruct((2, S, heads, 16), jnp.float32) for heads in (4, 2, 2)]
    for mask in (Mask("causal", None, S), Mask("causal", 50, S), Mask("full", None, S)):
        programs = [step_of(backend, mask).trace(*shapes).jaxpr for backend in (dense, blockwise, splash)]
        whole, by_blocks, in_the_kernel = (step_flops(program).at(0) for program in programs)
        assert by_blocks.model == pytest.approx(whole.model, rel=1e-6)
        assert in_the_kernel.model == pytest.approx(whole.model, rel=1e-2)  # and a sum over the head size
        assert by_blocks.hardware <= 1.3 * whole.hardware
        assert in_the_kernel.hardware <= 2.5 * whole.hardware  # 384 of 300, squared, and half of the products once more


MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=2, context=2, tensor=2)]


@pytest.mark.parametrize(
    ("axes", "function", "S"),
    [(axes, attention, WORTH_BLOCKS) for axes in MESHES]
    + [(MESHES[-1], partial(splash.attention, interpret=True), 2 * splash.TILE)]
    + [(MESHES[1], partial(triton.attention, interpret=True), 150)],
)
def test_a_mesh_changes_nothing(axes, function, S):
    """Every device computes what is of its rows, heads and queries."""
    draw = np.random.default_rng(0)
    q, k, v = (jnp.float32(draw.normal(size=(8, S, heads, 8))) for heads in (4, 2, 2))
    segments_BS = jnp.asarray(np.sort(draw.integers(1, 4, (8, S)), axis=1))

    @jax.jit
    def run(q, k, v, segments_BS):
        def loss(q, k, v):
            q, k, v = (lay_out(x, "batch", "sequence", "heads", "head_dim") for x in (q, k, v))
            k, v = (lay_out(x, "batch", "all_keys", "kv_heads", "head_dim") for x in (k, v))
            mask = prepare(self_mask(CAUSAL, lay_out(segments_BS, "batch", "sequence")), Asked(S, q.dtype, 8))
            return jnp.sum(jnp.sin(function(q, k, v, mask)))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

    expected = run(q, k, v, segments_BS)
    assert choose(self_mask(CAUSAL, segments_BS), Asked(S, q.dtype, 8)).backend == "blockwise"
    with jax.set_mesh(build_mesh(Mesh(**axes))):
        found = run(q, k, v, segments_BS)
    for array, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5)
