"""Writes safetensors files one tensor after the other, and an index where there are several.

The library writes a file from tensors that are all in memory; the format is the length of a header, the header, and the
numbers, so here the header is made from shapes and the numbers follow as they come.
"""

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from looplm.checkpoint.weight_files import INDEX
from looplm.errors import UserError

DTYPES: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
"""By the words of safetensors."""
SHARD_BYTES = 5_000_000_000
ALIGNMENT = 8
"""Bytes that a header's length is a multiple of, so that numbers begin at an even place."""


class Tensor(NamedTuple):
    """A tensor to be written: its numbers are made when it is its turn."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write_tensors(folder: Path, tensors: Sequence[Tensor], shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Writes them in order and returns the names of the files: one, or shards of at most so many bytes and an index. A
    tensor that is larger has a shard of its own.

    Raises UserError for a number that its type cannot hold.
    """
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(one.num_bytes for one in shards[-1]) + tensor.num_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors)},
            "weight_map": {one.name: name for name, shard in zip(names, shards, strict=True) for one in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return names


def write_file(path: Path, tensors: Sequence[Tensor]) -> None:
    """Writes tensors into one file, in order. Raises as `write_tensors`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(_numbers(tensor).tobytes())


def _numbers(tensor: Tensor) -> np.ndarray:
    value = tensor.make()
    assert value.shape == tensor.shape, "as the header says"
    with np.errstate(over="ignore"):
        cast = value.astype(DTYPES[tensor.dtype])
    if tensor.dtype == "F16" and not np.isfinite(cast).all():
        raise UserError(
            f"{tensor.name} holds {np.abs(value).max():.3g}, which float16 cannot; write it as bfloat16 or float32"
        )
    return np.ascontiguousarray(cast)
