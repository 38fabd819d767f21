"""Greedy decoding at several batch sizes."""

import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from looplm.config.schema import Model
from looplm.infer.generate import generate
from looplm.model.functional import FunctionalLM
from tools.gpu.table import Row, Table

ROUNDS = 3


class Sizes(NamedTuple):
    """Of a model, and of what is written."""

    dim: int
    layers: int
    loops: int
    vocab: int
    prompt: int
    tokens: int
    batches: tuple[int, ...]


REAL = Sizes(2048, 4, 4, 32_768, prompt=256, tokens=128, batches=(1, 8, 64))
DRY = Sizes(64, 1, 2, 256, prompt=8, tokens=4, batches=(1, 8, 64))


def table(*, dry: bool) -> Table:
    """Make the section."""
    sizes = DRY if dry else REAL
    return Table(
        "Decoding",
        f"Prompts are read and continued greedily, all loops for every token; {sizes}, bfloat16 on an accelerator; "
        f"medians of {ROUNDS}, the prompt's time included.",
        ("batch", "tokens/s", "ms a token of a row", "compile, s"),
        partial(rows, sizes),
        share=0.1,
    )


def rows(sizes: Sizes) -> Iterator[Row]:
    """Yield the batch sizes."""
    heads = max(1, sizes.dim // 128)
    lm = FunctionalLM(
        Model(vocab_size=sizes.vocab, dim=sizes.dim, num_heads=heads, hidden_dim=sizes.dim * 11 // 4,
              block_layers=sizes.layers)
    )  # fmt: skip
    params = lm.init(jax.random.key(0))
    for batch in sizes.batches:
        yield Row((str(batch),), partial(measure, lm, params, sizes, batch))


def measure(lm: FunctionalLM, params: dict, sizes: Sizes, batch: int) -> Sequence[str]:
    """Return the cells of a batch size."""
    prompts = list(np.random.default_rng(0).integers(0, sizes.vocab, (batch, sizes.prompt)))

    def once() -> float:
        started = time.perf_counter()
        generate(lm, params, prompts, num_loops=sizes.loops, max_tokens=sizes.tokens, num_ids=sizes.vocab)
        return time.perf_counter() - started

    first = once()
    seconds = statistics.median(once() for _ in range(ROUNDS))
    rate = batch * sizes.tokens / seconds
    return [f"{rate:,.0f}", f"{1e3 * seconds / sizes.tokens:.2f}", f"{first - seconds:.0f}"]
