"""The cache is changed in place: the compiled loops of a generation never make another one, with and without exits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from looplm.config.schema import AddInjection, ExitGate, Model
from looplm.infer.cache import parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.program import Plan, empty_board, write
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.draft import DraftAndVerify
from looplm.infer.schedule.in_step import InStep
from looplm.infer.schedule.scheduler import Scheduler
from looplm.infer.schedule.wavefront import Wavefront
from looplm.model.functional import FunctionalLM

NUM_LOOPS, LAYERS, ROWS, PADDED, TOKENS = 4, 3, 2, 32, 100
CACHE = f"f32[{NUM_LOOPS},{LAYERS},{ROWS},4,{PADDED + TOKENS},8]"
MOVES_NOTHING = {"parameter", "get-tuple-element", "while", "conditional", "bitcast", "optimization-barrier"}


def compiled(scheduler: Scheduler, rule: str | None) -> str:
    lm = FunctionalLM(
        Model(
            vocab_size=64, dim=32, num_heads=4, hidden_dim=32, prelude_layers=1, block_layers=LAYERS, coda_layers=1,
            injection=AddInjection(), exit_gate=ExitGate(),
        )
    )  # fmt: skip
    policy = parse_policy(None, NUM_LOOPS)
    plan = Plan(NUM_LOOPS, parse_exit(rule, lm.config), policy, scheduler, 64, ROWS, PADDED + TOKENS)
    board = jax.eval_shape(partial(empty_board, lm, plan), lm.shapes)
    ends_N = jax.ShapeDtypeStruct((1,), jnp.int32)
    return write.lower(lm, plan, lm.shapes, board, Sampling(), ends_N, 1000, until_one_ends=False).compile().as_text()


@pytest.mark.parametrize(
    ("scheduler", "rule"),
    [
        (InStep(), None),
        (InStep(), "latent:0.5"),
        (DepthBatching(), "latent:0.5"),
        (Wavefront(1), None),
        (DraftAndVerify(1, 2), None),
    ],
)
def test_loops_write_into_the_cache_and_copy_none_of_it(scheduler: Scheduler, rule: str | None) -> None:
    computations = re.split(r"\n(?=\S[^\n]*\{\n)", compiled(scheduler, rule))
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
