"""Tokens per second of writing text: in step, with exits, with drafts, and with depths that differ.

    python tools/bench_decode.py [--rounds 5] [--run DIR]

Four rows of 32 tokens are continued by 160; the cache of eight loops holds 25 MB. Then 32 prompts on 16 rows, whose
tokens leave after loops that were drawn before. With --run also drafts, by a trained run of 8 loops, for which drafts
are worth something. One process, in turn, medians of ratios. The saving is that of the calls of the block, counted in
tokens, of what it would be if no place in them were empty.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import looplm
from looplm.config.schema import ExitGate, Model
from looplm.infer.board import Counts
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import Generation
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.in_step import InStep
from looplm.model.context import Context
from looplm.model.exits import Exits
from looplm.model.functional import FunctionalLM
from looplm.model.lm import LoopLM

NUM_LOOPS, ROWS, PROMPT, TOKENS = 8, 4, 32, 160
SURE = 100.0
"""A bias of the gate at which every token leaves after the first loop."""
SHARES = 0.25, 0.5, 0.75
Case = Callable[[], Counts | None]


@dataclass(frozen=True)
class Trace:
    """Lets tokens leave after loops that were written down, by position and row."""

    loops: tuple[int, ...]

    def build(self, model: LoopLM) -> Exits:
        """Make the halting rule."""
        return Exits(OfTrace(self.loops))


class OfTrace(nnx.Module):
    """See `Trace`."""

    def __init__(self, loops: tuple[int, ...]) -> None:
        self.loops = loops

    def init(self, h_BSD: jax.Array) -> tuple[()]:
        return ()

    def judge(self, memory: tuple[()], h_BSD: jax.Array, context: Context) -> tuple[jax.Array, tuple[()]]:
        assert context.sequence_B is not None
        own_BS = context.positions_BS * 7 + context.sequence_B[:, None].astype(jnp.int32) % 1000
        leave_BS = jnp.asarray(self.loops)[own_BS % len(self.loops)]
        return context.loop.number_B[:, None] + 1 >= leave_BS, memory


def fixed_cases() -> dict[str, Case]:
    """Calls that write ROWS * TOKENS tokens."""
    lm = FunctionalLM(
        Model(vocab_size=2048, dim=256, num_heads=8, hidden_dim=768, block_layers=2, exit_gate=ExitGate())
    )
    params = lm.init(jax.random.key(0))
    params["gate"]["bias"] += SURE
    prompts = list(np.random.default_rng(0).integers(0, 2048, (ROWS, PROMPT)))

    def case(num_loops: int, exit: str | None = None) -> Case:
        options = dict(num_loops=num_loops, exit=parse_exit(exit, lm.config), max_tokens=TOKENS)
        return lambda: counts_of(Generation(lm, params, prompts, sampling=Sampling(), num_ids=2048, **options))

    return {
        "all loops": case(NUM_LOOPS),
        "all tokens leave after loop 1 (gate:0.9)": case(NUM_LOOPS, "gate:0.9"),
        "one loop": case(1),
    }


def counts_of(generation: Generation) -> Counts | None:
    """Write all of it."""
    for _ in generation:
        pass
    return generation.counts


def depth_cases() -> dict[str, Case]:
    """16 rows, 32 prompts, tokens that need a share of the loops on average; and what all loops cost."""
    lm = FunctionalLM(Model(vocab_size=256, dim=256, num_heads=8, hidden_dim=768, block_layers=2))
    params = lm.init(jax.random.key(0))
    prompts = list(np.random.default_rng(0).integers(0, 256, (32, 8)))

    def case(**options: object) -> Case:
        settings = dict(num_loops=NUM_LOOPS, max_tokens=96, batch_size=16, num_ids=256) | options
        return lambda: counts_of(Generation(lm, params, prompts, sampling=Sampling(), **settings))

    cases = {"all loops": case()}
    for share in SHARES:
        spread = drawn_depths(share)
        trace, mean = Trace(tuple(spread.tolist())), f"mean depth {spread.mean() / NUM_LOOPS:.2f}"
        cases[f"{mean}, in step"] = case(exit=trace, scheduler=InStep())
        cases[f"{mean}, depth batching"] = case(exit=trace, scheduler=DepthBatching())
    return cases


def drawn_depths(share: float) -> np.ndarray:
    """Draw depths in 1..NUM_LOOPS whose mean is close to a share of it, (97,)."""
    mean, generator = share * NUM_LOOPS, np.random.default_rng(0)
    low, high = max(1, round(2 * mean) - NUM_LOOPS), min(NUM_LOOPS, round(2 * mean) - 1)
    return generator.integers(low, high + 1, 97)


def draft_cases(run: Path, rows: int) -> dict[str, Case]:
    """Text of a trained run, plain and with drafts."""
    lm = looplm.load(run)
    texts = ["def read_lines(path):\n    ", 'class Queue:\n    """', "import os\nimport sys\n\n", "# The number of"]

    def case(**options: object) -> Case:
        return lambda: lm.generate(texts[:rows], max_tokens=256, **options).counts

    drafts = ("1", "2", "1:3", "1:4", "1:6", "2:4")
    return {"plain": case()} | {f"--draft {draft}": case(draft=draft) for draft in drafts}


def show(title: str, cases: dict[str, Case], rounds: int) -> None:
    """Time the cases in turn; the first is what the others are compared with."""
    counted = [call() for call in cases.values()]  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    table = Table(title, "seconds", "times as fast", "loops a token", "saving")
    first, whole = np.array(next(iter(seconds.values()))), counted[0]
    for (name, values), counts in zip(seconds.items(), counted, strict=True):
        assert counts is not None, "all is written"
        assert whole is not None, "all is written"
        loops, saving = counts.used / counts.written, ""
        if whole.slots > counts.used and counts.used < counts.slots:
            saving = f"{(whole.slots - counts.slots) / (whole.slots - counts.used):.1%}"
        ratio = f"{np.median(first / np.array(values)):.2f}"
        table.add_row(name, f"{np.median(values):.3f}", ratio, f"{loops:.2f}", saving)
    Console().print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="A run of 8 loops.")
    arguments = parser.parse_args()
    show("4 rows, 160 tokens each", fixed_cases(), arguments.rounds)
    show("32 prompts on 16 rows, 96 tokens each", depth_cases(), arguments.rounds)
    if arguments.run is not None:
        for rows in (1, 4):
            show(f"{rows} row(s), 256 tokens each", draft_cases(arguments.run, rows), arguments.rounds)


if __name__ == "__main__":
    main()
