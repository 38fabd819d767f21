"""Digests against the definition written out in numpy, on any mesh, and what they notice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from looplm.checkpoint.digest import FIRST, SECOND, compile_digests, digests
from looplm.config.schema import Mesh
from looplm.sharding.mesh import build_mesh

WORD = 0xFFFFFFFF


def mix(word: int) -> int:
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & WORD
    word = ((word ^ (word >> 15)) * 0x846CA68B) & WORD
    return word ^ (word >> 16)


def by_hand(array: np.ndarray) -> list[int]:
    """Word by word, in Python's integers."""
    bits = array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])
    first = second = 0
    for index in itertools.product(*map(range, array.shape)):
        word = int(bits[index])
        first += mix(word ^ (sum(i * m for i, m in zip(index, FIRST, strict=False)) & WORD))
        second += mix((word * SECOND[-1] + sum(i * m for i, m in zip(index, SECOND, strict=False))) & WORD)
    return [first & WORD, second & WORD]


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [
        draw.standard_normal((3, 8, 4)).astype(np.float32),
        draw.standard_normal((16,)).astype(jnp.bfloat16),
        np.asarray(-7, np.int32),
        draw.integers(0, 2, (8, 2)).astype(np.bool_),
        draw.integers(-100, 100, (5,)).astype(np.int8),
        draw.standard_normal((2,) * 8).astype(np.float32),
    ]


def test_they_equal_the_definition(arrays) -> None:
    found = np.asarray(digests([jnp.asarray(array) for array in arrays]))
    expected = [by_hand(array.astype(np.uint8) if array.dtype == np.bool_ else array) for array in arrays]
    np.testing.assert_array_equal(found, np.asarray(expected, np.uint32))


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_every_mesh_computes_the_same(arrays, axes: dict[str, int]) -> None:
    mesh = build_mesh(Mesh(**axes), jax.devices())
    spec = PartitionSpec(None, ("fsdp", "tensor"))
    split = jax.device_put(arrays[0], NamedSharding(mesh, spec))
    whole = jax.device_put(arrays[2], NamedSharding(mesh, PartitionSpec()))
    compiled = compile_digests({"params": {"split": split, "whole": whole}})
    np.testing.assert_array_equal(np.asarray(compiled([split, whole])), [by_hand(arrays[0]), by_hand(arrays[2])])


def test_every_flipped_bit_and_every_exchange_shows(arrays) -> None:
    array = arrays[0]
    bits = array.view(np.uint32)
    changed = [array]
    for position, bit in itertools.product(range(0, array.size, 7), range(32)):
        flipped = bits.copy().reshape(-1)
        flipped[position] ^= np.uint32(1 << bit)
        changed.append(flipped.reshape(array.shape).view(np.float32))
    for axis in range(3):
        changed += [np.roll(array, 1, axis), np.flip(array, axis)]
    assert_told_apart(changed)


def test_an_exchange_along_every_dim_shows() -> None:
    array = np.arange(2**8, dtype=np.float32).reshape((2,) * 8)
    assert_told_apart(
        [array, *(np.flip(array, axis) for axis in range(8)), *(array.swapaxes(0, axis) for axis in range(1, 8))]
    )


def assert_told_apart(arrays: list[np.ndarray]) -> None:
    """By either of the two sums."""
    words_2A = np.asarray(jax.vmap(lambda x: digests([x])[0])(jnp.stack(arrays))).T
    assert [len(set(words.tolist())) for words in words_2A] == [len(arrays)] * 2
