"""Rows that stay over steps, against a bookkeeping of every row by itself; a run without them keeps nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import DeepSupervision, Run, SequenceGate
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.model.functional import FunctionalLM
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import Batch
from looplm.train.deep_supervision import RowsInWork, Segments
from looplm.train.depth import DepthSchedule
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.step import build_forward
from tests.reasoner import REASONER

STEPS, ROWS = 7, 8
STANDS_STILL = {"optim.learning_rate": 1e-30, "carry.exploration": 0.0}


def batches(run: Run, count: int) -> list[dict[str, np.ndarray]]:
    loader = train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=0)
    return [next(loader) for _ in range(count)]


def begun(program: Program) -> TrainState:
    """A new state, with a gate that tells rows apart."""
    state = program.create_state()
    kernel = state.params["sequence_gate"]["kernel"]
    drawn = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    gate = state.params["sequence_gate"] | {"kernel": jax.device_put(drawn, kernel.sharding)}
    return replace(state, params=state.params | {"sequence_gate": gate})


def trained(run: Run, steps: int = STEPS, devices: int = 1) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """The state before every step and after the last, on the host, and what the steps gave."""
    program = Program(run, build_mesh(run.mesh, jax.devices()[:devices]))
    return states_and_outputs(run, program, program.compile(), steps)


def states_and_outputs(
    run: Run, program: Program, step: Any, steps: int = STEPS
) -> tuple[list[TrainState], list[dict[str, Any]]]:
    state = begun(program)
    states, outputs = [jax.device_get(state)], []
    for index, rows in enumerate(batches(run, steps)):
        state, output = step(state, rows, index)
        states.append(jax.device_get(state))
        outputs.append(jax.device_get(output))
    return states, outputs


def carry_of(state: TrainState) -> RowsInWork:
    """Of all micro-batches one after the other."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state.carry)


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run(**REASONER | STANDS_STILL)


@pytest.fixture(scope="module")
def program(run: Run) -> Program:
    """Of one device."""
    return Program(run, build_mesh(run.mesh, jax.devices()[:1]))


@pytest.fixture(scope="module")
def step(program: Program) -> Any:
    return program.compile()


@pytest.fixture(scope="module")
def run_alone(run: Run, program: Program, step: Any) -> tuple[list[TrainState], list[dict[str, Any]]]:
    return states_and_outputs(run, program, step)


@pytest.fixture(scope="module")
def states(run_alone) -> list[TrainState]:
    return run_alone[0]


ALONE = {f"mesh.{axis}": 1 for axis in ("data", "fsdp")}


@pytest.fixture(scope="module")
def learning(tiny_run: Callable[..., Run]) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """A run on one device whose weights move."""
    return trained(tiny_run(**REASONER | ALONE))


def test_every_row_goes_its_own_way(run: Run, states: list[TrainState]) -> None:
    """A row by itself: the same puzzle, from the state that it had, until its gate or the limit says stop."""
    lm, params = FunctionalLM(run.model), states[0].params
    build_pass = build_forward(run, lm, DepthSchedule(run), dtype=jnp.float32)

    @jax.jit
    def segment(params: Any, row: Batch, start: Any) -> tuple[Any, jax.Array]:
        forward = build_pass(params, row, jnp.zeros(2, jnp.int32), jnp.int32(0))
        output = replace(forward, start=start)("last", lambda hidden_BSD: ())
        return output.state, output.sequence_gate_BQ

    halted_after = set()
    given = batches(run, STEPS)
    for number in range(ROWS):
        puzzle, start, segments = None, None, 0
        for step in range(STEPS):
            if puzzle is None:
                puzzle = {name: array[number : number + 1] for name, array in given[step].items()}
                start, segments = None, 0
            state, q_1Q = segment(params, Batch(**puzzle, sequence=jnp.array([number])), start)
            segments += 1
            halts = segments == run.carry.max_segments or bool(q_1Q[0, 0] > q_1Q[0, 1])

            carry = carry_of(states[step + 1])
            assert (carry.segments_B[number], carry.halted_B[number]) == (segments, halts)
            np.testing.assert_array_equal(carry.rows["tokens"][number], puzzle["tokens"][0])
            for ours, expected in zip(jax.tree.leaves(carry.state), jax.tree.leaves(state), strict=True):
                np.testing.assert_allclose(ours[number], expected[0], atol=1e-5)
            start = state
            if halts:
                halted_after.add(segments)
                puzzle = None
    assert {run.carry.max_segments} < halted_after, "some are stopped and some halt before"


