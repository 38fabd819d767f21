"""Rows that go on over steps, and a memory of them: against bookkeeping by token, other meshes, and one long pass."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.check import check
from looplm.config.schema import RelativePositions, RotaryPositions, SegmentMemory
from looplm.data.dataset import TokenDataset
from looplm.data.mixture import open_mixture
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.memory import Memory, newest
from looplm.model.remembered import Remembered
from looplm.model.report import Report, Reporting
from looplm.ops.attention import cached_mask, self_mask
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import Batch
from looplm.train.program import Program

STREAMS = {"data.order": "streams"}
MEMORY = STREAMS | {"model.memory": {"length": 12}}


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run(**MEMORY)


def batches(run, count):
    mixture = open_mixture(run.data, seed=run.seed)
    return [mixture.batch(step, slice(0, mixture.batch_size)) for step in range(count)]


def test_rows_go_on_and_positions_say_so(run):
    """Also after the end of the dataset, where every row begins anew."""
    mixture, S = open_mixture(run.data, seed=run.seed), run.data.sequence_length
    (part,) = mixture.parts
    rounds = len(part.windows) // mixture.batch_size
    starts = {int(offset) for offset in part.windows.dataset.document_offsets}
    for step in (0, 1, 2, rounds - 1, rounds, rounds + 1):
        batch = mixture.batch(step, slice(0, mixture.batch_size))
        for row in range(mixture.batch_size):
            first = (row * rounds + step % rounds) * S
            np.testing.assert_array_equal(batch["tokens"][row], part.windows.dataset.tokens(first, first + S))
            goes_on = step % rounds > 0 and first not in starts
            assert (batch["positions"][row, 0] > 0) == goes_on
            place = S * goes_on
            for column in range(S):
                place = 0 if column and first + column in starts else place
                assert batch["positions"][row, column] == place
                place += 1


def test_only_tokens_of_the_same_document_are_seen(run):
    """Against the documents' numbers in the dataset, token by token."""
    rules, dataset = Remembered(SegmentMemory(length=40), loops=1, layers=1), TokenDataset.open(run.data.train)
    mixture, S, steps = open_mixture(run.data, seed=run.seed), run.data.sequence_length, 120
    rounds, offsets = len(mixture.parts[0].windows) // mixture.batch_size, dataset.document_offsets
    carry, seen_some = None, 0
    for step, rows in enumerate(batches(run, steps)):
        batch = Batch(**{name: jnp.asarray(rows[name]) for name in ("tokens", "labels", "segments", "positions")},
                      sequence=jnp.arange(mixture.batch_size))  # fmt: skip
        entered = jnp.zeros((1, mixture.batch_size, 1, S, 2))
        carry = carry or rules.empty(batch, jax.ShapeDtypeStruct((mixture.batch_size, S, 2), jnp.float32))
        forward = Forward(None, batch.tokens, Context(batch.positions, None), Depth(1), jnp.float32)
        seen_BM = rules.enter(carry, forward, None).memory.seen_BM
        for row in range(mixture.batch_size):
            first = (row * rounds + step) * S
            number = np.searchsorted(offsets, np.arange(first - 40, first + 1).clip(0), side="right")
            within = np.arange(first - 40, first) >= row * rounds * S
            expected = within & (number[:-1] == number[-1])
            np.testing.assert_array_equal(seen_BM[row], expected)
            seen_some += expected.sum()
        output = SimpleNamespace(reports={"block": Report(memory_BSD=entered)})
        carry = rules.leave(carry, batch, output, None)
    assert 0 < seen_some < 40 * mixture.batch_size * steps


@pytest.mark.parametrize("positions", ["rotary", "relative"])
@pytest.mark.parametrize("loops", ["all", "last"])
def test_two_segments_are_one_pass(run, positions, loops):
    """With a memory of a whole segment. Of a block that runs once, all loops are the last."""
    kinds = {"rotary": RotaryPositions(), "relative": RelativePositions()}
    model = run.model.model_copy(update={"positions": kinds[positions]})
    lm, R = FunctionalLM(model), 2 if loops == "all" else 1
    bound, S = lm.bind(lm.init(jax.random.key(0))), 16
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 2 * S), 0, model.vocab_size)
    places_BT = jnp.broadcast_to(jnp.arange(2 * S), (2, 2 * S))

    def forward(part, memory=None, shift=0):
        places = places_BT[:, part]
        context = Context(places + shift, self_mask(model, jnp.ones_like(places)), reporting=Reporting(memory=True))
        return Forward(bound, tokens_BT[:, part], context, Depth(R), jnp.float32, memory=memory)()

    whole, first = jax.jit(lambda: (forward(slice(None)), forward(slice(0, S))))()
    later = jax.jit(lambda memory: forward(slice(S, None), memory, shift=3))
    entered_RLBSD = jnp.moveaxis(first.reports["block"].memory_BSD, 2, 1)
    memory = Memory(entered_RLBSD, jnp.ones((2, S), bool))
    second = later(memory)
    np.testing.assert_allclose(second.read[0], whole.read[0][:, S:], atol=2e-6)
    hidden = memory._replace(states_RLBMD=entered_RLBSD * 100, seen_BM=~memory.seen_BM)
    nothing = hidden._replace(states_RLBMD=entered_RLBSD * 0)
    np.testing.assert_array_equal(later(hidden).read, later(nothing).read)
    assert np.abs(np.asarray(second.read - later(hidden).read)).max() > 1e-4


