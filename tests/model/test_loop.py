"""The driver: detached prefix, trained suffix, depth as data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.model.depth import Depth
from looplm.model.layers import Linear
from looplm.model.loop import run_loops


def step(parameters, state, inputs, loop):
    return jnp.tanh(parameters * state + inputs), None


def run(parameters, state, inputs, depth, **options):
    return run_loops(step, parameters, state, inputs, depth, keep=lambda state: state, **options)


def unrolled(parameters, state, inputs, detached, trained):
    """The definition: the gradient passes through the last `trained` loops only."""
    stop = jax.lax.stop_gradient
    for _ in range(detached):
        state = stop(jnp.tanh(stop(parameters) * state + stop(inputs)))
    for _ in range(trained):
        state = jnp.tanh(parameters * state + inputs)
    return state


@pytest.mark.parametrize("remat", ["none", "loop", "offload"])
@pytest.mark.parametrize(("detached", "trained"), [(0, 1), (0, 3), (0, 4), (1, 4), (5, 4), (2, 2)])
def test_value_and_gradients_equal_the_unrolled_definition(detached, trained, remat):
    arguments = (jnp.float32(0.7), jnp.float32(0.3), jnp.float32(0.2))

    def driver(parameters, state, inputs, detached, trained):
        return run(parameters, state, inputs, Depth(4, trained, detached), remat=remat)[0]

    actual = jax.jit(jax.value_and_grad(driver, argnums=(0, 1, 2)))(*arguments, detached, trained)
    expected = jax.value_and_grad(unrolled, argnums=(0, 1, 2))(*arguments, detached, trained)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6, atol=1e-9)


def test_sequences_of_different_depth_equal_separate_runs():
    state_B, inputs_B = jnp.float32([0.3, -0.2, 0.5]), jnp.float32([0.2, 0.1, 0.4])
    detached, trained = [0, 3, 1], [2, 4, 1]

    def batched(parameters, state, inputs):
        depth = Depth(4, jnp.array(trained), jnp.array(detached))
        return jnp.sum(run(parameters, state, inputs, depth)[0])

    def separate(parameters, state, inputs):
        return sum(unrolled(parameters, state[b], inputs[b], detached[b], trained[b]) for b in range(3))

    arguments = (jnp.float32(0.7), state_B, inputs_B)
    actual = jax.jit(jax.value_and_grad(batched, argnums=(0, 1, 2)))(*arguments)
    expected = jax.value_and_grad(separate, argnums=(0, 1, 2))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), actual, expected)


def test_every_depth_runs_the_same_program():
    traced = 0

    @jax.jit
    def driver(detached, trained):
        nonlocal traced
        traced += 1
        return run(jnp.float32(0.7), jnp.float32(0.3), jnp.float32(0.2), Depth(4, trained, detached))[0]

    for detached, trained in [(0, 1), (0, 4), (3, 4), (60, 4)]:
        driver(detached, trained)
    assert traced == 1


def test_skipped_iterations_come_first_and_are_marked():
    depth = Depth(4, jnp.int32(2))
    last, states, _ = run(jnp.float32(0.7), jnp.float32(0.3), jnp.float32(0.2), depth)
    np.testing.assert_array_equal(depth.active_RB[:, 0], [False, False, True, True])
    np.testing.assert_array_equal(states[:2], jnp.float32([0.3, 0.3]))
    np.testing.assert_allclose(states[2], unrolled(0.7, 0.3, 0.2, 0, 1), rtol=1e-6)
    assert states[3] == last


@pytest.mark.parametrize(
    ("depth", "may_skip"),
    [(Depth(4), False), (Depth(4, 4), False), (Depth(4, 3), True), (Depth(4, jnp.int32(4)), True)],
)
def test_iterations_are_marked_only_where_one_of_them_may_be_skipped(depth, may_skip):
    """A program that always runs all of them has no condition."""
    assert depth.always_full != may_skip
    assert (depth.active_RB is not None) == may_skip


@pytest.mark.parametrize(("detached", "trained"), [(0, 3), (0, 2), (1, 3), (4, 3)])
def test_each_loop_gets_its_own_slice_by_its_number_and_reports(detached, trained):
    """Of tables of 5 loops; loops beyond the end get the last row."""
    table_T = jnp.float32([0.3, -0.5, 0.7, 0.2, 0.9])

    def counting(parameters, state, inputs, loop):
        return jnp.tanh(state + loop.own), {"number": loop.number_B, "total": loop.total_B, "own": loop.own * 10}

    def driver(table_T, detached, trained):
        ran = run_loops(
            counting, None, jnp.float32(0.1), None, Depth(3, trained, detached), per_loop=table_T, remat="loop"
        )
        return ran.carry, ran.reports

    def definition(table_T):
        state = jnp.float32(0.1)
        for t in range(detached + trained):
            row = table_T[min(t, 4)]
            state = jnp.tanh(state + (jax.lax.stop_gradient(row) if t < detached else row))
            state = jax.lax.stop_gradient(state) if t < detached else state
        return state

    (state, reports), gradient = jax.jit(jax.value_and_grad(driver, has_aux=True))(table_T, detached, trained)
    expected, expected_gradient = jax.value_and_grad(definition)(table_T)
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)
    numbers = np.arange(detached, detached + trained)
    skipped = 3 - trained
    np.testing.assert_array_equal(reports["number"][:, 0], [*[0] * skipped, *numbers])
    np.testing.assert_array_equal(reports["total"][:, 0], [*[0] * skipped, *[detached + trained] * trained])
    np.testing.assert_allclose(reports["own"], [*[0] * skipped, *10 * table_T[np.minimum(numbers, 4)]])


def test_a_step_may_run_loops_itself():
    """Three loops of two, the first of each without gradient, against the same written out."""

    def outer(parameters, state, inputs, loop):
        return run_loops(step, parameters, state, inputs, Depth(1, num_detached=1)).carry, None

    def nested(parameters, state, inputs):
        return run_loops(outer, parameters, state, inputs, Depth(2, num_detached=1), remat="loop").carry

    def definition(parameters, state, inputs):
        stop = jax.lax.stop_gradient
        state = unrolled(stop(parameters), stop(state), stop(inputs), 1, 1)
        for _ in range(2):
            state = unrolled(parameters, state, inputs, 1, 1)
        return state

    arguments = (jnp.float32(0.7), jnp.float32(0.3), jnp.float32(0.2))
    actual, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(*arguments) for f in (nested, definition))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), actual, expected)


def test_gradients_are_summed_over_loops_in_float32():
    """2000 loops that each add 1 to the gradient: bfloat16 would stop counting at 256."""
    linear = Linear(nnx.Rngs(0), nnx.initializers.ones, "BSD,DE->BSE", (1, 1), ("embed", "embed_out"), ())
    graph, parameters = nnx.split(linear)

    def constant_step(parameters, state, inputs, *_):
        return nnx.merge(graph, parameters)(inputs), None

    def loss(parameters):
        kept = run_loops(
            constant_step, parameters, jnp.zeros((1, 1, 1), jnp.bfloat16), jnp.ones((1, 1, 1), jnp.bfloat16),
            Depth(2000), keep=lambda state: state,
        ).kept  # fmt: skip
        return jnp.sum(kept.astype(jnp.float32))

    assert jax.grad(loss)(parameters)["kernel"][...] == 2000


def test_activation_memory_of_a_loop_is_its_state_only():
    """With remat the backward pass keeps one state per loop, not the layers' inner values."""

    def wide_step(parameters, state, inputs, *_):
        return jnp.tanh(jnp.tile(state, (1, 16)) @ parameters), None

    def temporary_bytes(num_loops, remat):
        def loss(parameters, state):
            return jnp.sum(run_loops(wide_step, parameters, state, None, Depth(num_loops), remat=remat).carry)

        state, parameters = jnp.zeros((256, 32)), jnp.zeros((512, 32))
        compiled = jax.jit(jax.grad(loss)).lower(parameters, state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state_bytes = 256 * 32 * 4
    slope = (temporary_bytes(24, "loop") - temporary_bytes(8, "loop")) / 16
    assert slope == pytest.approx(state_bytes, rel=0.05)
    assert (temporary_bytes(24, "none") - temporary_bytes(8, "none")) / 16 > 2 * state_bytes
