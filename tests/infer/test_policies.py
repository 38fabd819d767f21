"""KV policies: how much they keep, what they keep it as, and which of them are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import ConcatInjection, ExitGate, Model, NormalInit
from looplm.errors import UserError
from looplm.infer.cache import cache_bytes, new_cache, parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import generate
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.in_step import InStep
from looplm.model.cache import Kept
from looplm.model.functional import FunctionalLM

R = 6
CONFIG = Model(
    vocab_size=53, dim=32, num_heads=4, num_kv_heads=2, hidden_dim=32, prelude_layers=1, block_layers=2, coda_layers=1,
    injection=ConcatInjection(), exit_gate=ExitGate(initial_exit_probability=0.3), init=NormalInit(std=0.3),
)  # fmt: skip
PROMPTS = [np.arange(1, 8), np.array([5]), np.arange(9, 30, 2)]
SLOTS = {
    "each": 6,
    "ragged": 6,
    "last": 1,
    "single": 1,
    "first": 2,
    "anchor:3": 4,
    "anchor": 6,
    "ring:4": 4,
    "ring:9": 6,
}


@pytest.fixture(scope="module")
def lm():
    lm = FunctionalLM(CONFIG)
    return lm, lm.init(jax.random.key(0))


def texts(lm, kv, **options):
    settings = dict(num_loops=R, max_tokens=14, num_ids=CONFIG.vocab_size) | options
    return [row.tokens.tolist() for row in generate(*lm, PROMPTS, kv=kv, **settings)]


@pytest.mark.parametrize("stored", ["", ",bf16", ",int8"])
@pytest.mark.parametrize("kv", SLOTS)
def test_the_cache_is_as_large_as_the_formula_says(kv, stored):
    policy = parse_policy(kv + stored, R)
    sizes = dict(batch_size=3, length=40, policy=policy, dtype=jnp.float32)
    cache = jax.eval_shape(lambda: new_cache(CONFIG, **sizes))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    head = {"": 8 * 4, ",bf16": 8 * 2, ",int8": 8 + 4}[stored]
    assert held == cache_bytes(CONFIG, **sizes) == 2 * (1 + 2 * SLOTS[kv] + 1) * 3 * 40 * 2 * head


def test_a_policy_with_a_slot_for_every_loop_is_each(lm):
    expected = texts(lm, "each")
    assert [texts(lm, kv) for kv in ("anchor:6", "ring:6")] == [expected] * 2
    assert texts(lm, "first") != expected, "shared slots are seen"


def test_anchor_of_one_is_first(lm):
    assert texts(lm, "anchor:1") == texts(lm, "first")


@pytest.mark.parametrize(
    "kv", [*(pytest.param(kv, marks=pytest.mark.slow) for kv in ("first", "ragged,int8")), "anchor:3"]
)
def test_rows_that_leave_at_different_loops_do_not_depend_on_one_another(lm, kv):
    options = dict(exit=parse_exit("gate:0.6", CONFIG))
    together = texts(lm, kv, scheduler=InStep(), **options)
    assert texts(lm, kv, scheduler=DepthBatching(), batch_size=2, **options) == together


def test_int8_is_within_half_a_step_of_the_largest_of_a_head():
    x_BSKH = np.random.default_rng(0).normal(size=(2, 5, 3, 16)).astype(np.float32)
    x_BSKH[0, 0, 0] = 0
    kept = Kept.empty((1, 1, 2, 3, 5, 16), jnp.int8).encode(jnp.asarray(x_BSKH))
    assert kept.numbers.dtype == jnp.int8
    error_BSKH = np.abs(kept.decode(jnp.float32) - x_BSKH)
    assert (error_BSKH <= np.abs(x_BSKH).max(axis=-1, keepdims=True) / 127 / 2 * 1.001).all()


@pytest.mark.parametrize("text", ["none", "ring", "ring:0", "each:2", "last,int4", "ring:x", "each,int8,bf16"])
def test_an_unknown_policy_is_refused(text):
    with pytest.raises(UserError, match=r"KV policy .* is not known; use each, ragged"):
        parse_policy(text, R)
