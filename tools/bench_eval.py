"""What scoring all depths in one pass costs beside one pass of the full depth, and beside a run for every depth.

    python tools/bench_eval.py [--rounds 5] [--dim 256]

Eight loops of four layers, 8 sequences of 128 tokens, a vocabulary of 2048. One process, in turn, medians of ratios;
on a CPU of its own time, not of the wall's.
The losses of the one pass are compared with those of the runs.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from looplm.config.schema import ExitGate, Mesh, Model
from looplm.eval.reading import read_one
from looplm.eval.score import Scorer
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, compute_dtype
from looplm.ops.attention import self_mask
from looplm.sharding.mesh import build_mesh

NUM_LOOPS, LAYERS, ROWS, LENGTH, VOCAB = 8, 4, 8, 128, 2048


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=256)
    asked = parser.parse_args()
    model = Model(
        vocab_size=VOCAB, dim=asked.dim, num_heads=asked.dim // 64, hidden_dim=3 * asked.dim, block_layers=LAYERS,
        exit_gate=ExitGate(),
    )  # fmt: skip
    lm, mesh = FunctionalLM(model), build_mesh(Mesh(data=-1, fsdp=1))
    params, batch = lm.init(jax.random.key(0)), batch_of(np.random.default_rng(0))
    scorers = {
        "all depths, one pass": Scorer(lm, mesh, NUM_LOOPS),
        "and temperatures": Scorer(lm, mesh, NUM_LOOPS, tempered=True),
        "and what exit rules ask": Scorer(lm, mesh, NUM_LOOPS, tempered=True, signals=True),
    }
    cases: dict[str, Callable[[], Any]] = {name: partial(score, params, batch) for name, score in scorers.items()}
    runs = [jax.jit(partial(one_depth, lm, depth)) for depth in range(1, NUM_LOOPS + 1)]
    hidden_BSD = jnp.zeros((ROWS, LENGTH, asked.dim), compute_dtype(model))
    head = jax.jit(lambda params: read_one(lm.bind(params), hidden_BSD, batch["labels"], tempered=False).nll)
    cases["the full depth"] = lambda: jax.device_get(runs[-1](params, batch))
    cases["a run for every depth"] = lambda: [jax.device_get(run(params, batch)) for run in runs]
    cases["a head"] = lambda: jax.device_get(head(params))
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    found = {name: case() for name, case in cases.items()}
    # The time of a CPU is steadier than the wall where others compute too.
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for _ in range(asked.rounds):
        for name, case in cases.items():
            start = clock()
            case()
            seconds[name].append(clock() - start)
    differs = max(
        float(np.abs(one - several).max())
        for one, several in zip(found["all depths, one pass"].nll_RBS, found["a run for every depth"], strict=True)
    )
    show({name: np.array(values) for name, values in seconds.items()}, differs)


def batch_of(draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Return a batch as the loader gives it."""
    tokens = draw.integers(0, VOCAB, (ROWS, LENGTH + 1))
    batch = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "segments": np.ones((ROWS, LENGTH))}
    batch["positions"] = np.tile(np.arange(LENGTH), (ROWS, 1))
    return {name: array.astype(np.int32) for name, array in batch.items()}


def one_depth(lm: FunctionalLM, depth: int, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Score one depth alone, (B, S)."""
    model = lm.bind(params)
    context = Context(jnp.asarray(batch["positions"]), self_mask(lm.config, jnp.asarray(batch["segments"])))
    forward = Forward(model, jnp.asarray(batch["tokens"]), context, Depth(depth), compute_dtype(lm.config))
    read = partial(read_one, model, labels_BS=jnp.asarray(batch["labels"]), tempered=False)
    return forward("last", read).read.nll[0]


def show(seconds: dict[str, np.ndarray], differs: float) -> None:
    """Print medians, and medians of ratios of the same round."""
    full = seconds["the full depth"]
    heads = seconds["a head"] * (NUM_LOOPS - 1)
    table = Table("", "ms", "over the full depth", "over it and 7 heads")
    for name, values in seconds.items():
        ratios = (np.median(values / full), np.median(values / (full + heads)))
        table.add_row(name, f"{1e3 * np.median(values):.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    console = Console()
    console.print(table)
    saved = np.median(seconds["a run for every depth"] / seconds["all depths, one pass"])
    console.print(f"one pass is {saved:.2f} times faster than a run for every depth of 1..{NUM_LOOPS}")
    console.print(f"losses of tokens differ by at most {differs:.1e} nats")


if __name__ == "__main__":
    main()
