"""Tokens per second of greedy decoding: all loops, all tokens leaving after the first loop, and one loop alone.

    python tools/bench_decode.py [--rounds 5]

Four rows of 32 tokens are continued by 160; the cache of eight loops holds 25 MB. One process, in turn, medians.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from looplm.config.schema import ExitGate, Model
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import generate
from looplm.model.functional import FunctionalLM

NUM_LOOPS, ROWS, PROMPT, TOKENS = 8, 4, 32, 160
SURE = 100.0
"""A bias of the gate at which every token leaves after the first loop."""


def cases() -> dict[str, Callable[[], object]]:
    """Calls that write ROWS * TOKENS tokens."""
    lm = FunctionalLM(
        Model(vocab_size=2048, dim=256, num_heads=8, hidden_dim=768, block_layers=2, exit_gate=ExitGate())
    )
    params = lm.init(jax.random.key(0))
    params["gate"]["bias"] += SURE
    prompts = list(np.random.default_rng(0).integers(0, 2048, (ROWS, PROMPT)))

    def case(num_loops: int, exit: str | None = None) -> Callable[[], object]:
        return lambda: generate(
            lm, params, prompts, num_loops=num_loops, exit=parse_exit(exit, lm.config),
            max_tokens=TOKENS, temperature=0.0, seed=0, end_ids=[], num_ids=2048,
        )  # fmt: skip

    return {
        "all loops": case(NUM_LOOPS),
        "all tokens leave after loop 1 (gate:0.9)": case(NUM_LOOPS, "gate:0.9"),
        "one loop": case(1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    calls = cases()
    for call in calls.values():
        call()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    table = Table("decoding", "tokens/s", "of all loops")
    first = np.array(next(iter(seconds.values())))
    for name, values in seconds.items():
        rate = ROWS * TOKENS / np.median(values)
        table.add_row(name, f"{rate:,.0f}", f"{np.median(first / np.array(values)):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
