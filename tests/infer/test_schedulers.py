"""However tokens are put together to be computed, the text is that of rows in step."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import looplm
from looplm.config.schema import ExitGate, Model, NormalInit
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import Generation
from looplm.infer.program import take_up, write
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.in_step import InStep
from looplm.model.exits import Exits
from looplm.model.functional import FunctionalLM

GOLDEN = Path(__file__).parents[1] / "golden"
RAGGED = [np.arange(1, 8), np.array([5]), np.arange(9, 30, 2), np.arange(50, 83)]
LOOPS, TOKENS = 4, 20


@pytest.fixture(scope="module")
def models():
    """Three official models: loops that norm their state, with a coda and drawn states, with a decaying injection."""
    return {name: looplm.load(GOLDEN / f"{name}_a") for name in ("ouro", "huginn", "parcae")}


def texts(lm, params, *, prompts=RAGGED, temperature=None, **options):
    """(tokens of every prompt, what was counted)."""
    settings = dict(num_loops=LOOPS, max_tokens=TOKENS, sampling=Sampling(temperature=temperature)) | options
    written = Generation(lm, params, prompts, num_ids=lm.config.vocab_size, **settings)
    rows = dict(written)
    assert sorted(rows) == list(range(len(prompts))), "every prompt is answered once"
    return [rows[number].tokens.tolist() for number in range(len(prompts))], written.counts


WAYS = {
    "depth batching": dict(scheduler=DepthBatching()),
    "wavefront": dict(draft="1"),
    "wavefront of two": dict(draft="3"),
    "draft and verify": dict(draft="2:3"),
    "two rows for four prompts": dict(batch_size=2),
    "wavefront, two rows": dict(draft="1", batch_size=2),
}


@pytest.mark.parametrize(
    ("name", "way", "temperature"),
    [
        ("ouro", "draft and verify", 1.0),
        ("ouro", "depth batching", 1.0),
        *(
            pytest.param(name, way, temperature, marks=pytest.mark.slow)
            for name, way, temperature in (
                ("huginn", "wavefront, two rows", None),
                ("parcae", "wavefront of two", None),
                ("ouro", "wavefront", 1.0),
                ("ouro", "two rows for four prompts", None),
                ("huginn", "wavefront", None),
                ("huginn", "draft and verify", None),
                ("huginn", "depth batching", 1.0),
                ("parcae", "two rows for four prompts", None),
                ("parcae", "wavefront", 1.0),
                ("parcae", "draft and verify", None),
            )
        ),
    ],
)
def test_every_scheduler_writes_the_text_of_rows_in_step(models, name, way, temperature):
    lm = models[name]
    options = dict(temperature=temperature, end_ids=[int(RAGGED[0][0]), 40])
    expected, _ = texts(lm.functional, lm.params, scheduler=InStep(), **options)
    found, counts = texts(lm.functional, lm.params, **options, **WAYS[way])
    assert found == expected
    assert 0 <= counts.accepted <= counts.drafted
    assert counts.written == sum(map(len, expected))


@dataclass(frozen=True)
class Recorded:
    """An exit rule that lets tokens leave as a trace says, by position."""

    loops: tuple[int, ...]

    def build(self, model):
        return Exits(OfTrace(self.loops))


class OfTrace(nnx.Module):
    def __init__(self, loops):
        self.loops = loops

    def init(self, h_BSD):
        return ()

    def judge(self, memory, h_BSD, context):
        own_BS = context.positions_BS * 7 + context.sequence_B[:, None].astype(jnp.int32) % 1000
        leave_BS = jnp.asarray(self.loops)[own_BS % len(self.loops)]
        return context.loop.number_B[:, None] + 1 >= leave_BS, memory


@pytest.fixture(scope="module")
def small():
    lm = FunctionalLM(
        Model(vocab_size=83, dim=32, num_heads=4, hidden_dim=32, block_layers=1, exit_gate=ExitGate(),
              init=NormalInit(std=0.3))
    )  # fmt: skip
    return lm, lm.init(jax.random.key(0))


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.25, 0.75))])
def test_depth_batching_applies_the_block_as_often_as_tokens_need(small, share):
    """At most 1 / 0.95 of the sum of all depths, with more prompts than rows; in step it is far more."""
    num_loops = 8
    spread = np.random.default_rng(0).integers(1, int(2 * share * num_loops), 97)
    trace = Recorded(tuple(int(loops) for loops in spread))
    prompts = [np.arange(1, 2 + number % 5) + number for number in range(24)]
    options = dict(prompts=prompts, num_loops=num_loops, exit=trace, max_tokens=60, batch_size=8)
    expected, in_step = texts(*small, scheduler=InStep(), **options)
    found, batched = texts(*small, **options)
    assert found == expected
    first_tokens = len(prompts)  # these are read in the pass over the prompts
    assert batched.written - first_tokens == 24 * 59
    assert in_step.used == batched.used, "what tokens need does not depend on the scheduler"
    assert abs(batched.used / (batched.written - first_tokens) / num_loops - share) < 0.05
    assert batched.used > 0.95 * batched.slots
    assert in_step.used < 0.8 * in_step.slots


def test_nothing_is_traced_while_text_is_written(small):
    """A queue of prompts of many lengths: as many programs as there are sizes of padded prompts and of groups."""
    write.clear_cache(), take_up.clear_cache()
    prompts = [np.arange(1, 2 + number * 3 % 40) for number in range(30)]
    rule = parse_exit("latent:0.4", small[0].config)
    texts(*small, prompts=prompts, exit=rule, batch_size=6, max_tokens=9)
    assert write._cache_size() == 1
    assert take_up._cache_size() <= 4  # up to 32 and up to 64 tokens, of 6 rows and of 4
