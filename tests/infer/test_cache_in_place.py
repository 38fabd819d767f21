"""The cache is changed in place: the compiled loops of a generation never make another one, with and without exits."""

import re

import jax
import jax.numpy as jnp
import pytest

from looplm.config.schema import AddInjection, ExitGate, Model
from looplm.infer.cache import parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import Sampling, _generate
from looplm.model.functional import FunctionalLM

NUM_LOOPS, LAYERS, ROWS, PADDED, TOKENS = 4, 3, 2, 32, 100
CACHE = f"f32[{NUM_LOOPS},{LAYERS},{ROWS},{PADDED + TOKENS},4,8]"
MOVES_NOTHING = {"parameter", "get-tuple-element", "while", "conditional", "bitcast", "optimization-barrier"}


def compiled(rule: str | None) -> str:
    lm = FunctionalLM(
        Model(
            vocab_size=64, dim=32, num_heads=4, hidden_dim=32, prelude_layers=1, block_layers=LAYERS, coda_layers=1,
            injection=AddInjection(), exit_gate=ExitGate(),
        )
    )  # fmt: skip
    policy = parse_policy(None, NUM_LOOPS)
    sampling = Sampling(NUM_LOOPS, parse_exit(rule, lm.config), policy, TOKENS, greedy=True, num_ids=64)
    tokens_BP, lengths_B, stream_B, end_ids_N = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((ROWS, PADDED), jnp.int32),
            ((ROWS,), jnp.int32),
            ((ROWS,), jnp.uint32),
            ((1,), jnp.int32),
        )
    )
    lowered = _generate.lower(lm, sampling, lm.shapes, tokens_BP, lengths_B, 1.0, stream_B, end_ids_N)
    return lowered.compile().as_text()


@pytest.mark.parametrize("rule", [None, "latent:0.5"])
def test_loops_write_into_the_cache_and_copy_none_of_it(rule: str | None) -> None:
    computations = re.split(r"\n(?=\S[^\n]*\{\n)", compiled(rule))
    roots = {}
    for text in computations[1:]:
        if root := re.search(r"ROOT \S+ = [^( ]+ (\S+)\(", text):  # a tuple makes nothing
            roots[re.match(r"(?:ENTRY )?%?(\S+)", text)[1]] = root[1]
    makers = []
    for text in computations[1:]:
        if text.startswith("ENTRY"):
            continue  # it makes the empty cache
        for operation, rest in re.findall(rf"= {re.escape(CACHE)}\S* (\S+)\((.*)", text):
            calls = re.search(r"calls=%?([\w.\-]+)", rest)
            makers.append(roots[calls[1]] if calls else operation)
    made = [operation for operation in makers if operation not in MOVES_NOTHING]
    assert made
    assert set(made) <= {"scatter", "dynamic-update-slice"}, "all else would write as much as the cache holds"
