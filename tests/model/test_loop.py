"""The driver: detached prefix, trained suffix, depth as data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from looplm.model.layers import Linear
from looplm.model.loop import Depth, run_loops


def step(parameters, state, inputs, loop_data, t):
    return jnp.tanh(parameters * state + inputs), loop_data


def nothing(state):
    return None


def run(parameters, state, inputs, depth, **options):
    options = {"collect": lambda state: state, "remat": "none", "unroll": False, **options}
    return run_loops(step, parameters, state, inputs, depth, **options)


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


def test_each_loop_gets_and_returns_its_own_data():
    def counting(parameters, state, inputs, loop_data, t):
        return state + loop_data, loop_data * 10

    state, _, data = run_loops(
        counting, None, jnp.float32(0), None, Depth(3), collect=nothing, per_loop=jnp.float32([1, 2, 4]),
        remat="none", unroll=False,
    )  # fmt: skip
    assert state == 7
    np.testing.assert_array_equal(data, [10, 20, 40])


def test_gradients_are_summed_over_loops_in_float32():
    """2000 loops that each add 1 to the gradient: bfloat16 would stop counting at 256."""
    linear = Linear(nnx.Rngs(0), nnx.initializers.ones, "BSD,DE->BSE", (1, 1), ("embed", "embed_out"), ())
    graph, parameters = nnx.split(linear)

    def constant_step(parameters, state, inputs, *_):
        return nnx.merge(graph, parameters)(inputs), None

    def loss(parameters):
        collected = run_loops(
            constant_step, parameters, jnp.zeros((1, 1, 1), jnp.bfloat16), jnp.ones((1, 1, 1), jnp.bfloat16),
            Depth(2000), collect=lambda state: state, remat="none", unroll=False,
        )[1]  # fmt: skip
        return jnp.sum(collected.astype(jnp.float32))

    assert jax.grad(loss)(parameters)["kernel"][...] == 2000


def test_activation_memory_of_a_loop_is_its_state_only():
    """With remat the backward pass keeps one state per loop, not the layers' inner values."""

    def wide_step(parameters, state, inputs, *_):
        return jnp.tanh(jnp.tile(state, (1, 16)) @ parameters), None

    def temporary_bytes(num_loops, remat):
        def loss(parameters, state):
            return jnp.sum(
                run_loops(
                    wide_step, parameters, state, None, Depth(num_loops), collect=nothing, remat=remat,
                    unroll=False,
                )[0]
            )  # fmt: skip

        state, parameters = jnp.zeros((256, 32)), jnp.zeros((512, 32))
        compiled = jax.jit(jax.grad(loss)).lower(parameters, state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    state_bytes = 256 * 32 * 4
    slope = (temporary_bytes(24, "loop") - temporary_bytes(8, "loop")) / 16
    assert slope == pytest.approx(state_bytes, rel=0.05)
    assert (temporary_bytes(24, "none") - temporary_bytes(8, "none")) / 16 > 2 * state_bytes
