"""The order in which the windows of a source are read: a function of (seed, how many were read), with nothing stored.

An epoch is a permutation of all windows, computed number by number: a Feistel network permutes the smallest domain of
an even number of bits that holds them, and numbers that fall outside are sent through again until they fall inside
(cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Seeking is free. Deliberately absent:
reading, and which source's turn it is (`schedule`).
"""

import hashlib
from functools import lru_cache

import numpy as np

_NUM_ROUNDS = 8
_BLOCK = 1024


def permute(index: np.ndarray | int, size: int, seed: int | str, epoch: int = 0) -> np.ndarray:
    """Send numbers below `size` through the permutation of (seed, epoch); int64, the shape of `index`.

    The same on every machine. Takes any size up to 2**62. Raises IndexError for a number outside 0..size-1.
    """
    index = np.asarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise IndexError(f"permutation of {size} numbers at {index.min()}..{index.max()}")
    keys = _round_keys(seed, epoch)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    values = _feistel(index.reshape(-1).astype(np.uint64), half_bits, keys)
    # The domain is below four times the size, so this takes a handful of rounds.
    while (outside := values >= np.uint64(size)).any():
        values[outside] = _feistel(values[outside], half_bits, keys)
    return values.astype(np.int64).reshape(index.shape)


def shuffled(numbers: np.ndarray, size: int, seed: int | str) -> np.ndarray:
    """Return what the numbers-th readings of an endless shuffle of `size` things are; int64, the shape of `numbers`.

    Epoch after epoch, each a permutation of its own: in every run of `size` numbers that begins at a multiple of it,
    each thing occurs once.
    """
    numbers = np.asarray(numbers, np.int64)
    things, blocks = np.empty_like(numbers), numbers // _BLOCK
    for block in np.unique(blocks).tolist():
        here = blocks == block
        things[here] = _shuffled_block(block, size, seed)[numbers[here] - block * _BLOCK]
    return things


@lru_cache(maxsize=64)
def _shuffled_block(block: int, size: int, seed: int | str) -> np.ndarray:
    # A permutation of a thousand numbers takes hardly longer than one of a few, and batches read on.
    epochs, places = np.divmod(np.arange(block * _BLOCK, (block + 1) * _BLOCK), size)
    things = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        things[here] = permute(places[here], size, seed, epoch)
    return things


def _feistel(values: np.ndarray, half_bits: int, keys: list[np.uint64]) -> np.ndarray:
    """Permute the numbers of 2 * half_bits bits; uint64 in and out."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (scramble(right ^ key) & mask)
    return (left << shift) | right


def scramble(values: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finalizer of splitmix64); multiplication wraps on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int | str, epoch: int) -> list[np.uint64]:
    # A hash, so that neighbouring seeds and epochs have nothing in common.
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _NUM_ROUNDS).digest()
    return list(np.frombuffer(digest, "<u8").astype(np.uint64))