@pytest.mark.parametrize(
    ("devices", "changes"),
    [
        (4, {"mesh.data": 2, "mesh.fsdp": 2, "data.accumulation_steps": 2}),
        pytest.param(1, {"data.accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param(8, {"mesh.data": 2, "mesh.fsdp": 4}, marks=pytest.mark.slow),
        pytest.param(8, {"mesh.fsdp": 4, "mesh.replica": 2}, marks=pytest.mark.slow),
    ],
)
def test_rows_do_not_depend_on_micro_batches_and_mesh(
    tiny_run: Callable[..., Run], learning, devices: int, changes: dict[str, Any]
) -> None:
    one, one_outputs = learning
    other, other_outputs = trained(tiny_run(**REASONER | ALONE | changes), devices=devices)
    for ours, expected in zip(map(carry_of, other), map(carry_of, one), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours._replace(state=()), expected._replace(state=()))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours.state, expected.state)
    for ours, expected in zip(other_outputs, one_outputs, strict=True):
        np.testing.assert_allclose(ours.means["train/objective"], expected.means["train/objective"], rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours.rows, expected.rows)


def test_numbers_of_rows_are_means_over_those_that_end(run_alone) -> None:
    states, outputs = run_alone
    for output, state in zip(outputs, states[1:], strict=True):
        carry = carry_of(state)
        total, count = output.rows["carry/segments"]
        assert count == carry.halted_B.sum()
        assert total == carry.segments_B[carry.halted_B].sum()
        np.testing.assert_array_equal(output.rows["carry/replaced"], [count, ROWS])
        assert 0 <= output.rows["train/accuracy"][0] <= count


def test_explorers_wait_and_are_others_in_every_step() -> None:
    rules, places = Segments(DeepSupervision(max_segments=5, exploration=0.3), SequenceGate()), jnp.arange(4000)
    draw = jax.jit(lambda key: rules._least(key, places))
    least, again, other = (np.asarray(draw(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(least, again)
    assert (least != other).any()
    np.testing.assert_array_equal(np.asarray(rules._least(jax.random.key(0), places[1000:])), least[1000:])
    assert set(least.tolist()) == {0, 2, 3, 4, 5}
    assert (least > 0).mean() == pytest.approx(0.3, abs=0.03)
    drawn = least[least > 0]
    for value in (2, 3, 4, 5):
        assert (drawn == value).mean() == pytest.approx(0.25, abs=0.05)


def test_a_row_that_breaks_makes_room(run: Run, program: Program, step: Any) -> None:
    state = program.create_state()
    first, second = batches(run, 2)
    state, _ = step(state, first, 0)
    broken = jax.tree.map(lambda leaf: leaf.at[0, 3].set(jnp.nan), state.carry.state)
    kept = jax.tree.map(lambda leaf: leaf.at[0, 3].set(False), state.carry.halted_B)
    state, output = step(replace(state, carry=state.carry._replace(state=broken, halted_B=kept)), second, 1)
    carry = carry_of(jax.device_get(state))
    assert carry.halted_B[3]
    assert output.numbers["optim/skipped"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_a_run_without_rows_that_stay_keeps_nothing(tiny_run: Callable[..., Run]) -> None:
    program = Program(tiny_run(), build_mesh(tiny_run().mesh, jax.devices()[:1]))
    assert program.abstract_state().carry is None
    assert program.empty_carry() is None
