"""Kernels of the attention: how far from the definition, and how fast."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.errors import UserError
from looplm.ops.attention import Asked, Mask, blockwise, cudnn, dense, reference, triton
from tools.gpu.table import Row, Table


class Sizes(NamedTuple):
    """What is compared."""

    batch: int
    heads: tuple[int, int]
    """Of queries, of keys."""
    lengths: tuple[int, ...]
    head_dims: tuple[int, ...]
    documents: int
    window: int
    calls: int
    """That are timed together."""


REAL = Sizes(2, (16, 4), (1000, 2048, 8192), (128, 64, 96), documents=7, window=512, calls=10)
DRY = Sizes(1, (2, 1), (150,), (16,), documents=3, window=40, calls=1)
Attention = Callable[..., jax.Array]


def table(*, dry: bool) -> Table:
    """Make the section."""
    return Table(
        "Kernels of the attention",
        "Values and gradients in bfloat16 against the definition in float32 with exact products (largest difference "
        f"over the largest value), then times. {DRY if dry else REAL}; the rate counts the scores that one document "
        "of the whole length has.",
        ("S", "H", "mask", "backend", "values off", "gradients off", "forward, ms", "with backward, ms", "TFLOP/s"),
        partial(rows, DRY if dry else REAL, dry=dry),
        share=0.4,
    )


def rows(sizes: Sizes, *, dry: bool) -> Iterator[Row]:
    """Yield what matters most first; the reference is computed once for all backends of a case.

    Packed rows with the first head size by all backends, then with the others by the kernels; other masks.
    """
    backends: dict[str, tuple[Attention, Any]] = {
        "cudnn": (cudnn.attention, cudnn),
        "triton": (partial(triton.attention, interpret=True) if dry else triton.attention, triton),
        "blockwise": (blockwise.attention, None),
        "dense": (dense.attention, None),
    }
    first, *others = sizes.head_dims
    kernels, causal, packed = ("cudnn", "triton"), "causal", "causal, packed"
    window = f"window {sizes.window}"
    wanted = [(packed, first, tuple(backends)), *((packed, head_dim, kernels) for head_dim in others)]
    for name, head_dim, names in (*wanted, (causal, first, tuple(backends)), (window, first, tuple(backends))):
        for length in sizes.lengths:
            mask = masks(sizes, length)[name]
            case = Case(sizes, length, head_dim, mask)
            for backend in names:
                function, module = backends[backend]
                reason = module.cannot(mask, Asked(length, jnp.bfloat16, head_dim)) if module else None
                yield Row((str(length), str(head_dim), name, backend), partial(case.measure, function, reason))


def masks(sizes: Sizes, length: int) -> dict[str, Mask]:
    """Describe the masks: one document, packed documents with padding at the end, a window."""
    ends = np.sort(np.random.default_rng(0).choice(np.arange(1, length), (sizes.batch, sizes.documents)), axis=1)
    segments_BS = 1 + np.sum(np.arange(length) >= ends[:, :, None], axis=1)
    segments_BS = jnp.asarray(np.where(segments_BS > sizes.documents, 0, segments_BS), jnp.int32)
    return {
        "causal, packed": Mask("causal", None, length, segments_BS=segments_BS),
        "causal": Mask("causal", None, length),
        f"window {sizes.window}": Mask("causal", sizes.window, length),
    }


class Case:
    """One size and mask: the same inputs for all backends."""

    def __init__(self, sizes: Sizes, length: int, head_dim: int, mask: Mask):
        self.sizes, self.length, self.head_dim, self.mask = sizes, length, head_dim, mask
        self.expected: list[np.ndarray] | None = None

    def inputs(self) -> list[jax.Array]:
        """Return queries, keys, values and a cotangent of the output."""
        keys = jax.random.split(jax.random.key(0), 4)
        shapes = [(self.sizes.batch, self.length, self.sizes.heads[i], self.head_dim) for i in (0, 1, 1, 0)]
        return [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]

    def measure(self, function: Attention, reason: str | None) -> Sequence[str]:
        """Return the cells of a backend; reason: why it does not compute this."""
        if reason is not None:
            raise UserError(reason)
        inputs = self.inputs()
        if self.expected is None:
            with jax.default_matmul_precision("highest"):
                exact = [x.astype(jnp.float32) for x in inputs]
                self.expected = [np.asarray(x) for x in self._gradients(reference.attention)(*exact)]
        forward = jax.jit(lambda q, k, v: function(q, k, v, self.mask))
        both = self._gradients(function)
        found = [np.asarray(x, np.float32) for x in both(*inputs)]
        off = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, self.expected, strict=True)]
        times = [self._seconds(forward, inputs[:3]), self._seconds(both, inputs)]
        scores = self.sizes.batch * self.sizes.heads[0] * self.length * self.mask.mean_keys(self.length)
        rate = 12 * scores * self.head_dim / times[1]
        if not np.isfinite(off).all():
            raise ArithmeticError(f"not finite: {off}")
        return [f"{off[0]:.1e}", f"{max(off[1:]):.1e}", *(f"{1e3 * s:.3f}" for s in times), f"{rate / 1e12:.3g}"]

    def _gradients(self, function: Attention) -> Callable[..., tuple[jax.Array, ...]]:
        """Return a program for the output and the gradients."""

        @jax.jit
        def run(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
            out, pull_back = jax.vjp(lambda *inputs: function(*inputs, self.mask), q, k, v)
            return out, *pull_back(cotangent)

        return run

    def _seconds(self, call: Callable[..., Any], inputs: Sequence[jax.Array], rounds: int = 3) -> float:
        """Return the median time of a call, of several sent one after the other."""
        jax.block_until_ready(call(*inputs))
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(self.sizes.calls):
                out = call(*inputs)
            jax.block_until_ready(out)
            seconds.append((time.perf_counter() - started) / self.sizes.calls)
        return statistics.median(seconds)