def trained(run, devices=1, steps=4, state=None, first=0):
    program = Program(run, build_mesh(run.mesh, jax.devices()[:devices]))
    step, state, losses = program.compile(), state or program.create_state(), []
    for index, rows in list(enumerate(batches(run, steps)))[first:]:
        state, output = step(state, rows, index)
        losses.append(float(output.means["train/loss"]))
    return losses, jax.device_get(state), output


@pytest.fixture(scope="module")
def alone(run):
    return trained(run)


def test_a_mesh_and_micro_batches_change_nothing(tiny_run, alone):
    meshed = tiny_run(**MEMORY, **{"mesh.data": 2, "mesh.fsdp": 2, "data.accumulation_steps": 2})
    losses, state, _ = trained(meshed, devices=4)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for ours, expected in zip(jax.tree.leaves(state.carry), jax.tree.leaves(alone[1].carry), strict=True):
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=1e-3)


def test_it_is_read(alone, tiny_run):
    """The first step has none, later ones do; one of length 0 is none to the bit."""
    without, _, _ = trained(tiny_run(**STREAMS))
    assert alone[0][0] == without[0]
    assert all(ours != theirs for ours, theirs in zip(alone[0][1:], without[1:], strict=True))
    program = Program(tiny_run(**STREAMS | {"model.memory": {"length": 0}}), build_mesh(tiny_run().mesh))
    assert program.carrying is None
    empty, plain = program, Program(tiny_run(**STREAMS), program.mesh)
    assert empty.lower().as_text() == plain.lower().as_text()


def test_token_by_token_a_memory_is_a_window(run):
    """So what is written with a cache sees as far back as segments of one token do."""
    lm, T, M = FunctionalLM(run.model), 16, run.model.memory.length
    bound, tokens_BT = lm.bind(lm.init(jax.random.key(0))), jax.random.randint(jax.random.key(1), (1, T), 0, 384)

    def forward(part, memory=None, window=None):
        places_BS = jnp.arange(T)[None, part]
        mask = replace(self_mask(run.model, jnp.ones_like(places_BS)), window=window)
        context = Context(places_BS, mask, reporting=Reporting(memory=True))
        return Forward(bound, tokens_BT[:, part], context, Depth(2), jnp.float32, memory=memory)()

    @jax.jit
    def one_by_one():
        memory, read = Memory(jnp.zeros((2, 1, 1, M, 16)), jnp.zeros((1, M), bool)), []
        for t in range(T):
            out = forward(slice(t, t + 1), memory)
            entered_RLBSD = jnp.moveaxis(out.reports["block"].memory_BSD, 2, 1)
            seen_BM = newest(memory.seen_BM, jnp.ones((1, 1), bool), axis=1)
            memory = Memory(newest(memory.states_RLBMD, entered_RLBSD, axis=3), seen_BM)
            read.append(out.read[0])
        return jnp.concatenate(read, axis=1)

    np.testing.assert_allclose(one_by_one(), forward(slice(None), window=M + 1).read[0], atol=5e-6)
    seen_T = cached_mask(run.model, jnp.array([[20]]), 32).dense(1)[0, 0]
    np.testing.assert_array_equal(np.flatnonzero(seen_T), np.arange(8, 21))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.order": "shuffled"}, "data.order=shuffled mixes them"),
        ({"data.packing": "best_fit"}, "data.packing=best_fit"),
        ({"optim.guard.rewinds": 2}, "rewinds=2"),
        ({"model.positions": {"kind": "learned", "length": 64}}, "positions=learned"),
        ({"mesh.context": 2}, "mesh.context=1"),
        ({"loop.backprop_loops": 1}, "memory.loops=last"),
        ({"model.halting": {"kind": "act"}}, "halting=act"),
    ],
)
def test_refused(tiny_run, changes, told):
    with pytest.raises(UserError, match=told):
        check(tiny_run(**MEMORY | changes))


def test_too_few_windows_for_the_rows(tiny_run):
    run = tiny_run(**STREAMS | {"data.batch_tokens": 16 * 100_000})
    with pytest.raises(UserError, match=r"use less data\.batch_tokens"):
        open_mixture(run.data, seed=0)
