"""Which windows a training step reads: a function of (seed, step), with nothing stored.

An epoch is a permutation of all windows, computed number by number: a Feistel network permutes the smallest domain of
an even number of bits that holds them, and numbers that fall outside are sent through again until they fall inside
(cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Seeking is free and the state of the
data is the step. Deliberately absent: reading, and mixtures of several datasets.
"""

import hashlib

import numpy as np

_NUM_ROUNDS = 8


def permute(index: np.ndarray | int, size: int, seed: int, epoch: int = 0) -> np.ndarray:
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


class EpochIndex:
    """Window numbers of every step: one permutation after another, cut into batches across their borders."""

    def __init__(self, num_windows: int, seed: int, batch_size: int) -> None:
        """Raises ValueError unless there is a window and a row."""
        if num_windows < 1 or batch_size < 1:
            raise ValueError(f"num_windows={num_windows} and batch_size={batch_size} must be positive")
        self.num_windows = num_windows
        self.seed = seed
        self.batch_size = batch_size

    def __repr__(self) -> str:
        return f"EpochIndex(num_windows={self.num_windows}, seed={self.seed}, batch_size={self.batch_size})"

    def batch(self, step: int) -> np.ndarray:
        """Return the windows of the global batch of `step`, counted from 0: (B,) int64.

        In every run of `num_windows` rows that begins at a multiple of it, each window occurs once.
        """
        # In Python integers: step * batch_size may be beyond 64 bits, each part below is not.
        epoch, start = divmod(int(step) * self.batch_size, self.num_windows)
        parts = []
        remaining = self.batch_size
        while remaining:
            count = min(remaining, self.num_windows - start)
            parts.append(permute(np.arange(start, start + count), self.num_windows, self.seed, epoch))
            remaining -= count
            epoch, start = epoch + 1, 0
        return np.concatenate(parts)


def _feistel(values: np.ndarray, half_bits: int, keys: list[np.uint64]) -> np.ndarray:
    """Permute the numbers of 2 * half_bits bits; uint64 in and out."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finalizer of splitmix64); multiplication wraps on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    # A hash, so that neighbouring seeds and epochs have nothing in common.
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _NUM_ROUNDS).digest()
    return list(np.frombuffer(digest, "<u8").astype(np.uint64))
