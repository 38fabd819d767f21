"""The Mosaic kernel for TPUs of the library tokamax (extra `kernels`); elsewhere XLA's grouped product, without it.

Its kernels for GPUs do not tell `shard_map` over which devices their results vary, so they cannot run here.

Unlike the other backends it is chosen by where the program is traced for, since the kernel asks for the kind of chip.
"""

import importlib.util
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import RaggedDotDimensionNumbers
from packaging.requirements import Requirement

from looplm.errors import UserError
from looplm.ops.grouped_matmul import ragged

NEEDED = Requirement("tokamax>=0.0.17")
"""The first that was seen to run inside a `shard_map`; it needs Python 3.12."""
REMEDY = "pip install 'looplm[kernels]' (Python 3.12 or later), or use backend=auto"
TILE_ROWS, TILE_BYTES, LEAST = 512, 2048, 128
"""In bfloat16 a tile of 512 x 1024 does 341 FLOPs per byte that it reads, where a TPU v5e can do 240, and takes 10 of
the 16 MiB that a kernel may use. The kernel takes no dim below 128."""
# Lists where the other backends have tuples: tokamax compares.
_ROWS = RaggedDotDimensionNumbers((([1], [1]), ([], [])), [0], [0])
_TRANSPOSED = RaggedDotDimensionNumbers((([1], [2]), ([], [])), [0], [0])
_MATRICES = RaggedDotDimensionNumbers((([0], [0]), ([], [])), [0], [])


def check_installed() -> None:
    """Raises UserError where tokamax is not there, or does not fit the JAX that is."""
    if importlib.util.find_spec("tokamax") is None:
        raise UserError(f"backend=tokamax needs the library tokamax, which is not installed; {REMEDY}")
    have = metadata.version("tokamax")
    if have not in NEEDED.specifier:
        raise UserError(f"backend=tokamax needs {NEEDED}, and {have} is installed; {REMEDY}")
    for text in metadata.requires("tokamax") or ():
        requirement = Requirement(text)
        if requirement.name == "jax" and requirement.marker is None and jax.__version__ not in requirement.specifier:
            raise UserError(
                f"backend=tokamax: tokamax {have} needs {requirement}, and jax {jax.__version__} is installed; {REMEDY}"
            )


def of_rows(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, transposed: bool = False) -> jax.Array:
    if _platform() != "tpu":
        return ragged.of_rows(x_MD, w_EDF, sizes_E, transposed=transposed)
    numbers = _TRANSPOSED if transposed else _ROWS
    width = w_EDF.shape[1 if transposed else 2]
    y_MF = _product(x_MD, w_EDF, sizes_E, numbers)[: x_MD.shape[0], :width]
    # Rows of no group are left as they were in memory.
    return jnp.where(jnp.arange(x_MD.shape[0])[:, None] < jnp.sum(sizes_E), y_MF, 0)


def of_matrices(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    if _platform() != "tpu":
        return ragged.of_matrices(x_MD, y_MF, sizes_E)
    return _product(x_MD, y_MF, sizes_E, _MATRICES)[:, : x_MD.shape[1], : y_MF.shape[1]]


def _product(x: jax.Array, y: jax.Array, sizes_E: jax.Array, numbers: RaggedDotDimensionNumbers) -> jax.Array:
    check_installed()
    tile_rows = min(TILE_ROWS, _up(x.shape[0], LEAST))
    x = _padded(x, tile_rows)
    y = _padded(y, tile_rows if y.ndim == 2 else LEAST)
    return kernel(tile_rows, TILE_BYTES // x.dtype.itemsize)(
        x,
        y,
        group_sizes=sizes_E,
        ragged_dot_dimension_numbers=numbers,
        manual_axis_type=jax.typeof(x).manual_axis_type,  # type: ignore[attr-defined]  # of jax 0.11.1 and later
    )


def kernel(tile_rows: int, tile: int) -> Any:
    from tokamax.ops.tpu import RaggedDot, RaggedDotConfig

    # Without sizes it takes tiles of 128 where it holds none that were tuned for just this shape.
    return RaggedDot(config=RaggedDotConfig(tile_m=tile_rows, tile_k=tile, tile_n=tile), bypass_device_check=True)


def _platform() -> str:
    """Of the program that is being traced."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _padded(x: jax.Array, tile_rows: int) -> jax.Array:
    """The last dims at least as large as the kernel asks for; rows whole tiles."""
    *_, rows, columns = x.shape
    fewer = _up(rows, tile_rows) - rows if x.ndim == 2 else max(LEAST - rows, 0)
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, fewer), (0, max(LEAST - columns, 0))))


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
