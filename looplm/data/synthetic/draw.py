"""Random numbers of numbered examples: a function of (what they are for, number of the example), many at once."""

import hashlib

import numpy as np

from looplm.data.index import scramble

_STEP = np.uint64(0x9E3779B97F4A7C15)


def draw(purpose: str, index_N: np.ndarray, count: int) -> np.ndarray:
    """Return `count` numbers of 64 random bits for every example, (N, count) uint64 (splitmix64)."""
    key = np.uint64(int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little"))
    start_N = scramble(np.asarray(index_N, np.int64).astype(np.uint64) ^ key)
    return scramble(start_N[:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64))


def below(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Turn random bits into numbers 0..bound-1, int64; the bias is below bound / 2**63."""
    return (bits >> np.uint64(1)).astype(np.int64) % bound


def orders(bits: np.ndarray) -> np.ndarray:
    """Turn random bits into permutations of the last axis, int64."""
    return np.argsort(bits, axis=-1, kind="stable")
