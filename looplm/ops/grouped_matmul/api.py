"""The grouped matrix product with its gradient, and which backend computes it."""

from collections.abc import Callable
from functools import partial

import jax

from looplm.config.schema import GroupedBackend as Backend
from looplm.ops.grouped_matmul import blocks, ragged, reference, tokamax

BACKENDS = {"reference": reference, "ragged": ragged, "blocks": blocks, "tokamax": tokamax}


def check_backend(backend: Backend, platform: str) -> None:
    """Raises UserError where a program for this platform ("tpu", ...) needs what is not installed."""
    if backend == "tokamax" and platform == "tpu":
        tokamax.check_installed()


def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, backend: Backend = "auto") -> jax.Array:
    """Multiplies every row with the matrix of its group.

    Args:
        x_MD: rows, those of group 0 first, then those of group 1, ...
        w_EDF: one matrix a group, in the type of x.
        sizes_E: rows of every group, int32; together at most M.
        backend: `auto` is `blocks` where the program runs on a CPU and `ragged` elsewhere. `reference` is a loop over
            the groups.

    Returns:
        (M, F) in the type of x; rows beyond the last group are 0.
    """
    return _product(backend, x_MD, w_EDF, sizes_E)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(backend: Backend, x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    return _on(backend, "of_rows", x_MD, w_EDF, sizes_E)


def _forward(
    backend: Backend, x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _product(backend, x_MD, w_EDF, sizes_E), (x_MD, w_EDF, sizes_E)


def _backward(backend: Backend, saved: tuple, cotangent_MF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_MD, w_EDF, sizes_E = saved
    return (
        _on(backend, "of_rows", cotangent_MF, w_EDF, sizes_E, transposed=True),
        _on(backend, "of_matrices", x_MD, cotangent_MF, sizes_E),
        None,
    )


_product.defvjp(_forward, _backward)


def _on(backend: Backend, product: str, *arrays: jax.Array, **options: bool) -> jax.Array:
    """One of the products of a backend. The platform is that of the program, not of the machine that compiles it."""
    if backend != "auto":
        return getattr(BACKENDS[backend], product)(*arrays, **options)
    cpu: Callable = partial(getattr(blocks, product), **options)
    other: Callable = partial(getattr(ragged, product), **options)
    return jax.lax.platform_dependent(*arrays, cpu=cpu, default=other)
