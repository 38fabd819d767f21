"""Digests of arrays that do not depend on how they are split over devices.

A digest is two sums modulo 2^32 over all words of an array, each word mixed with its place in the whole array: sums of
integers come out the same in any order, so every mesh computes the same 64 bits where the arrays are, and nothing is
gathered. The mixing is a bijection of 32 bits, so a change within one word always shows; any other change goes
unnoticed once in 2^64. It finds accidents; it does not protect from a forger.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from looplm.ops.mixing import mix

FIRST = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09)
SECOND = (0xB5297A4D, 0x68E31DA5, 0x1B56C4E9, 0x7FEB352D, 0x846CA68B, 0xCC9E2D51, 0x1B873593, 0xE6546B65)
"""Odd multipliers of an index along every dim, of the two sums."""
Trees = Mapping[str, Any]
"""Trees by item: "params", "opt_state", and "carry" where a run has one."""
Digest = Callable[[list[jax.Array]], jax.Array]
"""`digests`, or the same compiled for given arrays."""
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
"""By bytes of a number; one of eight bytes becomes two words."""


@jax.jit
def digests(arrays: list[jax.Array]) -> jax.Array:
    """(arrays, 2) uint32. One read of the arrays, no memory."""
    return jnp.stack([_digest(array) for array in arrays])


def digest_of_rows(rows: np.ndarray, start: int) -> np.ndarray:
    """(2,) uint32: the share that the rows from `start` on have in the digest of the array that they are of."""
    return np.asarray(_digest(jnp.asarray(rows), jnp.uint32(start)))


def add_digests(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of rows of one array that do not overlap."""
    return first + second  # modulo 2^32, as unsigned numbers add up


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, e.g. `core.layers.attention.query.kernel` or `0.mu.head`; `...` is left out."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths if leaf is not ...}


def leaves_of(trees: Trees) -> dict[tuple[str, str], Any]:
    """Leaves of all trees by item and name."""
    return {(item, name): leaf for item in sorted(trees) for name, leaf in named_leaves(trees[item]).items()}


def compile_digests(abstract: Trees) -> Digest:
    """For arrays like these, so that nothing is compiled while a run goes on."""
    return digests.lower(list(leaves_of(abstract).values())).compile()


def as_text(digest: np.ndarray) -> str:
    """Two words as 16 hexadecimal digits."""
    return "".join(f"{int(word):08x}" for word in digest)


@jax.jit  # traced once for all arrays of a kind
def _digest(array: jax.Array, start: jax.Array | None = None) -> jax.Array:
    word = _words(array)
    first = mix(word ^ _place(word, FIRST, start))
    second = mix(word * jnp.uint32(SECOND[-1]) + _place(word, SECOND, start))
    zero = jnp.uint32(0)
    # One reduction of pairs: two of them make XLA on a CPU store the mixed words (20 times slower).
    sums = jax.lax.reduce((first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), range(word.ndim))
    return jnp.stack(sums)


def _words(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)


def _place(word: jax.Array, multipliers: tuple[int, ...], start: jax.Array | None) -> jax.Array:
    """start: of the rows that the array is, in the whole."""
    sharding = jax.typeof(word).sharding
    place = jnp.zeros_like(word)
    for dim in range(word.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, word.shape, dim, out_sharding=sharding)
        if dim == 0 and start is not None:
            index += start
        place += index * jnp.uint32(multipliers[dim])
    return place
