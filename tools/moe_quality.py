"""Looped or not, dense or with experts, at equal active FLOPs and equal tokens: held-out loss of four small models.

    python tools/moe_quality.py --data runs/demo/data [--seeds 3] [--steps 300] [--batch-tokens 2048]

The data is that of `looplm demo`. In all four models a token passes four layers of the same active width: looped ones
have two layers and run them twice, unlooped ones have four; experts are 8 of width F / 2, two a token, balanced by a
bias. They differ in parameters, which is the question.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from looplm.config.schema import (
    Balance,
    Data,
    Loop,
    Model,
    MoE,
    NormalInit,
    Optim,
    Run,
    Schedule,
    SwiGLU,
)
from looplm.data.dataset import TokenDataset
from looplm.data.held_out import HeldOut
from looplm.data.loader import train_loader
from looplm.data.mixture import open_mixture
from looplm.eval.depth_sweep import depth_sweep
from looplm.eval.score import Scorer
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import step_flops
from looplm.train.program import Program
from looplm.train.state import create_state

EXPERTS = MoE(num_experts=8, experts_per_token=2, expert_dim=96, scores="sigmoid", balance=Balance(bias_rate=0.01))
KINDS = {
    "unlooped, dense": (SwiGLU(), 1),
    "looped, dense": (SwiGLU(), 2),
    "unlooped, experts": (EXPERTS, 1),
    "looped, experts": (EXPERTS, 2),
}
LAYERS = 4
"""That a token passes."""


def run_of(kind: str, arguments: argparse.Namespace, seed: int) -> Run:
    feed_forward, loops = KINDS[kind]
    return Run(
        seed=seed,
        num_steps=arguments.steps,
        model=Model(
            vocab_size=2048,
            dim=96,
            num_heads=4,
            num_kv_heads=2,
            hidden_dim=192,
            block_layers=LAYERS // loops,
            feed_forward=feed_forward,
            init=NormalInit(std=0.05),
        ),
        loop=Loop(num_loops=loops, remat="none", unroll=True),
        optim=Optim(learning_rate=4e-3, schedule=Schedule(warmup_steps=arguments.steps // 10)),
        data=Data(
            train=str(arguments.data / "train"),
            validation=str(arguments.data / "validation"),
            sequence_length=128,
            batch_tokens=arguments.batch_tokens,
        ),
    )


def train(program: Program, step: Callable, score: Scorer, run: Run) -> tuple[float, float]:
    """Trains from the run's seed, with the program of another seed, in which nothing is drawn.

    Returns (held-out loss in nats, seconds a step).
    """
    state = create_state(program.lm, program.optimizer, program.mesh, run.seed)
    batches = train_loader(open_mixture(run.data, seed=run.seed), start_step=0, prefetch=2)
    started = time.perf_counter()
    for index in range(run.num_steps):
        state, metrics = step(state, next(batches), index)
    jax.block_until_ready(metrics)
    seconds = (time.perf_counter() - started) / run.num_steps
    R, held_out = run.loop.num_loops, TokenDataset.open(str(run.data.validation))
    sweep = depth_sweep(
        score, state.params, HeldOut.of(held_out, run.data.sequence_length), batch_size=16, depths=[R],
        trained_depth=R, step=run.num_steps, max_batches=20,
    )  # fmt: skip
    return sweep.loss[0], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    arguments = parser.parse_args()
    console, losses = Console(width=140), dict[str, list[float]]()
    table = Table(
        "model", "parameters", "active", "FLOPs a token", *(f"seed {s}" for s in range(arguments.seeds)), "mean"
    )
    for kind in KINDS:
        losses[kind], run = [], run_of(kind, arguments, 0)
        program = Program(run, build_mesh(run.mesh, jax.devices()[:1]))
        step, score = program.compile(), Scorer(program.lm, program.mesh, run.loop.num_loops)
        for seed in range(arguments.seeds):
            loss, seconds = train(program, step, score, run_of(kind, arguments, seed))
            losses[kind].append(loss)
            console.print(f"{kind}, seed {seed}: {loss:.4f} nats, {seconds:.3f} s a step")
        flops = step_flops(program.trace().jaxpr).at(0).model / run.data.batch_tokens
        table.add_row(
            kind, f"{program.lm.num_params:,}", f"{program.lm.num_active_params:,}", f"{flops:,.0f}",
            *(f"{loss:.4f}" for loss in losses[kind]), f"{np.mean(losses[kind]):.4f}",
        )  # fmt: skip
    console.print(table)
    pairs = [("looped, experts", other) for other in KINDS if other != "looped, experts"]
    for first, second in [*pairs, ("looped, dense", "unlooped, dense"), ("unlooped, experts", "unlooped, dense")]:
        difference = np.subtract(losses[first], losses[second])
        console.print(
            f"{first} - {second}: {np.mean(difference):+.4f} nats, by seed {np.round(difference, 4).tolist()}"
        )


if __name__ == "__main__":
    main()
