"""The product with a matrix against JAX's own, in float64, and what its gradient is computed from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.ops.weight_product import weight_product

EQUATIONS = pytest.mark.parametrize(
    ("equation", "x", "kernel"),
    [
        ("BSD,DF->BSF", (2, 5, 4), (4, 7)),
        ("BSF,FD->BSD", (2, 5, 7), (7, 4)),
        ("BSD,DNH->BSNH", (2, 5, 4), (4, 3, 2)),
        ("BSNH,NHD->BSD", (2, 5, 3, 2), (3, 2, 4)),
    ],
)


def operands(x: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(jax.random.key(0), x), jax.random.normal(jax.random.key(1), kernel)


@EQUATIONS
def test_gradients_are_those_of_the_definition(equation: str, x: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    x_, kernel_ = operands(x, kernel)
    found, pull_back = jax.vjp(lambda x, kernel: weight_product(equation, x, kernel, None), x_, kernel_)
    cotangent = jax.random.normal(jax.random.key(2), found.shape)
    with jax.enable_x64():
        wide = [jnp.asarray(np.float64(each)) for each in (x_, kernel_)]
        expected, pull_back_wide = jax.vjp(lambda x, kernel: jnp.einsum(equation, x, kernel), *wide)
        gradients = pull_back_wide(jnp.asarray(np.float64(cotangent)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for one, other in zip(pull_back(cotangent), gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@EQUATIONS
def test_no_gradient_is_turned(equation: str, x: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """The result of the product is the kernel's gradient: nothing transposes it."""

    def gradient(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> jax.Array:
        pull_back = jax.vjp(lambda kernel: weight_product(equation, x, kernel, None), kernel)[1]
        return pull_back(cotangent)[0]

    arrays = operands(x, kernel)
    cotangent = jnp.einsum(equation, *arrays)
    assert "transpose" not in str(jax.make_jaxpr(gradient)(*arrays, cotangent)).split("custom_vjp_call")[-1]
