"""Seconds of a training step in which later loops take a share of the tokens (Mixture of Recursions): all rows
computed, rows gathered, and the model without a router, against what its FLOPs promise. One process, in turn, medians.

    python -m tools.bench_depth_routers [--rounds 7] [--capacities 1,0.5,0.5]
"""

import time
from collections.abc import Callable
from typing import Annotated

import jax
import numpy as np
import typer

from looplm.config.schema import Data, ExpertChoice, FinalCrossEntropy, Loop, Model, NeverHalting, Optim, Run
from looplm.config.schema import Halting as AnyHalting
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops
from looplm.train.program import Program


def in_turn(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of every round of every step, one step after the other; a first round does not count."""
    for step in steps.values():
        step()
    seconds = {name: np.empty(rounds) for name in steps}
    for i in range(rounds):
        for name, step in steps.items():
            seconds[name][i] = step()
    return seconds


def step_of(run: Run) -> tuple[Callable[[], float], float]:
    """Return (a call that does one step and gives its seconds, FLOPs of a step)."""
    program = Program(run, build_mesh(run.mesh, jax.devices()[:1]))
    step, state = program.compile(), [program.create_state()]
    length = run.data.sequence_length
    tokens = np.random.default_rng(0).integers(
        0, run.model.vocab_size, (run.data.batch_tokens // length, length), dtype=np.int32
    )
    batch = {
        "tokens": tokens,
        "labels": np.roll(tokens, -1, axis=1),
        "segments": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
    }

    def once() -> float:
        started = time.perf_counter()
        state[0], metrics = step(state[0], batch, 0)
        jax.block_until_ready(metrics)
        return time.perf_counter() - started

    return once, step_flops(program.trace().jaxpr).at(0).model


def main(
    rounds: Annotated[int, typer.Option(help="Steps of each that count.")] = 7,
    capacities: Annotated[str, typer.Option(help="Share of the tokens of every loop.")] = "1,0.5,0.5",
    dim: int = 256,
    layers: int = 4,
    length: int = 512,
    rows: int = 4,
) -> None:
    """Print seconds and FLOPs of a step, and how much of the time that the FLOPs promise is saved."""
    shares = tuple(map(float, capacities.split(",")))

    def run_of(halting: AnyHalting) -> Run:
        return Run(
            num_steps=1,
            model=Model(vocab_size=512, dim=dim, num_heads=dim // 64, hidden_dim=4 * dim, block_layers=layers,
                        halting=halting),
            loop=Loop(num_loops=len(shares), remat="none", unroll=True),
            objective=FinalCrossEntropy(),
            optim=Optim(learning_rate=1e-3),
            data=Data(train="", sequence_length=length, batch_tokens=rows * length),
        )  # fmt: skip

    rules = {
        "no router": NeverHalting(),
        "all rows computed": ExpertChoice(capacities=shares),
        "rows gathered": ExpertChoice(capacities=shares, gathers=True),
    }
    built = {name: step_of(run_of(halting)) for name, halting in rules.items()}
    seconds = in_turn({name: step for name, (step, _) in built.items()}, rounds)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, capacities {capacities}, {rounds} rounds")
    for name, (_, flops) in built.items():
        print(f"{name}: {np.median(seconds[name]):.3f} s a step, {flops / 1e9:.1f} GFLOP")
    full, gathered = (built[name][1] for name in ("no router", "rows gathered"))
    saved = 1 - np.median(seconds["rows gathered"] / seconds["no router"])
    promised = 1 - gathered / full
    print(f"saved {saved:.1%} of the time (median of pairs), of {promised:.1%} of the FLOPs: {saved / promised:.0%}")


if __name__ == "__main__":
    typer.run(main)
