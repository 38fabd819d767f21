"""A sum over a traced number of rounds against a Python loop: value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from looplm.ops.rounds import sum_of_rounds

NUM = 6


def part(r, index_N, x_N, w):
    """Differs in every round and is linear in neither argument."""
    return jnp.sin(x_N[index_N] * w["a"] * (1.0 + r)) + w["b"] ** 2 * jnp.roll(x_N, r)


def test_values_and_gradients_are_those_of_a_python_loop():
    x_N = jax.random.normal(jax.random.key(0), (8,))
    w = {"a": jnp.float32(0.7), "b": jnp.float32(-1.3)}
    index_N, weight_N = jnp.array([3, 1, 0, 7, 7, 2, 5, 4]), jnp.arange(8.0)

    @jax.jit
    def ours(n, x_N, w):
        return jax.value_and_grad(lambda x, w: jnp.vdot(weight_N, sum_of_rounds(part, n, index_N, x, w)), (0, 1))(
            x_N, w
        )

    for n in range(1, NUM):

        def plain(x, w, n=n):
            return jnp.vdot(weight_N, sum(part(r, index_N, x, w) for r in range(n)))

        expected = jax.value_and_grad(plain, (0, 1))(x_N, w)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours(jnp.int32(n), x_N, w), expected)
    assert ours._cache_size() == 1


def test_what_is_recomputed_gives_the_same_gradients():
    x_N, w = jnp.linspace(-1, 1, 8), {"a": jnp.float32(0.7), "b": jnp.float32(-1.3)}

    def total(x, w):
        return jnp.sum(sum_of_rounds(part, jnp.int32(3), jnp.arange(8), x, w))

    expected = jax.grad(total, (0, 1))(x_N, w)
    jax.tree.map(np.testing.assert_allclose, jax.jit(jax.grad(jax.checkpoint(total), (0, 1)))(x_N, w), expected)
