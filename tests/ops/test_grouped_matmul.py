"""Every backend against a loop over the groups in numpy: values, gradients, empty groups, rows beyond the last."""

import importlib.util
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.errors import UserError
from looplm.ops.grouped_matmul import BACKENDS, check_backend, grouped_matmul, tokamax

M, D, F = 200, 12, 20
SIZES = {"uneven": [50, 0, 87, 13, 40], "one": [0, 0, 200, 0, 0], "few": [1, 2, 0, 3, 0], "none": [0, 0, 0, 0, 0]}


def by_hand(x_MD, w_EDF, sizes):
    rows, start = [], 0
    for w_DF, size in zip(w_EDF, sizes, strict=True):
        rows.append(x_MD[start : start + size] @ w_DF)
        start += size
    return np.concatenate([*rows, np.zeros((len(x_MD) - start, w_EDF.shape[2]))])


@pytest.fixture
def its_kernel(monkeypatch):
    """tokamax's kernel for TPUs, interpreted: every operation by itself, on the CPU. Gives a mesh to trace it under."""
    skip_without_tokamax()
    import tokamax.ops.tpu as kernels
    from jax.experimental.pallas import tpu as pallas

    def interpreted(tile_rows, tile):
        config = kernels.RaggedDotConfig(tile_m=tile_rows, tile_k=256, tile_n=256)
        return kernels.RaggedDot(
            config=config, interpret=pallas.InterpretParams(buffer_bounds="padded"), bypass_device_check=True
        )

    monkeypatch.setattr(tokamax, "kernel", interpreted)
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    return jax.sharding.AbstractMesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device)


def skip_without_tokamax():
    try:
        check_backend("tokamax", "tpu")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_of_tokamax(its_kernel, dtype):
    """Dims below its least, and such that are no whole tiles."""
    generator = np.random.default_rng(0)
    x_MD, w_EDF, y_MF = (jnp.asarray(generator.normal(size=shape), dtype) for shape in ((M, D), (5, D, 300), (M, 300)))
    numbers = [np.float64(x) for x in (x_MD, w_EDF, y_MF)]

    @jax.jit
    def run(x_MD, w_EDF, y_MF, sizes_E):
        value, pull_back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E, backend="tokamax"), x_MD, w_EDF)
        return value, *pull_back(y_MF)

    for name, sizes in SIZES.items():
        sizes_E = jnp.asarray(sizes, jnp.int32)
        with jax.sharding.use_abstract_mesh(its_kernel):
            results = run(x_MD, w_EDF, y_MF, sizes_E)
        for result, expected in zip(results, by_hand_with_gradients(*numbers, sizes), strict=True):
            error = np.max(np.abs(np.float64(result) - expected))
            assert error <= (2e-6 if dtype == "float32" else 4e-3) * max(np.max(np.abs(expected)), 1), name


def test_a_library_that_is_missing_or_does_not_fit_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tokamax, which is not installed; pip install 'looplm\[kernels\]'"):
        check_backend("tokamax", "tpu")
    check_backend("tokamax", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.12")
    with pytest.raises(UserError, match=r"needs tokamax>=0.0.17, and 0.0.12 is installed"):
        check_backend("tokamax", "tpu")
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.17")
    monkeypatch.setattr(metadata, "requires", lambda name: ["jax>=99.0", "jax[tpu]>=99.0; extra == 'tpu'"])
    with pytest.raises(UserError, match=r"tokamax 0.0.17 needs jax>=99.0, and jax .* is installed"):
        check_backend("tokamax", "tpu")


def by_hand_with_gradients(x_MD, w_EDF, y_MF, sizes):
    ends = np.cumsum(sizes)
    gradient_EDF = [x_MD[end - size : end].T @ y_MF[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return by_hand(x_MD, w_EDF, sizes), by_hand(y_MF, w_EDF.swapaxes(1, 2), sizes), np.stack(gradient_EDF)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend):
    generator = np.random.default_rng(0)
    x_MD, w_EDF, y_MF = (generator.normal(size=shape) for shape in ((M, D), (5, D, F), (M, F)))

    @jax.jit
    def run(x_MD, w_EDF, y_MF, sizes_E):
        def product(x, w):
            return grouped_matmul(x, w, sizes_E, backend=backend)

        value, pull_back = jax.vjp(product, x_MD, w_EDF)
        return value, *pull_back(y_MF)

    for name, sizes in SIZES.items():
        arrays = (jnp.float32(x) for x in (x_MD, w_EDF, y_MF))
        results = run(*arrays, jnp.asarray(sizes, jnp.int32))
        expected = by_hand_with_gradients(x_MD, w_EDF, y_MF, sizes)
        for result, wanted, bound in zip(results, expected, (1e-5, 2e-5, 5e-5), strict=True):
            np.testing.assert_allclose(result, wanted, atol=bound, err_msg=name)


def test_the_platform_of_the_program_decides():
    """A program for a TPU that is lowered here has XLA's kernel in it."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in
              (((M, D), jnp.float32), ((3, D, F), jnp.float32), ((3,), jnp.int32))]  # fmt: skip
    traced = jax.jit(grouped_matmul).trace(*shapes)
    texts = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu")}
    assert "while" in texts["cpu"]
    assert "ragged" not in texts["cpu"]
    assert "ragged" in texts["tpu"]


def test_sums_over_many_rows_of_bfloat16_are_float32():
    """4000 rows of 1 in one group: bfloat16 would stop counting at 256."""
    ones = jnp.ones((4000, 1), jnp.bfloat16)

    def product(w):
        return jnp.sum(grouped_matmul(ones, w, jnp.array([4000]), backend="blocks").astype(jnp.float32))

    assert jax.grad(product)(jnp.ones((1, 1, 1), jnp.bfloat16)) == pytest.approx(4000, rel=0.01)
